"""The guard: an array that a live graph needs is read-only, and an optimizer may step all the same."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from devices import assert_close, assert_same, host, on_device, placed, tensor

import minisimclr as ms
from minisimclr import ops
from minisimclr.engine import guard as guarding
from minisimclr.engine.autograd import Tensor, primitive
from minisimclr.engine.guard import Guard, Hold, writing

Array = np.ndarray[Any, Any]
LOCKS = pytest.mark.host("CuPy's arrays cannot be locked")


def leaf(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Tensor:
    return tensor(np.random.default_rng([seed, *shape]).uniform(0.5, 2, shape).astype(dtype), requires_grad=True)


def write(array: Any) -> None:
    array[...] = 0


def assert_read_only(*tensors: Tensor) -> None:
    for t in tensors:
        with pytest.raises(ValueError, match="read-only"):
            write(t.data)
        with pytest.raises(ValueError, match="read-only"):
            t.data -= 1


def assert_writable(*tensors: Tensor) -> None:
    for t in tensors:
        write(t.data)
        t.data -= 1


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Locks must be taken back by reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ── Read-only while needed ────────────────────────────────────────────────────────────────────────


@LOCKS
@pytest.mark.parametrize("kept", [True, False])
def test_what_a_graph_needs_cannot_be_written_to_until_it_is_gone(kept: bool, no_gc: None) -> None:
    x, c = leaf(3), tensor(np.full(3, 2.0))
    y = ops.exp(x)
    loss = (y * c).sum()
    assert_read_only(x, y, c)
    if kept:
        loss.backward()
    else:
        del loss
        y = y.detach()
    assert_writable(x, y, c)


@LOCKS
def test_a_view_is_guarded_like_the_array_behind_it() -> None:
    for view in (lambda t: t.reshape(4), lambda t: t.T, lambda t: t[1:], lambda t: t[None], lambda t: t.T[1:].T[None]):
        c = tensor(np.full((2, 2), 3.0))  # a constant: its view is not recorded
        v = view(c)
        x = leaf(*v.shape)
        loss = (v * x).sum()
        assert_read_only(c, v)
        loss.backward()
        assert_same(x.grad, np.full(v.shape, 3.0))
        assert_writable(c)
        with pytest.raises(ValueError, match="read-only"):
            write(v.data)  # writing to a view would change another tensor


@LOCKS
def test_an_array_needed_by_two_graphs_stays_guarded_until_both_are_gone() -> None:
    w = leaf(3)
    one, two = (w * w).sum(), (w * 2.0 * w).sum()
    one.backward()
    assert_read_only(w)
    two.backward()
    assert_writable(w)


@LOCKS
def test_the_array_that_somebody_kept_is_writable_again_after_backward() -> None:
    x = leaf(3)
    array = x.data
    loss = (x * x).sum()
    assert not array.flags.writeable
    loss.backward()
    write(array)
    y = x * x
    array = y.data
    del y
    write(array)


class Memory:
    def __init__(self, x: Any) -> None:
        self.x = x

    def vjp(self, g: Any) -> Any:
        return 2 * g * self.x


def times_twice(x: Any, g: Any) -> Any:
    return 2 * g * x


def recursive(x: Any) -> Callable[[Any], Any]:
    def times(g: Any, left: int) -> Any:
        return g * x if left == 0 else times(g, left - 1) + times(g, left - 1)

    return lambda g: times(g, 1)


HOLDERS = {
    "a closure": lambda x: lambda g: 2 * g * x,
    "a partial": lambda x: functools.partial(times_twice, x),
    "a default argument": lambda x: lambda g, x=x: 2 * g * x,
    "a bound method": lambda x: Memory(x).vjp,
    "a dictionary": lambda x: (lambda kept: lambda g: 2 * g * kept["x"])({"x": x}),
    "a recursive helper": recursive,
}


@LOCKS
@pytest.mark.parametrize("by", HOLDERS)
@pytest.mark.parametrize("what", ["input", "value"])
def test_an_array_is_guarded_by_whatever_means_its_vjp_keeps_it(by: str, what: str) -> None:
    @primitive
    def squared(xp: Any, x: Array) -> Any:
        value = x * x
        return value, HOLDERS[by](x if what == "input" else value)

    x = leaf(3)
    expected = 2 * (x.data if what == "input" else x.data**2)
    y = squared(x)
    assert_read_only(x, y)
    y.sum().backward()
    assert_close(x.grad, expected)
    assert_writable(x, y)


def test_arrays_in_a_setting_are_copied_also_in_a_dictionary() -> None:
    @primitive
    def scaled(xp: Any, x: Array, *, by: dict[str, list[Array]]) -> Any:
        return x * by["factor"][0], lambda g: g * by["factor"][0]

    x, factor = leaf(3), on_device(np.full(3, 2.0))
    y = scaled(x, by={"factor": [factor]})
    factor[:] = 9
    y.sum().backward()
    assert_same(x.grad, [2.0, 2.0, 2.0])


@LOCKS
def test_an_array_that_shares_its_memory_with_a_buffer_is_left_alone() -> None:
    """NumPy never makes an array writable whose memory belongs to immutable bytes."""

    @primitive
    def constant(xp: Any, x: Array) -> Any:
        return np.frombuffer(bytes(24)), lambda g: g

    x = leaf(3)
    y = constant(x)
    y.sum().backward()
    assert not y.data.flags.writeable


# ── An optimizer may step ─────────────────────────────────────────────────────────────────────────


def test_an_optimizer_steps_while_an_older_graph_is_alive_whose_backward_then_raises() -> None:
    w, b = leaf(3, 2), leaf(2)
    x = tensor(np.ones((4, 3)))

    def loss() -> Tensor:
        y = x @ w + b
        return (y * y).sum()

    for make in (ms.SGD, ms.LARS):
        optimizer = make([w, b], lr=0.1)
        optimizer.zero_grad()
        validation = loss()  # kept, never gone through
        loss().backward()
        before, gradient = host(w.data).copy(), host(w.grad).copy()
        optimizer.step()
        assert (host(w.data) != before).all()
        w.grad = b.grad = None
        with pytest.raises(RuntimeError, match=r"add: a parameter of shape \(2,\) was changed after .* call backward"):
            validation.backward()
        assert w.grad is None
        del validation
        loss().backward()  # the new graph is not affected
        assert host(w.grad).shape == gradient.shape


def test_the_error_names_the_op_and_the_shape_of_the_parameter_that_was_changed() -> None:
    one, other = leaf(3, 3, 4, 5), leaf(5)
    kept = (one * other).sum()
    with writing(one) as array:
        array *= 2
    with pytest.raises(RuntimeError, match=r"^multiply: a parameter of shape \(3, 3, 4, 5\) was changed"):
        kept.backward()


def test_only_a_graph_that_used_the_changed_parameter_raises() -> None:
    a, b = leaf(3), leaf(3, seed=1)
    of_a, of_b = (a * a).sum(), (b * b).sum()
    with writing(a) as array:
        array += 1
    of_b.backward()
    assert_close(b.grad, 2 * b.data)
    with pytest.raises(RuntimeError, match="was changed"):
        of_a.backward()


def test_a_change_is_noticed_through_a_view_and_through_a_detached_tensor() -> None:
    w, x = leaf(3, 2), leaf(2, 3, seed=1)
    for loss in ((w.T * x).sum(), (w.detach() * x.T).sum(), (w[:2].reshape(4) * 1.0).sum()):
        with writing(w) as array:
            array += 1
        with pytest.raises(RuntimeError, match=r"parameter of shape \(3, 2\) was changed"):
            loss.backward()


@LOCKS
def test_only_the_optimizers_door_is_open_while_a_graph_lives() -> None:
    w = leaf(3)
    kept = (w * w).sum()
    with writing(w) as array:
        array += 1
    assert_read_only(w)  # and the array is locked again afterwards
    with pytest.raises(ZeroDivisionError), writing(w):
        raise ZeroDivisionError
    assert_read_only(w)
    with writing(w) as array:
        other = (w * 1.0).sum()  # a graph that begins meanwhile
        del other  # or ends
        array += 1
    assert_read_only(w)
    del kept
    assert_writable(w)


@LOCKS
@pytest.mark.parametrize("make", [ms.SGD, ms.LARS])
def test_after_a_step_what_a_new_graph_needs_cannot_be_written_to(make: Any) -> None:
    w = leaf(3, 2)
    (w * w).sum().backward()
    make([w], lr=0.1).step()
    loss = (w * w).sum()
    assert_read_only(w)
    loss.backward()
    assert_writable(w)


def test_assigning_the_same_array_back_counts_as_a_write_where_arrays_cannot_be_locked() -> None:
    x = leaf(3)
    y = x * x
    if isinstance(x.data, np.ndarray):
        with pytest.raises(ValueError, match="read-only"):
            x.data -= 1
        y.sum().backward()  # nothing was written
    else:
        x.data -= 1
        with pytest.raises(RuntimeError, match="was changed"):
            y.sum().backward()


def test_a_cell_interrupted_by_ctrl_c_does_not_stop_the_next_one() -> None:
    """The traceback that a notebook keeps holds the frames, the frames hold the loss, and the loss its graph."""
    w = leaf(4, 3)
    optimizer = ms.SGD([w], lr=0.1)

    def cell(interrupted: bool) -> None:
        optimizer.zero_grad()
        loss = ((tensor(np.ones((2, 4))) @ w) ** 2).sum()
        if interrupted:
            raise KeyboardInterrupt
        loss.backward()
        optimizer.step()

    try:
        cell(interrupted=True)
    except KeyboardInterrupt as error:
        kept = error
    before = host(w.data).copy()
    cell(interrupted=False)
    assert (host(w.data) != before).all()
    frame = kept.__traceback__.tb_next.tb_frame  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=r"shape \(4, 3\) was changed"):
        frame.f_locals["loss"].backward()


def test_a_model_trains_while_every_older_loss_is_kept() -> None:
    def trained(keep: bool) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        encoder = ms.resnet_small(base=4, rng=rng)
        model = placed(ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, 8, 4, rng=rng)))
        optimizer = ms.LARS(model.parameters(), lr=0.1)
        views, kept = on_device(rng.random((2, 4, 8, 8, 3), np.float32)), []
        for _ in range(2):
            kept.append(model.loss(*views) if keep else None)
            model.loss(*views)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        parameters = {name: host(p.data) for name, p in model.named_parameters()}
        return parameters

    kept, dropped = trained(keep=True), trained(keep=False)
    for name, array in kept.items():
        assert_same(array, dropped[name])


# ── Threads ───────────────────────────────────────────────────────────────────────────────────────


@LOCKS
def test_threads_that_share_arrays_leave_none_of_them_read_only_for_ever() -> None:
    shared = [leaf(4, seed=k) for k in range(3)]
    frequent, failures = sys.getswitchinterval(), []

    def work(number: int) -> None:
        try:
            for k in range(1000):
                x = shared[(number + k) % 3]
                y = (x * shared[k % 3]).sum()
                if k % 2:
                    assert not x.data.flags.writeable
                    del y  # dropped
                else:
                    z = x[1:] * 2.0
                    del y, z
        except BaseException as error:
            failures.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(frequent)
    assert failures == []
    assert_writable(*shared)
    for x in shared:
        assert x._guard.needed_by == {}


@pytest.mark.host
@pytest.mark.parametrize("step", range(8))
def test_a_thread_that_comes_between_does_not_leave_the_flag_wrong(step: int) -> None:
    """Another thread takes or ends a hold at the worst moment: between looking at the claims and setting the flag."""

    asked = itertools.count()

    class Claims(dict[int, int]):
        def __bool__(self) -> bool:
            answer = len(self) > 0
            if next(asked) == step // 2:  # another thread, now that the answer is old
                self.clear() if answer else self.update({7: 0})
                guard.settle()
            return answer

    array = np.ones(3)
    guard = Guard(array)
    guard.needed_by = Claims({7: 0} if step % 2 else {})
    guard.settle()
    assert array.flags.writeable == (len(guard.needed_by) == 0)


def test_a_write_that_comes_while_an_operation_computes_is_noticed() -> None:
    """Another thread's optimizer steps between the look at the array and the claim on it."""
    w = leaf(3)

    @primitive
    def slow(xp: Any, x: Array) -> Any:
        before = x.copy()
        with writing(w) as array:  # another thread, at the worst moment
            array += 1
        return before * before, lambda g: 2 * g * x

    with pytest.raises(RuntimeError, match="was changed after this graph used it"):
        slow(w).sum().backward()
    with writing(w) as array:  # a graph that begins while somebody writes
        kept = (w * w).sum()
        array += 1
    with pytest.raises(RuntimeError, match="was changed"):
        kept.backward()


@LOCKS
def test_two_optimizers_may_write_at_a_time_and_the_last_one_closes_the_door() -> None:
    w = leaf(3)
    kept = (w * w).sum()
    with writing(w) as one:
        with writing(w) as two:
            two += 1
        one += 1  # still open
    assert_read_only(w)
    del kept
    assert_writable(w)


@LOCKS
def test_optimizers_step_while_other_threads_record() -> None:
    """Every backward pass is right or raises, every step is made, and nothing stays read-only."""
    w = leaf(4)
    frequent, failures, made, stop = sys.getswitchinterval(), [], [], threading.Event()

    def record() -> None:
        try:
            while not stop.is_set():
                one, two = w * 1.0, w * 2.0
                with contextlib.suppress(RuntimeError):  # the weight was changed meanwhile
                    (one * two).sum().backward()
        except BaseException as error:
            failures.append(error)

    def step() -> None:
        try:
            optimizer = ms.SGD([w], lr=0.0)
            for _ in range(200):
                optimizer.step()
                made.append(1)
        except BaseException as error:
            failures.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for work in (record, record, step, step)]
        for thread in threads:
            thread.start()
        for thread in threads[2:]:
            thread.join()
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        sys.setswitchinterval(frequent)
    assert failures == []
    assert len(made) == 400
    assert_writable(w)


@LOCKS
def test_a_graph_that_begins_while_another_ends_is_guarded() -> None:
    """The new graph comes just after the ending one has seen that nobody else needs the array."""
    w = leaf(3)
    begun: list[Tensor] = []

    class Claims(dict[int, int]):
        def __bool__(self) -> bool:
            answer = len(self) > 0
            if not answer and not begun:
                begun.append(w)  # once
                begun.append((w * 2.0).sum())
            return answer

    ending = (w * 2.0).sum()
    w._guard.needed_by = Claims(w._guard.needed_by)
    del ending
    assert len(begun) == 2
    assert_read_only(w)


@LOCKS
def test_the_garbage_collector_may_end_a_graph_at_any_moment() -> None:
    w = leaf(3)
    for _ in range(300):
        ring: list[Any] = [(w * w).sum()]
        ring.append(ring)  # only the collector ends it
        del ring
    gc.collect()
    assert_writable(w)


# ── Copies ────────────────────────────────────────────────────────────────────────────────────────

COPIES = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
ON_THE_HOST = pytest.mark.host("a copy for another process is a matter of NumPy's or CuPy's own")


@ON_THE_HOST
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_leaf_is_a_leaf_of_its_own(how: str) -> None:
    x = leaf(3)
    loss = (x * x).sum()
    loss.backward()
    again = COPIES[how](x)
    assert again.requires_grad
    assert_same(again.data, x.data)
    assert_same(again.grad, x.grad)
    write(again.data)
    write(again.grad)
    assert (x.data != 0).all()
    assert (x.grad != 0).all()
    assert not COPIES[how](x.detach()).requires_grad
    kept = (x * x).sum()  # x is read-only now; its copy is not
    write(COPIES[how](x).data)
    kept.backward()


@ON_THE_HOST
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_computed_tensor_is_refused_in_one_line(how: str, capfd: Any) -> None:
    y = leaf(3) * 2
    for used in (False, True):
        with pytest.raises(
            RuntimeError, match=r"^a computed tensor cannot be copied .* copy tensor\.detach\(\) instead$"
        ):
            COPIES[how](y)
        if not used:
            y.backward(np.ones(3))
    gc.collect()
    assert capfd.readouterr().err == ""
    assert_same(COPIES[how](y.detach()).data, y.data)


@ON_THE_HOST
def test_a_deep_copy_of_a_module_is_independent_and_keeps_shared_parameters_shared() -> None:
    model = ms.ProjectionHead(4, 8, 2, rng=np.random.default_rng(0))
    model.tied = model.parameters()[0]  # type: ignore[attr-defined]
    other = copy.deepcopy(model)
    assert other.tied is other.parameters()[0]  # type: ignore[attr-defined]
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters()):
        assert_same(a.data, b.data)
        assert not np.may_share_memory(a.data, b.data), name
        assert b.requires_grad
    x = tensor(np.ones((3, 4), np.float32))
    other(x, train=True).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in other.parameters())


@pytest.mark.host
def test_nothing_is_printed_by_a_hold_that_was_never_finished(capfd: Any) -> None:
    with pytest.raises(TypeError):
        Hold()  # type: ignore[call-arg]
    del_me = Hold.__new__(Hold)
    del del_me
    again = copy.copy(Hold((leaf(2),), leaf(2)._guard, 0))
    del again
    gc.collect()
    assert capfd.readouterr().err == ""


@pytest.mark.host
def test_nothing_is_printed_when_a_program_ends_while_graphs_and_threads_are_alive() -> None:
    program = """
import threading, copy, numpy as np, minisimclr as ms
x = ms.Tensor(np.ones(3), requires_grad=True)
y = (x * x).sum()
ring = [y]; ring.append(ring)
class Late:
    def __del__(self): (x * x).sum()
late = Late(); late.self = late
def work():
    while True: (x * x).sum()
threading.Thread(target=work, daemon=True).start()
try:
    copy.deepcopy(y)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "a computed tensor cannot be copied with its history; copy tensor.detach() instead\n"
    assert done.stderr == ""


@pytest.mark.host
def test_the_guard_keeps_no_table_of_the_arrays_of_the_process() -> None:
    tables = (dict, list, set)
    kept = {name for name, value in vars(guarding).items() if isinstance(value, tables) and not name.startswith("__")}
    assert kept == set()


@pytest.mark.parametrize("given", [3, None])
def test_an_optimizer_says_what_it_was_given_in_place_of_parameters(given: Any) -> None:
    with pytest.raises(TypeError, match=f"a list of Tensors, not .*{given}"):
        ms.SGD(given, lr=0.1)


def test_settings_hold_where_numpy_was_told_to_raise_floating_point_errors() -> None:
    x = tensor(np.full(2, 1e-30, np.float32))
    with np.errstate(all="raise"):
        assert host(ops.power(x, exponent=2.0).data).tolist() == [0, 0]  # 1e-60 is too small for a float32
