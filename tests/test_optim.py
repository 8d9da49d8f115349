"""SGD, LARS and the schedule, against plain loops written from their formulas.

test_peers_optim.py compares the same with PyTorch and optax.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from devices import host, on_device, tensor

from minisimclr.engine.autograd import Tensor, primitive
from minisimclr.engine.guard import writing
from minisimclr.training.optim import LARS, SGD, Optimizer, warmup_cosine

Array = np.ndarray
SHAPES = [(4, 3), (3,), (2, 2, 3, 3), ()]
RATES = [0.1, 0.5, 0.5, 0.02, 0.3, 0.0]  # changes midway, as under a schedule


def start(dtype: type = np.float64) -> list[Array]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def gradients(step: int, dtype: type = np.float64) -> list[Array]:
    rng = np.random.default_rng([1, step])
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def trained(make: Callable[[list[Tensor]], Optimizer], rates: Iterable[float] = RATES) -> list[Array]:
    """The parameters after one step per rate."""
    params = [tensor(array, requires_grad=True) for array in start()]
    optimizer = make(params)
    for step, lr in enumerate(rates):
        for p, g in zip(params, gradients(step)):
            p.grad = on_device(g)
        optimizer.step(lr)
    return [host(p.data) for p in params]


def one_step(optimizer: type, w: Array, g: Array, **options: float) -> Array:
    p = tensor(np.asarray(w, float), requires_grad=True)
    p.grad = on_device(np.asarray(g, float))
    optimizer([p], **options).step()
    return host(p.data)


# ── SGD ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_its_formula(momentum, decay, nesterov):
    for w, ours, k in zip(start(), trained(lambda p: SGD(p, 1, momentum, decay, nesterov)), range(9)):
        v = 0.0
        for step, lr in enumerate(RATES):
            g = gradients(step)[k] + decay * w
            v = momentum * v + g
            w = w - lr * (g + momentum * v if nesterov else v)
        np.testing.assert_allclose(ours, w, rtol=1e-13)


# ── LARS ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_is_its_formula(momentum, decay):
    """Arrays of two axes or more get decay and trust, the others neither; the rate is inside the momentum."""
    for w, ours, k in zip(start(), trained(lambda p: LARS(p, 1, momentum, decay, 0.02)), range(9)):
        v = 0.0
        for step, lr in enumerate(RATES):
            g, trust = gradients(step)[k], 1.0
            if np.ndim(w) > 1:
                g = g + decay * w
                trust = 0.02 * math.sqrt((w**2).sum()) / math.sqrt((g**2).sum())
            v = momentum * v + lr * trust * g
            w = w - v
        np.testing.assert_allclose(ours, w, rtol=1e-13)


def test_lars_step_is_a_share_of_the_weights_norm_whatever_the_gradients_size():
    w, g = start()[0], gradients(0)[0]
    for size in (1e-6, 1.0, 1e6):
        moved = w - one_step(LARS, w, size * g, lr=0.5, weight_decay=0.0, trust_coefficient=0.01)
        assert np.linalg.norm(moved) == pytest.approx(0.5 * 0.01 * np.linalg.norm(w))


def test_lars_without_decay_still_trusts():
    """Weight decay 0 must not turn the method off, as it does in a port."""
    w, g = start()[0], gradients(0)[0]
    lars = one_step(LARS, w, g, lr=0.5, weight_decay=0.0)
    assert not np.allclose(lars, one_step(SGD, w, g, lr=0.5))


@pytest.mark.parametrize(("w", "g"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_lars_moves_zero_weights_or_by_zero_gradients_with_trust_1(w, g):
    """`>= 0` for `> 0` would freeze zero weights for ever, or make NaN."""
    w, g = np.full((2, 3), w), np.full((2, 3), g)
    assert np.array_equal(one_step(LARS, w, g, lr=0.5, weight_decay=0.0), w - 0.5 * g)


def test_lars_trusts_small_norms_too():
    """Only a norm of exactly 0 gives nothing to trust."""
    w, g = np.full((2, 2), 1e-3), np.full((2, 2), 7e-5)
    moved = w - one_step(LARS, w, g, lr=0.5, weight_decay=0.0, trust_coefficient=0.01)
    np.testing.assert_allclose(moved, 0.5 * 0.01 * w)


def test_lars_gives_biases_and_batch_norm_neither_decay_nor_trust():
    w, g = np.full(3, 2.0), np.full(3, 1.0)
    assert np.array_equal(one_step(LARS, w, g, lr=0.5, weight_decay=10.0), w - 0.5 * g)


def test_from_zero_weights_lars_agrees_with_sgd():
    """A step is a plain one if there is no norm to trust."""
    w, g = np.zeros((2, 3)), np.arange(6.0).reshape(2, 3)
    assert np.array_equal(one_step(LARS, w, g, lr=0.5, weight_decay=0.0), one_step(SGD, w, g, lr=0.5))


def test_nesterov_has_its_closed_values_under_a_constant_gradient():
    """v = 1, 1.9;  w = −(1 + 0.9·1) − (1 + 0.9·1.9)."""
    p = tensor(np.zeros(1), requires_grad=True)
    optimizer = SGD([p], 1.0, momentum=0.9, nesterov=True)
    for expected in (-1.9, -4.61):
        p.grad = on_device(np.ones(1))
        optimizer.step()
        assert float(p.data[0]) == pytest.approx(expected, rel=1e-12)


def test_lars_keeps_the_rate_inside_the_momentum():
    """After the rate falls to 0 the weights go on moving, by what earlier steps gathered; SGD's stand still."""
    for make, moves in ((lambda p: LARS(p, 1, weight_decay=0), True), (lambda p: SGD(p, 1), False)):
        before, after = trained(make, [1.0]), trained(make, [1.0, 0.0])
        assert all(np.array_equal(a, b) != moves for a, b in zip(before, after))


# ── Both ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=[SGD, LARS])
def kind(request):
    return request.param


@pytest.mark.parametrize(
    ("left_out", "written_out"),
    [
        (lambda p: SGD(p, 1), lambda p: SGD(p, 1, momentum=0.9, weight_decay=0.0, nesterov=False)),
        (lambda p: LARS(p, 1), lambda p: LARS(p, 1, momentum=0.9, weight_decay=1e-6, trust_coefficient=1e-3)),
    ],
)
def test_options_left_out_have_the_values_of_the_papers_code(left_out, written_out):
    for a, b in zip(trained(left_out), trained(written_out)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_and_velocity_keep_their_dtype(kind, dtype):
    params = [tensor(array, requires_grad=True) for array in start(dtype)]
    optimizer = kind(params, lr=0.1, weight_decay=0.1)
    for step in range(2):
        for p, g in zip(params, gradients(step, dtype)):
            p.grad = on_device(g)
        optimizer.step(lr=np.float64(0.1).item())
    assert {p.dtype for p in params} | {v.dtype for v in optimizer.velocity} == {np.dtype(dtype)}


def test_a_parameter_without_gradient_is_left_alone(kind):
    used, unused = (tensor(np.ones((2, 2)), requires_grad=True) for _ in "ab")
    optimizer = kind([used, unused], lr=0.1, weight_decay=0.5)
    (used * 2).sum().backward()
    optimizer.step()
    assert not np.array_equal(host(used.data), np.ones((2, 2)))
    assert np.array_equal(host(unused.data), np.ones((2, 2)))
    assert not optimizer.velocity[1].any()


def test_a_step_leaves_the_gradient_as_it_was(kind):
    p = tensor(np.ones((2, 2)), requires_grad=True)
    optimizer = kind([p], lr=0.1, weight_decay=0.5)
    p.grad = on_device(np.full((2, 2), 3.0))
    for _ in range(2):
        optimizer.step()
    assert np.array_equal(host(p.grad), np.full((2, 2), 3.0))


def test_without_an_argument_a_step_takes_the_constructors_rate(kind):
    w, g = start()[0], gradients(0)[0]
    p = tensor(w, requires_grad=True)
    p.grad = on_device(g)
    kind([p], lr=123.0).step(lr=0.5)
    assert np.array_equal(host(p.data), one_step(kind, w, g, lr=0.5))


def test_zero_grad_forgets_the_gradients(kind):
    p = tensor(np.ones(2), requires_grad=True)
    p.grad = on_device(np.ones(2))
    kind([p], lr=0.1).zero_grad()
    assert p.grad is None


def test_parameters_may_come_from_a_generator(kind):
    assert len(kind((tensor(np.ones(2), requires_grad=True) for _ in range(3)), lr=0.1).params) == 3


def test_backward_is_the_backward_pass_and_returns_the_size_of_the_gradient(kind):
    """Σ max|g|, written out."""
    a, b = (tensor(np.array([[3.0, -5.0]]), requires_grad=True), tensor(np.array([2.0]), requires_grad=True))
    optimizer = kind([a, b], lr=0.1)
    size = optimizer.backward((a * a).sum() + b.sum())
    assert np.array_equal(host(a.grad), [[6.0, -10.0]])
    assert np.array_equal(host(b.grad), [1.0])
    assert float(size) == 11.0


def test_a_loss_of_other_parameters_is_refused(kind):
    w, other = (tensor(np.ones(2), requires_grad=True) for _ in "ab")
    with pytest.raises(ValueError, match="depends on none of the optimizer's parameters"):
        kind([w], lr=0.1).backward(other.sum())


def test_a_state_comes_back_bit_for_bit(kind):
    params = [tensor(array, requires_grad=True) for array in start(np.float32)]
    optimizer = kind(params, lr=0.1)
    for p, g in zip(params, gradients(0, np.float32)):
        p.grad = on_device(g)
    optimizer.step()
    state = optimizer.state_dict()
    assert list(state) == [f"momentum/{k}" for k in range(len(SHAPES))]
    assert all(isinstance(array, np.ndarray) for array in state.values())
    fresh = kind(params, lr=0.1)
    fresh.load_state_dict(state)
    assert all(np.array_equal(host(v), host(w)) for v, w in zip(fresh.velocity, optimizer.velocity))


@pytest.mark.parametrize(
    "change", [lambda s: s.pop("momentum/1"), lambda s: s.update({"momentum/1": np.zeros((3, 1))})]
)
def test_a_state_that_does_not_fit_is_refused(kind, change):
    optimizer = kind([tensor(array, requires_grad=True) for array in start()], lr=0.1)
    state = optimizer.state_dict()
    change(state)
    with pytest.raises(ValueError, match=r"momentum/1 is missing or does not have the shape \(3,\)"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": -1.0}, "lr must be a finite number ≥ 0, not -1"),
        ({"lr": math.nan}, "lr must be"),
        ({"lr": math.inf}, "lr must be"),
        ({"lr": 0.1, "momentum": -0.1}, "momentum must be"),
        ({"lr": 0.1, "weight_decay": math.nan}, "weight_decay must"),
    ],
)
def test_options_that_make_no_sense_are_refused(kind, options, says):
    with pytest.raises(ValueError, match=says):
        kind([tensor(np.ones(2), requires_grad=True)], **options)


def test_an_optimizer_without_a_rule_of_its_own_must_not_step():
    p = Tensor(np.ones(2), requires_grad=True)
    p.grad = np.ones(2)
    with pytest.raises(NotImplementedError):
        Optimizer([p], lr=0.1, momentum=0.9, weight_decay=0.0).step()


def test_no_parameters_are_refused(kind):
    with pytest.raises(ValueError, match="no parameters"):
        kind([], lr=0.1)


def test_a_step_is_the_same_while_an_older_graph_is_alive_whose_backward_then_raises(kind):
    """Such a graph is that of a validation loss that was kept, or of a notebook cell that was interrupted."""

    def stepped(keep: bool) -> tuple[Tensor, Tensor | None]:
        w = tensor(np.ones(2), requires_grad=True)
        older = (w * w).sum()
        kept = older if keep else None
        del older
        optimizer = kind([w], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()
        return w, kept

    (w, kept), (without, _) = stepped(True), stepped(False)
    assert np.array_equal(host(w.data), host(without.data))
    with pytest.raises(RuntimeError, match=r"a parameter of shape \(2,\) was changed .* call backward\(\) before step"):
        kept.backward()


# ── The schedule ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.0),
        (5, 1.0),
        (9, 1.8),  # up a straight line
        (10, 2.0),  # the peak
        (10 + 45, 2 * (2 + math.sqrt(2)) / 4),
        (10 + 90, 1.0),
        (10 + 60, 1.5),
        (10 + 120, 0.5),  # down half a cosine
        (190, 0.0),
        (191, 0.0),
        (10**6, 0.0),
    ],
)
def test_schedule_has_its_closed_values(step, lr):
    assert warmup_cosine(step, 190, 10, 2.0) == pytest.approx(lr, abs=1e-15)


def test_schedule_without_warm_up_begins_at_the_peak():
    assert warmup_cosine(0, 10, 0, 2.0) == 2.0


def test_schedule_of_warm_up_alone_never_comes_down():
    assert [warmup_cosine(t, 4, 4, 2.0) for t in range(6)] == [0, 0.5, 1, 1.5, 0, 0]


def test_schedule_of_no_steps_at_all_is_0():
    assert warmup_cosine(0, 0, 0, 2.0) == 0


def test_schedule_rises_then_falls_and_never_jumps():
    rates = [warmup_cosine(t, 100, 20, 1.0) for t in range(101)]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= 1 / 20 + 1e-12


def test_schedule_gives_python_floats():
    """numpy.float64 would turn float32 weights into float64 ones."""
    assert {type(warmup_cosine(t, 10, 3, 0.5)) for t in range(12)} == {float}


@pytest.mark.parametrize("warmup", [-1, 11])
def test_schedule_refuses_a_warm_up_longer_than_the_run(warmup):
    with pytest.raises(ValueError, match=f"0…total_steps = 10, not {warmup}"):
        warmup_cosine(0, 10, warmup, 1.0)


# ── Whose parameters they are ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [SGD, LARS])
def test_a_parameter_that_is_given_under_two_names_moves_by_its_formula_once(make):
    """Tied weights: their gradient is one, already added up."""
    (w, *_), (g, *_) = start(), gradients(0)
    p = tensor(w, requires_grad=True)
    p.grad = on_device(g)
    make([p, p], lr=0.1, momentum=0.9, weight_decay=0.01).step()
    np.testing.assert_array_equal(host(p.data), one_step(make, w, g, lr=0.1, momentum=0.9, weight_decay=0.01))


def test_descent_written_in_place_agrees_with_the_optimizer_or_is_refused():
    """`w -= lr * w.grad` would bind the name to a new tensor: the network's own weight would never move."""
    w, by_hand = (tensor(np.array([1.0, -2.0]), requires_grad=True) for _ in range(2))
    (w * w).sum().backward()
    SGD([w], lr=0.1, momentum=0.0).step()
    name = by_hand  # what a loop over parameters() binds
    (name * name).sum().backward()
    try:
        name -= 0.1 * name.grad
    except (TypeError, RuntimeError):
        assert name is by_hand
    else:
        np.testing.assert_array_equal(host(by_hand.data), host(w.data))


def test_a_step_within_another_write_agrees_with_one_after_the_other():
    """Two optimizers in two threads may be at work on one parameter, while an older graph lives."""
    within, after = (tensor(np.ones(3), requires_grad=True) for _ in range(2))
    for w in (within, after):
        kept = (w * w).sum()
        optimizer = SGD([w], lr=0.1, momentum=0.0)
        w.grad = on_device(np.full(3, 2.0))
        with writing(w) as array:
            if w is within:
                optimizer.step()
            array -= 0.25
        if w is after:
            optimizer.step()
        del kept
    np.testing.assert_array_equal(host(within.data), host(after.data))


def test_a_step_while_an_operation_computes_is_noticed_or_the_gradient_is_that_of_finite_differences():
    """Another thread's step comes between the look at the array and the claim on it."""
    w = tensor(np.array([1.0, -2.0, 3.0]), requires_grad=True)
    optimizer = SGD([w], lr=0.1, momentum=0.0)
    w.grad = on_device(np.ones(3))
    read = []

    @primitive
    def square(xp, x):
        read.append(host(x).copy())
        optimizer.step()  # as another thread would
        return xp.asarray(read[0] ** 2), lambda g: 2 * g * x

    loss = square(w).sum()
    w.grad = None
    try:
        loss.backward()
    except RuntimeError:
        return  # test_guard.py reads the message
    eps = 1e-6
    slope = ((read[0] + eps) ** 2 - (read[0] - eps) ** 2) / (2 * eps)
    np.testing.assert_allclose(host(w.grad), slope, rtol=1e-6)


# ── Settings and gradients in other types ─────────────────────────────────────────────────────────


def test_true_is_never_taken_for_the_number_one():
    w = tensor(np.ones(3), requires_grad=True)
    for options in ({"lr": True}, {"lr": 0.1, "momentum": True}, {"lr": 0.1, "weight_decay": True}):
        with pytest.raises(TypeError):
            SGD([w], **options)


@pytest.mark.parametrize("make", [SGD, LARS])
def test_rates_in_float64_leave_weights_of_float32_in_float32(make):
    """As np.linspace gives them, and np.geomspace, to those who try several."""
    w = tensor(np.ones((3, 2), np.float32), requires_grad=True)
    w.grad = on_device(np.full((3, 2), 0.5, np.float32))
    optimizer = make([w], lr=np.float64(0.1), momentum=np.float64(0.9), weight_decay=np.float64(0.01))
    optimizer.step(np.float64(0.2))
    assert w.data.dtype == np.float32
    assert {type(x) for x in (optimizer.lr, optimizer.momentum, optimizer.weight_decay)} == {float}


@pytest.mark.host
def test_a_step_on_big_endian_weights_agrees_with_one_on_native_ones():
    """As a file of another machine holds them."""
    steps = []
    for kind in (">f4", "<f4"):
        w = Tensor(np.array([1.0, -2.0, 3.0]).astype(kind), requires_grad=True)
        (w * w).sum().backward()
        SGD([w], lr=0.1).step()
        assert w.data.dtype.isnative
        steps.append(w.data)
    np.testing.assert_array_equal(*steps)


def test_a_graph_that_begins_during_a_write_is_refused_or_has_the_gradient_of_finite_differences():
    """Another thread's optimizer is at work while this thread computes its loss."""
    w = tensor(np.array([1.0, -2.0, 3.0]), requires_grad=True)
    before = host(w.data).copy()
    with writing(w) as array:
        loss = (w * w).sum()
        array += 1
    try:
        loss.backward()
    except RuntimeError:
        return  # test_guard.py reads the message
    eps = 1e-6
    slope = ((before + eps) ** 2 - (before - eps) ** 2) / (2 * eps)
    np.testing.assert_allclose(host(w.grad), slope, rtol=1e-6)


def test_a_state_that_lacks_a_buffer_changes_nothing() -> None:
    optimizer = SGD([Tensor(np.zeros(2), requires_grad=True) for _ in range(2)], 0.1)
    with pytest.raises(ValueError, match="momentum/1 is missing"):
        optimizer.load_state_dict({"momentum/0": np.ones(2)})
    assert not optimizer.velocity[0].any()
