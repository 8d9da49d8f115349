"""The checks are checked: each rejects a gradient that is 0.1 % off and accepts the right one, many times over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import devices
import numpy as np
import pytest
from devices import on_device, tensor

import minisimclr as ms
from minisimclr import GradcheckError, Tensor, check_direction, check_path, gradcheck, ops, primitive

Array = np.ndarray[Any, Any]
Function = Callable[..., Tensor]


@primitive
def falsify(xp: Any, x: Array, *, factor: float, only: Any = ...) -> Any:
    """The identity, with a gradient that is wrong by a factor (everywhere, or at one place)."""

    def vjp(g: Array) -> Array:
        g = g.copy()
        g[only] *= factor
        return g

    return x * 1, vjp


def wrong(f: Function, factor: float = 1.001) -> Function:
    return lambda *xs: f(*(falsify(x, factor=factor) for x in xs))


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows_of_norm(norm: float, n: int, d: int, *seed: int) -> Array:
    z = rng(n, d, *seed).standard_normal((n, d))
    return norm * z / np.linalg.norm(z, axis=1, keepdims=True)


def nt_xent_case(n: int, norm: float) -> tuple[Function, list[Array]]:
    a = rows_of_norm(norm, n, 6, 1)
    return lambda a, b: ms.nt_xent(a, b, 0.5), [a, a + 0.3 * rows_of_norm(norm, n, 6, 2)]


def elements(f: Function, *arrays: Array) -> bool:
    return gradcheck(f, *on_device(arrays), elements=8)


def direction(f: Function, *arrays: Array) -> bool:
    return check_direction(f, *on_device(arrays))


def path(f: Function, *arrays: Array) -> bool:
    ends = tuple(a + 0.2 * np.abs(a).mean() * rng(7, k).standard_normal(a.shape) for k, a in enumerate(arrays))
    return check_path(f, on_device(arrays), on_device(ends))


CHECKS = {"elements": elements, "direction": direction, "path": path}

LARGE = 256 if devices.DEVICE == "cpu" else 48  # images; elsewhere the version that keeps (2N, 2N) matrices runs

PLAIN: dict[str, tuple[Function, list[Array]]] = {
    "exp": (ops.exp, [rng(1).standard_normal((4, 5))]),
    "matmul": (ops.matmul, [rng(2).standard_normal((4, 5)), rng(3).standard_normal((5, 3))]),
    "divide": (ops.divide, [rng(4).standard_normal((4, 3)), rng(5).uniform(1, 2, 3)]),
    "l2_normalize": (ops.l2_normalize, [rng(6).standard_normal((4, 5))]),
    "cross_entropy": (lambda x: ops.cross_entropy(x, labels=on_device(np.arange(4))), [rng(7).standard_normal((4, 5))]),
    "conv2d": (
        lambda x, w: ops.conv2d(x, w, padding=1),
        [rng(8).standard_normal((4, 4, 2, 2)), rng(9).standard_normal((3, 3, 2, 2))],
    ),
    "power": (lambda x: ops.power(x, exponent=3), [rng(10).uniform(1, 2, 6)]),
    "nt_xent, N = 4": nt_xent_case(4, 1.0),
    "nt_xent, N = 4, rows of norm 80": nt_xent_case(4, 80.0),
    f"nt_xent, N = {LARGE}, rows of norm 80": nt_xent_case(LARGE, 80.0),
    "l2_normalize, N = 256, rows of norm 80": (ops.l2_normalize, [rows_of_norm(80, 256, 4)]),
    "cross_entropy, N = 256, rows of norm 80": (
        lambda x: ops.cross_entropy(x * 0.05, labels=on_device(np.arange(256) % 4)),
        [rows_of_norm(80, 256, 4)],
    ),
    "log of N = 256 rows of norm 80": (lambda x: ops.log(x * x + 400), [rows_of_norm(80, 256, 4)]),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", PLAIN)
def test_each_check_accepts_the_right_gradient_and_rejects_one_a_thousandth_off(check: str, case: str) -> None:
    f, arrays = PLAIN[case]
    assert CHECKS[check](f, *arrays)
    with pytest.raises(GradcheckError):
        CHECKS[check](wrong(f), *arrays)


LONG = {case for case in PLAIN if case.startswith(("conv2d", "nt_xent"))}  # a path is looked at in quarters, too


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow][: case in LONG]) for case in PLAIN])
def test_each_check_rejects_a_gradient_that_is_off_by_any_factor(check: str, case: str) -> None:
    f, arrays = PLAIN[case]
    for factor in (np.nan,) if case.startswith(f"nt_xent, N = {LARGE}") else (0.999, 0.5, -1.0, 0.0, np.nan):
        with pytest.raises(GradcheckError):
            CHECKS[check](wrong(f, factor), *arrays)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("which", [0, 1])
def test_each_check_sees_one_wrong_input_among_several(check: str, which: int) -> None:
    f, arrays = PLAIN["matmul"]
    with pytest.raises(GradcheckError):
        CHECKS[check](lambda *xs: f(*(falsify(x, factor=[1, 1.001][k == which]) for k, x in enumerate(xs))), *arrays)


@pytest.mark.parametrize("check", CHECKS)
def test_each_check_rejects_a_single_nan(check: str) -> None:
    with pytest.raises(GradcheckError, match="nan"):
        CHECKS[check](lambda x: falsify(ops.exp(x), factor=np.nan, only=(0, 1)), rng(0).standard_normal((2, 4)))


@pytest.mark.parametrize("check", [gradcheck, check_direction])
@pytest.mark.parametrize("worst", [0, 1])
def test_the_report_names_the_worst_of_several_inputs(check: Callable[..., bool], worst: int) -> None:
    f, arrays = PLAIN["matmul"]
    with pytest.raises(GradcheckError, match=f"^input {worst}"):
        check(
            lambda *xs: f(*(falsify(x, factor=1.5 if k == worst else 1.001) for k, x in enumerate(xs))),
            *on_device(arrays),
        )


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e6, 1e12])
def test_a_gradient_is_held_to_its_own_scale(check: str, size: float) -> None:
    """Neither a tiny gradient nor tiny or huge inputs are excused, or wrongly accused."""
    for f, x in [
        (lambda x: ops.exp(x) * size, rng(0).standard_normal(5)),
        (lambda x: x * x * x, rng(0).uniform(1, 2, 5) * size),
        (lambda x: ops.l2_normalize(x), rng(0).standard_normal((3, 4)) * size),
    ]:
        assert CHECKS[check](f, x)
        with pytest.raises(GradcheckError):
            CHECKS[check](wrong(f), x)


@pytest.mark.parametrize("check", CHECKS)
def test_a_small_gradient_beside_a_large_value_is_not_excused(check: str) -> None:
    def f(x: Tensor) -> Tensor:
        return ops.exp(x) + 1e6

    x = rng(0).standard_normal(5)
    assert CHECKS[check](f, x)
    with pytest.raises(GradcheckError):
        CHECKS[check](wrong(f), x)


@pytest.mark.parametrize("check", CHECKS)
def test_a_gradient_that_is_zero_is_accepted_and_one_that_should_be_is_not(check: str) -> None:
    z = rng(0).standard_normal((1, 4))
    assert CHECKS[check](lambda a: ms.nt_xent(a, on_device(z)), z + 1)  # one image: loss 0 wherever
    assert CHECKS[check](lambda x: x * 0.0, z)
    with pytest.raises(GradcheckError):
        CHECKS[check](lambda x: falsify(x, factor=1.0) * 0.0 + forgets(x), z)


@primitive
def forgets(xp: Any, x: Array) -> Any:
    return x * x, lambda g: xp.zeros_like(g)


def test_the_report_names_input_index_analytic_and_numeric_value() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return (x * falsify(y, factor=1.5, only=(1, 2))).sum()

    x = np.full((2, 3), 2.0)
    with pytest.raises(GradcheckError) as error:
        gradcheck(f, *on_device((x, x + 1)))
    message = str(error.value)
    assert message.startswith("input 1, index (1, 2): analytic ")
    analytic, numeric = (float(message.split(word)[1].split(",")[0]) for word in ("analytic", "numeric"))
    assert analytic == pytest.approx(1.5 * numeric, rel=1e-9)
    assert "relative error 0.33 (allowed 1e-06)" in message
    with pytest.raises(GradcheckError, match=r"^input 1, along a random direction: analytic .*numeric .*relative"):
        check_direction(f, *on_device((x, x + 1)))
    with pytest.raises(GradcheckError, match=r"^along the path: analytic .*numeric .*relative"):
        check_path(f, on_device((x, x + 1)), on_device((x + 1, x)))


def test_a_nan_in_the_gradient_is_reported_before_anything_else() -> None:
    with pytest.raises(GradcheckError, match=r"input 0, index \(2,\): analytic nan"):
        gradcheck(lambda x: falsify(falsify(x, factor=9.0), factor=np.nan, only=2), on_device(np.ones(4)))


def test_a_single_wrong_element_is_found_among_many() -> None:
    with pytest.raises(GradcheckError, match=r"index \(7, 3\)"):
        gradcheck(lambda x: falsify(ops.exp(x), factor=1.001, only=(7, 3)), on_device(rng(0).standard_normal((9, 5))))


def test_outputs_of_any_shape_and_inputs_of_none_are_checked() -> None:
    assert gradcheck(lambda x: x, on_device(np.array(2.0)))
    assert gradcheck(lambda x: ops.concatenate(x, x), on_device(np.ones((2, 0))))
    assert check_direction(lambda x: x * 2, on_device(np.zeros((2, 0))))
    assert gradcheck(ops.exp, on_device(np.zeros(3)))
    assert gradcheck(lambda x: ops.exp(x), [0, 1])  # integers are taken as float64
    assert gradcheck(lambda x, y: x * 1, np.ones(2), np.ones(3))  # y does not matter


def test_inputs_are_left_alone_and_may_be_float32() -> None:
    x = np.ones((2, 3), np.float32)
    x.flags.writeable = False
    for check in CHECKS.values():
        assert check(lambda x: ops.exp(x) * 2, x)
    np.testing.assert_array_equal(x, np.ones((2, 3)))


def test_a_path_needs_two_ends_of_the_same_shape() -> None:
    with pytest.raises(ValueError, match="same shapes"):
        check_path(ops.exp, np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="same shapes"):
        check_path(ops.add, (np.ones(3), np.ones(3)), np.ones(3))


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 30))])
def test_a_path_sees_one_part_in_a_hundred_thousand(seed: int) -> None:
    f, _ = nt_xent_case(4, 1.0)
    a, b = (rng(seed, k).standard_normal((4, 6)) for k in range(2))
    ends = (a + 0.2, b - 0.1 * a)
    a, b = on_device((a, b))
    assert check_path(f, (a, b), ends)
    with pytest.raises(GradcheckError):
        check_path(wrong(f, 1.00001), (a, b), ends)


def random_function(seed: int) -> tuple[Function, list[Array]]:
    """A smooth function of two arrays, put together at random."""
    r = rng(seed)
    n, d = int(r.integers(1, 6)), int(r.integers(2, 6))
    scale = 10.0 ** r.uniform(-2, 2)
    w = on_device(r.standard_normal((d, d)) / np.sqrt(d))
    steps: list[Function] = [
        lambda x, y: ops.exp(ops.l2_normalize(x) * 0.5) * y,
        lambda x, y: ops.l2_normalize(x @ w) + y * (1 / scale),
        lambda x, y: x * y * (1 / scale),
        lambda x, y: ops.log(x * x + scale**2) + y * 0.1,
        lambda x, y: (x @ y.T) * (1 / scale),
        lambda x, y: ops.power(x * x + y * y + scale**2, exponent=-0.5),
        lambda x, y: ms.nt_xent(x, y, 0.5),
        lambda x, y: ops.cross_entropy(x * (1 / scale) + y * (1 / scale), labels=on_device(np.arange(n) % d)),
        lambda x, y: x / ops.power(y * y + scale**2, exponent=0.5),
    ]
    return steps[int(r.integers(len(steps)))], [r.standard_normal((n, d)) * scale for _ in range(2)]


def assert_many_random_cases_are_told_right_from_wrong(count: int) -> None:
    for seed in range(count):
        f, arrays = random_function(seed)
        for name, check in CHECKS.items():
            try:
                assert check(f, *arrays)
            except GradcheckError as error:
                raise AssertionError(f"false alarm of {name} at seed {seed}: {error}") from None
        if seed % 5 == 0:
            analytic = [tensor(a, requires_grad=True) for a in arrays]
            value = f(*analytic)
            value.backward(on_device(np.ones(value.shape)))
            if any(t.grad is not None and t.grad.any() for t in analytic):  # not one image's loss
                for check in CHECKS.values():
                    with pytest.raises(GradcheckError):
                        check(wrong(f), *arrays)


def test_fifty_random_cases_without_a_false_alarm() -> None:
    assert_many_random_cases_are_told_right_from_wrong(50 if devices.DEVICE == "cpu" else 20)


@pytest.mark.slow
def test_a_thousand_random_cases_without_a_false_alarm() -> None:
    assert_many_random_cases_are_told_right_from_wrong(1000)


def test_a_steep_function_is_no_false_alarm_of_the_path_but_its_wrong_gradient_is_caught():
    def steep(x):  # a pole close to the segment: too much for one panel of nodes
        return 1 / (x * x + 0.1)

    def wrong(x):
        return steep(x) * 1.001 - steep(x).detach() * 0.001

    assert check_path(steep, *on_device((np.array([-1.0]), np.array([1.5]))))
    with pytest.raises(GradcheckError, match="along the path"):
        check_path(wrong, *on_device((np.array([-1.0]), np.array([1.5]))))


@pytest.mark.parametrize("elements", [0, -1, 1.5])
def test_a_check_of_no_element_is_refused(elements: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="elements must be"):
        gradcheck(lambda x: x * x, np.ones(3), elements=elements)
