"""Every operation, from one table (minisimclr/checks/table.py): value, gradient, dtypes, shapes, refusals.

Below that, what the small samples of the table do not cover: every kernel, stride and padding of
convolution and pooling, and the fast forms against the plain ones.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import pkgutil
import re
from typing import Any

import numpy as np
import pytest
from devices import assert_close, assert_same, host, on_device, share_memory, tensor
from hypothesis import given
from hypothesis import strategies as st

import minisimclr as ms
from minisimclr import Tensor, ntxent, objectives, ops
from minisimclr.backend import array_module
from minisimclr.checks import report as gradchecks
from minisimclr.checks.report import a_thousandth_off, check_entry, comparisons, main_table
from minisimclr.checks.table import (
    TABLE,
    Entry,
    batch_norm_by_loops,
    conv2d_by_loops,
    cross_entropy_by_loops,
    l2_normalize_by_loops,
    max_pool2d_by_loops,
    normal,
    positive,
    spaced,
    statistics,
)
from minisimclr.ops.conv import products, slabs
from minisimclr.ops.norm import fused, shared

Array = np.ndarray[Any, Any]

SAMPLES = [
    pytest.param(
        entry,
        inputs,
        settings,
        id=f"{entry.name} {k}",
        marks=pytest.mark.host(entry.only_on_host) if entry.only_on_host else (),
    )
    for entry in TABLE
    for k, (inputs, settings) in enumerate(entry.samples)
]
REFUSED = [
    pytest.param(entry, inputs, settings, error, id=f"{entry.name} {k}")
    for entry in TABLE
    for k, ((inputs, settings), error) in enumerate(entry.refused)
]


def relative(a: Any, b: Any) -> float:
    """The distance of two arrays beside the larger of them."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    assert a.shape == b.shape
    return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-300))


def value_and_gradients(f: Any, inputs: Any, dtype: Any = np.float64) -> tuple[Array, list[Array]]:
    """Computed on the device, and brought back."""
    leaves = [tensor(np.asarray(x, dtype), requires_grad=True) for x in inputs]
    value = f(*leaves)
    value.backward(on_device(np.asarray(np.random.default_rng(0).uniform(0.5, 1.5, value.shape), dtype)))
    return host(value.data), [host(leaf.grad) for leaf in leaves]


def in_float32(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings, rounded."""
    small = {
        name: s.astype(np.float32) if isinstance(s, np.ndarray) and s.dtype == np.float64 else s
        for name, s in settings.items()
    }
    return {name: "float32" if isinstance(s, str) and s == "float64" else s for name, s in small.items()}


# Primitives that the table reaches through a function of tensors: nt_xent by its methods, the objectives by name.
INSIDE = {
    ntxent.plain.nt_xent_plain,
    ntxent.nt_xent_at_once,
    ntxent.shared.nt_xent_of_some_rows,
    objectives.logistic.nt_logistic_of_units,
    objectives.hinge.triplet_of_units,
    objectives.dcl.decoupled_of_units,
    objectives.supervised.supcon_of_units,
}


# ── The table ─────────────────────────────────────────────────────────────────────────────────────


def test_every_primitive_of_the_package_has_an_entry() -> None:
    # a form may be a primitive of its own, under the operation's name
    known = {f.__name__ for f in {entry.op for entry in TABLE} | INSIDE}
    for module in pkgutil.walk_packages(ms.__path__, "minisimclr."):
        if module.name.endswith("__main__"):
            continue
        try:
            things = vars(importlib.import_module(module.name))
        except ImportError:  # an optional library is missing
            continue
        missing = [name for name, f in things.items() if getattr(f, "is_primitive", False) and f.__name__ not in known]
        assert not missing, f"{module.name}: {missing} have no entry in checks.table.TABLE"


def test_every_entry_has_samples_and_every_operation_refuses_something() -> None:
    assert all(entry.samples for entry in TABLE)
    assert {entry.name for entry in TABLE if entry.refused} == {entry.name for entry in TABLE}


def test_what_ops_imports_is_public_and_in_the_table() -> None:
    """`moments` is no operation: it computes constants, from an array."""
    assert set(ops.__all__) - {"moments"} == {entry.op.__name__ for entry in TABLE} & set(vars(ops))
    assert {"add", "conv2d", "max_pool2d", "transpose"} <= set(ops.__all__)
    assert not {"basic", "conv", "norm", "pool"} & set(ops.__all__)


def test_every_form_of_an_operation_has_an_entry() -> None:
    """Two kinds of form are exempt: those that choose among others, and Winograd's, which has no float64."""
    rooms = {"conv2d": ops.conv, "batch_norm": ops.norm, "max_pool2d": ops.pool}
    for op, room in rooms.items():
        entries = {entry.method for entry in TABLE if entry.op.__name__ == op}
        assert entries == set(room.METHODS) - {"auto", "winograd"}


@pytest.mark.parametrize(("entry", "inputs", "settings"), SAMPLES)
def test_value_is_the_reference(entry: Entry, inputs: Any, settings: Any) -> None:
    value = entry.function(on_device(settings))(*map(on_device, inputs))
    assert value.dtype == np.float64
    assert relative(host(value.data), entry.expected(inputs, settings)) <= entry.tolerance


@pytest.mark.parametrize(("entry", "inputs", "settings"), SAMPLES)
def test_gradient_passes_the_three_checks(entry: Entry, inputs: Any, settings: Any) -> None:
    elements, direction, path = comparisons(entry, entry.function(on_device(settings)), on_device(inputs))
    assert elements.require(1e-8)
    assert direction.require(1e-8)
    assert path.require(1e-9)


@pytest.mark.parametrize(("entry", "inputs", "settings"), SAMPLES)
def test_float32_stays_float32_and_agrees_with_float64(entry: Entry, inputs: Any, settings: Any) -> None:
    small = in_float32(settings)
    inputs = [np.asarray(x, np.float32) for x in inputs]
    value, gradients = value_and_gradients(entry.function(on_device(settings)), inputs)
    value32, gradients32 = value_and_gradients(entry.function(on_device(small)), inputs, np.float32)
    assert value32.dtype == np.float32
    assert np.abs(value32 - value).max(initial=0) <= 2e-6 * max(1, np.abs(value).max(initial=0))
    for gradient32, gradient in zip(gradients32, gradients):
        assert gradient32.dtype == np.float32
        # rounding enters with the terms, not with what is left after they cancel
        assert np.abs(gradient32 - gradient).max(initial=0) <= 5e-6 * max(1e-3, np.abs(gradient).max(initial=0))


@pytest.mark.parametrize(("entry", "inputs", "settings"), SAMPLES)
def test_no_gradient_of_a_float32_op_is_computed_in_float64_and_rounded_later(
    entry: Entry, inputs: Any, settings: Any
) -> None:
    if not getattr(entry.op, "is_primitive", False):
        return  # it only chooses among its forms, which the next test and test_ntxent.py ask
    arrays = [on_device(np.asarray(x, np.float32)) for x in inputs]
    chosen = {"method": entry.method} if entry.method else {}
    value, vjp = entry.op.__wrapped__(  # type: ignore[attr-defined]
        array_module(*arrays), *arrays, **on_device(in_float32(settings)), **entry.derived(*arrays), **chosen
    )
    answers = vjp(on_device(np.ones(value.shape, np.float32)))
    for answer in answers if isinstance(answers, tuple) else (answers,):
        assert (answer() if callable(answer) else answer).dtype == np.float32


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("form", ["plain", "fused"])
def test_batch_norm_of_float32_is_not_computed_in_float64_and_rounded_later(form: str, batch: bool) -> None:
    x, scale, shift = (on_device(a.astype(np.float32)) for a in (normal(4, 5, 3), positive(3), normal(3)))
    totals = shared.totals_of(None) if batch else None
    settings = {**statistics(x), "eps": 1e-5, "totals": totals, **({"relu": True} if form == "fused" else {})}
    function = importlib.import_module(f"minisimclr.ops.norm.{form}").batch_norm
    value, vjp = function(array_module(x), x, scale, shift, **settings)
    assert {a.dtype for a in (value, *vjp(on_device(np.ones(value.shape, np.float32))))} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("entry", "inputs", "settings"), SAMPLES)
def test_inputs_seed_and_settings_are_left_alone(entry: Entry, inputs: Any, settings: Any) -> None:
    kept = on_device(settings)
    leaves = [tensor(x, requires_grad=True) for x in inputs]
    value = entry.function(kept)(*leaves)
    before = value.data.copy()
    ones = np.ones(value.shape)
    ones.flags.writeable = False
    seed = on_device(ones)
    value.backward(seed)
    for leaf, x in zip(leaves, inputs):
        assert_same(leaf.data, x)
        assert not share_memory(leaf.grad, seed)
    assert_same(value.data, before)
    assert value.grad is None  # only leaves keep a gradient
    assert_same(seed, ones)
    for name, setting in settings.items():
        if isinstance(setting, np.ndarray):
            assert_same(kept[name], setting)


@pytest.mark.parametrize(("entry", "inputs", "settings"), SAMPLES)
def test_any_memory_layout_gives_the_same(entry: Entry, inputs: Any, settings: Any) -> None:
    """Through a view recorded in the graph: the op itself meets arrays that are not contiguous."""

    def backwards(x: Any) -> Any:
        flip = (slice(None, None, -1),) * np.ndim(x)
        return tensor(np.asarray(x)[flip].T, requires_grad=True), flip

    right, gradients = value_and_gradients(entry.function(on_device(settings)), inputs)
    pairs = [backwards(x) for x in inputs]
    value = entry.function(on_device(settings))(*(x.T[flip] for x, flip in pairs))
    seed = np.random.default_rng(0).uniform(0.5, 1.5, value.shape)
    value.backward(on_device(np.array(seed, order="F")))
    assert relative(host(value.data), right) <= 1e-12
    for (x, flip), gradient in zip(pairs, gradients):
        assert np.abs(host(x.grad).T[flip] - gradient).max(initial=0) <= 1e-12 * max(1, np.abs(gradient).max(initial=0))


@pytest.mark.parametrize(("entry", "inputs", "settings", "error"), REFUSED)
def test_what_makes_no_sense_is_refused(entry: Entry, inputs: Any, settings: Any, error: Any) -> None:
    derived = entry.derived(*inputs) if entry.derived(np.ones((2, 2))) else {}
    if entry.op is ops.batch_norm and not derived:
        derived = {"mean": np.zeros(3), "variance": np.ones(3)}
    chosen = {"method": entry.method} if entry.method else {}
    with pytest.raises(error):
        entry.op(*map(on_device, inputs), **on_device({**derived, **settings}), **chosen)


# ── Docstrings ────────────────────────────────────────────────────────────────────────────────────

# What a Shapes line says in words, as a function of the inputs and settings.
IN_WORDS = {
    "without the axes, or with 1 in their place": lambda x, axis=None, keepdims=False: (
        np.sum(x, axis=axis, keepdims=keepdims).shape
    ),
    "shape": lambda x, shape: np.empty(x.shape).reshape(shape).shape,
    "the sizes in the order of `axes`": lambda x, axes=None: tuple(
        x.shape[a] for a in (axes if axes is not None else range(x.ndim - 1, -1, -1))
    ),
    "as NumPy's indexing gives": lambda x, index: x[index].shape,
    "(N₁+N₂+…, …)": lambda *xs, axis=0: np.concatenate(xs, axis).shape,
    "scalar": lambda *_, **__: (),
}


def promised_shape(docstring: str, inputs: list[Array], settings: dict[str, Any]) -> tuple[int, ...]:
    """Read the Shapes line: bind its letters to the sizes of the inputs, and evaluate its right side."""
    line = re.search(r"Shapes:\s*(.*)", docstring)
    assert line, "no Shapes line"
    left, right = line[1].split("->")
    right, _, formula = (part.strip() for part in right.partition(" with H' = "))
    sizes: dict[str, int] = {}
    leading: list[tuple[int, ...]] = []
    arguments = re.findall(r"(\w+)(?: integer)? \(([^)]*)\)", left)
    for k, (name, pattern) in enumerate(arguments):
        if name in settings:
            shape: tuple[int, ...] = np.shape(settings[name])
        elif k < len(inputs):
            shape = np.shape(inputs[k])
        else:
            assert name == "shortcut"  # the one input that may be left out
            continue
        letters = [letter for letter in pattern.split(",") if letter]
        if letters[0] == "…":
            letters = letters[1:]
            cut = len(shape) - len(letters)
            leading.append(shape[:cut])
            shape = shape[cut:]
        assert len(shape) == len(letters), f"{name}: {shape} is not ({pattern})"
        for letter, size in zip(letters, shape):
            assert sizes.setdefault(letter, size) == size, f"{name}: {letter} is {size}"
    for words, shape_of in IN_WORDS.items():
        if right.endswith(words):
            return tuple(shape_of(*inputs, **settings))
    if formula:
        symbols = {"padding": 0, "stride": 1, **settings, **sizes}
        python = formula.replace("⌊", "(").replace("⌋", ")").replace("·", "*").replace("−", "-").replace("/", "//")
        for side in "HW":
            sizes[side + "'"] = eval(python, {}, {**symbols, "H": sizes[side]})
    answer = re.search(r"\(([^)]*)\)", right)
    assert answer, f"cannot read {right!r}"
    letters = answer[1].split(",")
    lead = np.broadcast_shapes(*leading) if letters[0] == "…" else ()
    return (*lead, *(sizes[letter] for letter in letters if letter != "…"))


@pytest.mark.parametrize(("entry", "inputs", "settings"), SAMPLES)
def test_the_shapes_line_of_the_docstring_is_true(entry: Entry, inputs: Any, settings: Any) -> None:
    arrays = [np.asarray(x) for x in inputs]
    if entry.name == "matmul" and min(x.ndim for x in arrays) < 2:
        return  # of vectors it says "as in NumPy"
    value = entry.function(on_device(settings))(*map(on_device, inputs))
    assert value.shape == promised_shape(entry.op.__doc__ or "", arrays, settings)


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_every_docstring_gives_shapes_and_derivative(entry: Entry) -> None:
    assert re.search(r"^Shapes: .*->.*\nVJP:    \S", inspect.getdoc(entry.op) or "", re.MULTILINE)


def test_every_operation_says_what_it_raises() -> None:
    """The line for all of them is written in one place; help() shows it above the example."""
    for name in ops.__all__:
        doc = inspect.getdoc(getattr(ops, name)) or ""
        assert 0 < doc.find("Raises:") < doc.find(">>>"), name
    with pytest.raises(TypeError):
        ops.relu("text")
    with pytest.raises(ValueError, match="do not fit"):
        ops.add(np.ones(2), np.ones(3))


def test_a_shapes_line_that_lies_is_found_out() -> None:
    x, w = normal(5, 6, 2, 2), normal(3, 3, 2, 4)
    doc = ops.conv2d.__doc__ or ""
    assert promised_shape(doc, [x, w], {"padding": 1}) == (5, 6, 2, 4)
    assert promised_shape(doc.replace("(H',W',N,D)", "(W',H',N,D)"), [x, w], {"padding": 1}) == (6, 5, 2, 4)
    with pytest.raises(AssertionError, match="w: C is 2"):
        promised_shape(doc.replace("x (H,W,N,C)", "x (H,C,N,W)"), [x, w], {})
    with pytest.raises(AssertionError, match="is not"):
        promised_shape(doc.replace("x (H,W,N,C)", "x (H,W,C)"), [x, w], {})


# ── Operands: which side they stand on, and the ends of the range ─────────────────────────────────

LEFT = [
    pytest.param(2.0, normal(2, 3), operator.truediv, id="number / x"),
    pytest.param(2.0, normal(2, 3), operator.sub, id="number - x"),
    pytest.param(normal(2, 1, seed=1), normal(2, 3), operator.truediv, id="column / x"),
    pytest.param(normal(2, 3, seed=1), normal(3), operator.sub, id="matrix - x"),
    pytest.param(normal(3, 2, seed=1), normal(2, 3), operator.matmul, id="matrix @ x"),
    pytest.param(normal(2, seed=1), normal(2, 2), operator.matmul, id="vector @ x"),
    pytest.param(normal(4, 2, 2, seed=1), normal(2), operator.matmul, id="stack @ x"),
]


@pytest.mark.parametrize(("left", "right", "op"), LEFT)
def test_a_number_or_an_array_on_the_left_gives_numpys_value_and_its_gradient(left: Any, right: Array, op: Any) -> None:
    """The tensor on the right is recorded as the right operand, as if the left one were a tensor too."""
    x = tensor(right, requires_grad=True)
    value = op(on_device(left), x)
    np.testing.assert_allclose(host(value.data), op(left, right), rtol=1e-14)
    seed = on_device(normal(*value.shape, seed=2))
    value.backward(seed)
    both = tensor(left, requires_grad=True), tensor(right, requires_grad=True)
    op(*both).backward(seed)
    assert_close(x.grad, both[1].grad, rtol=1e-14)


def test_the_left_and_the_right_of_an_operator_are_told_apart() -> None:
    """a − x = −(x − a), (a/x)·(x/a) = 1, a @ x = (xᵀ @ aᵀ)ᵀ, with a number or an array for a."""
    x, a = tensor(normal(3, 3)), on_device(normal(3, 3, seed=1))
    for left in (a, 2.0):
        assert_close((left - x).data, -(x - left).data)
        assert_close((left / x * (x / left)).data, np.ones((3, 3)))
        assert not np.allclose(host((left / x).data), host((x / left).data))
    assert_close((a @ x).data, (x.T @ a.T).data.T)
    assert not np.allclose(host((a @ x).data), host((x @ a).data))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_quotient_keeps_its_closed_values_at_the_ends_of_the_range(dtype: Any) -> None:
    """y² would overflow or vanish where x/y and both slopes, 1/y and −(x/y)/y, are ordinary numbers."""
    limits = np.finfo(dtype)
    for y in (limits.max / 64, -limits.max / 64, limits.tiny * 64, -limits.tiny * 64):
        top, bottom = tensor(dtype(y / 2), requires_grad=True), tensor(dtype(y), requires_grad=True)
        quotient = top / bottom
        quotient.backward()
        assert quotient.item() == 0.5
        assert_close(top.grad, 1 / y, rtol=1e-6)
        assert_close(bottom.grad, -0.5 / y, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-160, 1e-30, 1e30, 1e160])
def test_a_common_factor_of_a_quotient_does_not_matter(size: float) -> None:
    """x/y stays, and both slopes scale with 1/size, also where size² is no number any more."""
    x, y = tensor(size * normal(5), requires_grad=True), tensor(size * positive(5), requires_grad=True)
    (x / y).sum().backward()
    assert_close(x.grad * size, 1 / positive(5), rtol=1e-12)
    assert_close(y.grad * size, -normal(5) / positive(5) ** 2, rtol=1e-12)


# ── Convolution and pooling: every kernel, stride and padding ─────────────────────────────────────


@functools.cache
def convolved_by_loops(seed: int, of_w: int, kernel: int, height: int, width: int, stride: int, padding: int) -> Array:
    """The convolution of one of two random maps with one of two kernels; two tests ask for each."""
    x, w = normal(height, width, 2, 3, seed=seed), normal(kernel, kernel, 3, 2, seed=of_w)
    return conv2d_by_loops(x, w, stride=stride, padding=padding)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("thin", [True, False])
def test_conv2d_is_its_loops(
    kernel: int, stride: int, padding: int, thin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "THIN", 10**6 if thin else 0)
    monkeypatch.setattr(slabs, "SLAB_BYTES", 100)  # several slabs in a row
    for height, width in [(7, 6), (4, 5)]:
        x, w = normal(height, width, 2, 3), normal(kernel, kernel, 3, 2, seed=1)
        if min(height, width) + 2 * padding < kernel:
            with pytest.raises(ValueError, match="too small"):
                ops.conv2d(x, w, stride=stride, padding=padding)
            continue
        case = kernel, height, width, stride, padding
        expected = convolved_by_loops(0, 1, *case)
        value, (dx, dw) = value_and_gradients(lambda x, w: ops.conv2d(x, w, stride=stride, padding=padding), (x, w))
        assert relative(value, expected) <= 1e-13
        # conv is linear in each: ⟨g, conv(x, w)⟩ = ⟨dx, x⟩ = ⟨dw, w⟩, for every x and w
        g = np.random.default_rng(0).uniform(0.5, 1.5, value.shape)
        other_x, other_w = normal(*x.shape, seed=2), normal(*w.shape, seed=3)
        for product, direct in [
            ((dx * other_x).sum(), convolved_by_loops(2, 1, *case)),
            ((dw * other_w).sum(), convolved_by_loops(0, 3, *case)),
        ]:
            assert product == pytest.approx((g * direct).sum(), rel=1e-11, abs=1e-11)


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (8, 2), (7, 2)])
def test_the_thin_and_the_thick_convolution_agree(side: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = normal(side, side, 3, 3), normal(3, 3, 3, 4)
    both = []
    for thin in (0, 10**6):
        monkeypatch.setattr(products, "THIN", thin)
        both.append(value_and_gradients(lambda x, w: ops.conv2d(x, w, stride=stride, padding=1), (x, w)))
    for a, b in zip([both[0][0], *both[0][1]], [both[1][0], *both[1][1]]):
        assert relative(a, b) <= 1e-13


def test_conv2d_of_no_images_is_no_maps() -> None:
    value, (dx, dw) = value_and_gradients(
        lambda x, w: ops.conv2d(x, w, padding=1), (np.ones((4, 4, 0, 2)), np.ones((3, 3, 2, 5)))
    )
    assert (value.shape, dx.shape) == ((4, 4, 0, 5), (4, 4, 0, 2))
    assert not dw.any()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(k, s, p) for k in (1, 2, 3, 5) for s in (1, 2, 3) for p in (0, 1, 2) if 2 * p <= k],
)
def test_max_pool2d_is_its_loops(kernel: int, stride: int, padding: int) -> None:
    for height, width in [(7, 6), (5, 8)]:
        x = spaced(height, width, 2, 2)
        value, (dx,) = value_and_gradients(
            lambda x: ops.max_pool2d(x, kernel=kernel, stride=stride, padding=padding), (x,)
        )
        np.testing.assert_array_equal(value, max_pool2d_by_loops(x, kernel=kernel, stride=stride, padding=padding))
        g = np.random.default_rng(0).uniform(0.5, 1.5, value.shape)
        expected = np.zeros(x.shape)  # no two elements are equal, so each window's value names its pixel
        for index in np.ndindex(value.shape):
            expected[np.nonzero(x == value[index])] += g[index]
        np.testing.assert_allclose(dx, expected, rtol=1e-14)


def test_a_maximum_hands_on_its_whole_gradient_and_no_more_whoever_ties() -> None:
    tied = np.random.default_rng(0).integers(0, 2, (4, 4, 2, 3)).astype(float)
    tied[1, 1] = np.nan  # a NaN is the largest, and does not equal itself

    def pool(x: Tensor, method: str) -> Tensor:
        return ops.max_pool2d(x, kernel=3, stride=1, padding=1, method=method)

    for f in (lambda x: ops.max(x, axis=1), lambda x: pool(x, "plain"), lambda x: pool(x, "threaded")):
        x = tensor(tied, requires_grad=True)
        value = f(x)
        value.sum().backward()
        assert x.grad is not None
        assert host(x.grad).sum() == pytest.approx(value.data.size, rel=1e-12)


def test_a_constant_moves_every_maximum_alike_and_changes_nothing_else() -> None:
    x = tensor(spaced(5, 4, 2, 3))
    for settings in ({"kernel": 3, "stride": 2, "padding": 1}, {"kernel": 2, "stride": 2}):
        assert_close(ops.max_pool2d(x - 100.0, **settings).data, ops.max_pool2d(x, **settings).data - 100, rtol=1e-12)


def test_of_equal_pixels_the_first_in_reading_order_gets_the_gradient() -> None:
    x = tensor(np.ones((4, 4, 1, 1)), requires_grad=True)
    ops.max_pool2d(x, kernel=3, stride=2, padding=1).sum().backward()
    first = np.zeros((4, 4))
    first[0, 0] = first[0, 1] = first[1, 0] = first[1, 1] = 1
    assert_same(x.grad.reshape(4, 4), first)


# ── Batch norm, cross-entropy, unit rows ──────────────────────────────────────────────────────────


def composed(x: Tensor, scale: Tensor, shift: Tensor, *shortcut: Tensor, relu: bool, eps: float = 1e-5) -> Tensor:
    """Batch norm in training, from elementary operations: what autograd makes of it is the oracle."""
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axis=axes)
    y = centred / ops.power((centred * centred).mean(axis=axes) + eps, exponent=0.5) * scale + shift
    for a in shortcut:
        y = y + a
    return ops.relu(y) if relu else y


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("shape", [(3, 2, 4, 3), (40, 5), (2, 1)])
def test_batch_norm_equals_its_composed_form(
    shape: tuple[int, ...], others: int, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "CHUNK_BYTES", 200)  # several chunks
    channels = shape[-1]
    inputs = [
        5 + normal(*shape),
        positive(channels),
        normal(channels),
        *(normal(*shape, seed=k + 1) for k in range(others)),
    ]

    def in_one_pass(x: Tensor, *rest: Tensor) -> Tensor:
        return ops.batch_norm(x, *rest, **statistics(x.data), batch=True, relu=relu)

    value, gradients = value_and_gradients(in_one_pass, inputs)
    value_c, gradients_c = value_and_gradients(lambda *xs: composed(*xs, relu=relu), inputs)
    assert relative(value, value_c) <= 1e-12
    for gradient, gradient_c in zip(gradients, gradients_c):
        assert np.abs(gradient - gradient_c).max() <= 1e-11 * max(1, np.abs(gradient_c).max())


@pytest.mark.parametrize("method", ["plain", "fused"])
def test_moments_are_numpys_mean_and_variance_also_far_from_zero(
    method: str, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drift = np.arange(50)[:, None, None]  # chunks differ in their means
    for offset, chunk in ((0.0, 1 << 20), (1e4, 1 << 20), (0.0, 700), (1e4, 700)):  # 700 bytes: 58 rows, 26 in the last
        monkeypatch.setattr(fused, "CHUNK_BYTES", chunk)
        x = (offset + drift + normal(50, 4, 3)).astype(np.float32)
        mean, variance = host(ops.moments(xp, on_device(x), method=method))
        assert mean.dtype == variance.dtype == np.float32
        np.testing.assert_allclose(mean, x.astype(float).mean(axis=(0, 1)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(variance, x.astype(float).var(axis=(0, 1)), rtol=1e-4)


@pytest.mark.parametrize("drift", [False, True], ids=["far", "far and drifting"])
def test_the_fused_moments_are_numpys_to_the_last_digits_where_the_mean_is_far_above_the_deviation(
    drift: bool, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the rounding of the result itself, which is float32; a sum of the entries would lose four digits here."""
    monkeypatch.setattr(fused, "CHUNK_BYTES", 1 << 16)
    x = 1e4 + normal(5000, 3)
    x[0] += 30  # the rows that stand for the others need not be like them
    x = (x + (np.linspace(0, 20, 5000)[:, None] if drift else 0)).astype(np.float32)
    mean, variance = host(ops.moments(xp, on_device(x), method="fused"))
    wide = x.astype(float)
    np.testing.assert_allclose(mean, wide.mean(axis=0), rtol=2**-24)
    np.testing.assert_allclose(variance, wide.var(axis=0), rtol=2e-6)


@pytest.mark.parametrize("ratio", [10, 1000])
def test_the_accuracy_of_batch_norm_is_that_of_sums_in_float64_where_the_mean_is_far_above_the_deviation(
    ratio: float, xp: Any
) -> None:
    """Value and gradient err no more than with statistics that were summed in float64 and rounded, as torch's are."""
    x, g = (ratio + normal(8, 8, 64, 4)).astype(np.float32), normal(8, 8, 64, 4, seed=1).astype(np.float32)

    def computed(dtype: Any, moments: Any) -> list[Array]:
        mean, variance = (on_device(np.asarray(host(m), dtype)) for m in moments)
        statistics = {"mean": mean, "variance": variance, "batch": True}
        z = tensor(x.astype(dtype), requires_grad=True)
        y = ops.batch_norm(z, *on_device((np.ones(4, dtype), np.zeros(4, dtype))), **statistics, method="fused")
        y.backward(on_device(g.astype(dtype)))
        return host([y.data, z.grad])

    wide = x.astype(float)
    in_float64 = wide.mean(axis=(0, 1, 2)), wide.var(axis=(0, 1, 2))
    exact, rounded = computed(np.float64, in_float64), computed(np.float32, in_float64)
    for got, best, right in zip(computed(np.float32, ops.moments(xp, on_device(x))), rounded, exact):
        assert relative(got, right) <= 1.5 * relative(best, right) + 1e-6


def test_the_order_of_rows_does_not_matter_to_their_moments(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CHUNK_BYTES", 200)
    x = np.sort(normal(100, 3), axis=0)
    shuffled = np.random.default_rng(0).permutation(x)
    for ordered, mixed in zip(host(ops.moments(xp, on_device(x))), host(ops.moments(xp, on_device(shuffled)))):
        np.testing.assert_allclose(ordered, mixed, rtol=1e-12)


@given(rows=st.integers(1, 8), channels=st.integers(1, 5), seed=st.integers(0, 99), relu=st.booleans())
def test_batch_norm_is_its_loops(rows: int, channels: int, seed: int, relu: bool) -> None:
    x = normal(rows, 2, channels, seed=seed)
    scale, shift, shortcut = normal(channels, seed=1), normal(channels, seed=2), normal(rows, 2, channels, seed=3)
    inputs = on_device((x, scale, shift, shortcut))
    value = ops.batch_norm(*inputs, **statistics(inputs[0]), batch=True, relu=relu)
    np.testing.assert_allclose(
        host(value.data), batch_norm_by_loops(x, scale, shift, shortcut, batch=True, relu=relu), rtol=1e-11, atol=1e-11
    )


def test_a_logit_that_towers_has_the_closed_values_0_and_its_height() -> None:
    for label, loss in ((0, 0.0), (1, 1e4)):
        assert ops.cross_entropy(tensor([[1e4, 0.0]]), labels=on_device(np.array([label]))).item() == loss


def test_a_constant_added_to_a_row_of_logits_changes_nothing() -> None:
    logits, labels = normal(4, 3), np.array([0, 2, 2, 1])
    moved = logits + np.array([[0.0], [1e4], [-1e4], [1.0]])
    assert ops.cross_entropy(tensor(moved), labels=on_device(labels)).item() == pytest.approx(
        ops.cross_entropy(tensor(logits), labels=on_device(labels)).item(), rel=1e-9
    )


@given(n=st.integers(1, 9), k=st.integers(1, 7), seed=st.integers(0, 99), size=st.sampled_from([1e-3, 1.0, 300.0]))
def test_cross_entropy_is_its_loops_and_its_gradient_softmax_minus_labels(
    n: int, k: int, seed: int, size: float
) -> None:
    logits, labels = size * normal(n, k, seed=seed), np.random.default_rng(seed).integers(k, size=n)
    x = tensor(logits, requires_grad=True)
    loss = ops.cross_entropy(x, labels=on_device(labels))
    assert loss.item() == pytest.approx(cross_entropy_by_loops(logits, labels=labels), rel=1e-12, abs=1e-13)
    loss.backward()
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(host(x.grad), (e / e.sum(axis=1, keepdims=True) - np.eye(k)[labels]) / n, atol=1e-14)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_l2_normalize_keeps_its_precision_at_any_length_of_row(size: float, dtype: Any) -> None:
    x = normal(5, 7)
    z = tensor((x * size).astype(dtype), requires_grad=True)
    u = ops.l2_normalize(z)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(host(u.data), l2_normalize_by_loops(x), atol=4 * eps)
    u.backward(on_device(np.ones(u.shape)))
    unit, norm = l2_normalize_by_loops(x), np.linalg.norm(x, axis=1, keepdims=True)
    expected = (1 - unit * unit.sum(axis=1, keepdims=True)) / norm
    np.testing.assert_allclose(host(z.grad) * size, expected, atol=16 * eps)


def test_a_row_of_zeros_stays_zero_and_gets_no_gradient() -> None:
    x = tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    u = ops.l2_normalize(x)
    u.backward(on_device(np.ones((2, 2))))
    assert_close(u.data, [[0, 0], [0.6, 0.8]])
    assert_same(x.grad[0], [0, 0])  # type: ignore[index]


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def assert_the_table_passes(names: set[str]) -> None:
    text, passed = main_table(color=False)
    assert passed
    assert "\x1b" not in text
    for name in names:
        assert re.search(rf"^{name} .*refused$", text, re.MULTILINE), name


def test_the_table_of_the_command_says_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [entry for entry in TABLE if entry.name in ("exp", "relu", "l2_normalize")]
    monkeypatch.setattr(gradchecks, "TABLE", few)
    assert_the_table_passes({entry.name for entry in few})
    text, passed = main_table(color=True)
    assert passed
    assert "\x1b[32mall 3 operations pass\x1b[0m" in text
    assert re.search(r"^relu +at a kink: relu′\(0\) = 0$", text, re.MULTILINE)
    assert re.search(r"^l2_normalize +for x ≠ 0 ", text, re.MULTILINE)

    monkeypatch.setattr(gradchecks, "TABLE", [Entry(ops.exp, np.expm1, few[0].samples, [])])
    text, passed = main_table(color=False)
    assert not passed
    assert text.endswith("failed: exp")


@pytest.mark.slow
def test_the_table_of_the_command_passes_for_every_operation() -> None:
    assert_the_table_passes({entry.name for entry in TABLE})


def test_the_command_reports_a_wrong_gradient_and_a_wrong_value() -> None:
    entry = next(entry for entry in TABLE if entry.name == "exp")
    wrong_gradient = Entry(a_thousandth_off(ops.exp), entry.reference, entry.samples, [])
    wrong_value = Entry(entry.op, np.expm1, entry.samples, [])
    assert check_entry(entry).passed
    assert not check_entry(wrong_gradient).agree
    assert not check_entry(wrong_value).agree


@pytest.mark.parametrize(
    ("x", "w"),
    [((4, 4, 1, 2), (3, 3, 2)), ((4, 4, 2), (3, 3, 2, 2)), ((4, 4, 1, 2), (3, 2, 2, 2)), ((4, 4, 1, 2), (3, 3, 3, 2))],
)
def test_a_convolution_of_other_shapes_names_both(x: tuple[int, ...], w: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"conv2d: an input (H,W,N,C) and a kernel (K,K,C,D) expected, not {x} and {w}")
    ):
        ops.conv2d(tensor(np.ones(x)), tensor(np.ones(w)))


@pytest.mark.parametrize("side", [(2, 5), (5, 2)])
def test_a_window_that_is_too_large_one_way_is_too_large(side: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="kernel 4 with padding 0 does not fit"):
        ops.max_pool2d(tensor(np.ones((*side, 1, 1))), kernel=4, stride=1)
    with pytest.raises(ValueError, match=r"conv2d: a .* map .* is too small"):
        ops.conv2d(tensor(np.ones((*side, 1, 1))), tensor(np.ones((4, 4, 1, 1))))


def test_max_pooling_may_be_padded_by_half_a_window_and_no_more() -> None:
    x = np.arange(16.0).reshape(4, 4, 1, 1)
    assert_same(ops.max_pool2d(tensor(x), kernel=4, stride=4, padding=2).data[:, :, 0, 0], [[5, 7], [13, 15]])
    with pytest.raises(ValueError, match="padding 3 does not fit"):
        ops.max_pool2d(tensor(x), kernel=4, stride=4, padding=3)


@pytest.mark.parametrize(("shape", "kernel"), [((4, 4, 1), 2), ((4, 4, 1, 1), 0)])
def test_max_pooling_of_no_map_or_no_window_says_what_it_expected(shape: tuple[int, ...], kernel: int) -> None:
    with pytest.raises(ValueError, match=r"max_pool2d: a map .* expected"):
        ops.max_pool2d(tensor(np.ones(shape)), kernel=kernel, stride=1)


def test_batch_norm_names_the_shape_that_each_channel_needs() -> None:
    x, good, bad = tensor(np.ones((2, 2, 3, 4))), on_device(np.ones(4)), on_device(np.ones(3))
    with pytest.raises(
        ValueError, match=re.escape("for (2, 2, 3, 4), scale, shift, mean and variance must have shape (4,)")
    ):
        ops.batch_norm(x, good, bad, mean=good, variance=good, batch=False)
    with pytest.raises(ValueError, match=re.escape("the shape of x, (2, 2, 3, 4), not (4,)")):
        ops.batch_norm(x, good, good, good, mean=good, variance=good, batch=False)


def test_cross_entropy_says_what_is_wrong_with_the_labels() -> None:
    logits = tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match=re.escape("logits (N,K) and labels (N,) expected, not (2, 3) and (3,)")):
        ops.cross_entropy(logits, labels=on_device(np.zeros(3, np.int64)))
    with pytest.raises(TypeError, match="labels must be integers, not float64"):
        ops.cross_entropy(logits, labels=on_device(np.zeros(2)))
    with pytest.raises(ValueError, match="labels in 0…2 expected"):
        ops.cross_entropy(logits, labels=on_device(np.array([0, 3])))
