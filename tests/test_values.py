"""Values that come through a door: each kind of array and setting is handled right, or refused in one line of ours."""

from __future__ import annotations

import copy
import datetime
import functools
import io
import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from devices import assert_same

import minisimclr as ms
from minisimclr import Tensor, ops
from minisimclr.checks.table import TABLE, Entry, normal
from minisimclr.evaluation import fit_linear_probe, nearest

pytestmark = pytest.mark.host("CuPy has one kind of arrays, whose values are those of the other tests")

Array = np.ndarray[Any, Any]


class Subclass(np.ndarray):  # type: ignore[type-arg]
    """An array of somebody else's, whose product is another."""

    def __mul__(self, other: Any) -> Any:
        return np.asarray(self) + other


def every_other(x: Array) -> Array:
    wide = np.zeros([2 * size for size in x.shape], x.dtype)
    here = tuple(slice(None, None, 2) for _ in x.shape)
    wide[here] = x
    return wide[here]


def backwards(x: Array) -> Array:
    return x[(slice(None, None, -1),) * x.ndim]


def read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


# What has the same numbers: the result must be that of the plain array.
SAME: dict[str, Callable[[Array], Any]] = {
    "matrix": lambda x: x.view(np.matrix) if x.ndim == 2 else x.view(Subclass),
    "subclass": lambda x: x.view(Subclass),
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "read-only": read_only,
    "strided": every_other,
    "backwards": lambda x: np.ascontiguousarray(x[(slice(None, None, -1),) * x.ndim])[
        (slice(None, None, -1),) * x.ndim
    ],
    "Fortran order": np.asfortranarray,
}
# What is no array of numbers.
OTHER: dict[str, Callable[[Array], Any]] = {
    "masked": lambda x: np.ma.masked_array(x, mask=np.arange(x.size).reshape(x.shape) % 2 == 0),
    "object": lambda x: x.astype(object),
    "complex": lambda x: x.astype(complex),
    "text": lambda x: x.astype(str),
    "structured": lambda x: np.zeros(x.shape, [("a", float), ("b", float)]),
    "dates": lambda x: x.astype("datetime64[s]"),
    "differences of dates": lambda x: x.astype("timedelta64[s]"),
    "long double": lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" else x.astype(object),
    "a date": lambda x: datetime.date(2020, 2, 13),
    "a set": lambda x: {1.0},
    "None": lambda x: None,
    "a function": lambda x: len,
}
ENTRIES = {f"{k} {entry.name}": entry for k, entry in enumerate(TABLE)}


def one_line(error: BaseException) -> str:
    """The message, if it is a line in our words."""
    said = str(error)
    assert said, "an error without a word"
    assert "\n" not in said, said
    assert len(said) <= 300, said
    assert not re.search(
        r"ufunc|object has no attribute|unhashable|cannot be interpreted|not supported between", said
    ), said
    return said


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    return one_line(caught.value)


@functools.cache
def plain_result(name: str) -> tuple[Any, Any, Any]:
    entry = ENTRIES[name]
    inputs, settings = entry.samples[0]
    inputs = tuple(np.asarray(x) for x in inputs)
    settings = {**settings, **entry.derived(*inputs)}
    return inputs, settings, value(entry, inputs, settings)


def value(entry: Entry, inputs: Any, settings: Any) -> Any:
    return entry.op(*inputs, **settings, **({"method": entry.method} if entry.method else {})).data


# ── Arrays ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENTRIES)
def test_the_same_numbers_in_another_kind_of_array_give_the_same(name: str) -> None:
    entry, (inputs, settings, right) = ENTRIES[name], plain_result(name)
    for kind, k in itertools.product(SAME, range(len(inputs))):
        other = value(entry, [*inputs[:k], SAME[kind](inputs[k]), *inputs[k + 1 :]], settings)
        assert type(other) is np.ndarray
        assert other.dtype == right.dtype
        np.testing.assert_allclose(other, right, rtol=1e-12, atol=1e-13)
    for kind, setting in itertools.product(SAME, settings):
        if isinstance(array := settings[setting], np.ndarray):
            other = value(entry, inputs, {**settings, setting: SAME[kind](array)})
            np.testing.assert_allclose(other, right, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_no_array_of_numbers_is_refused(name: str) -> None:
    entry, (inputs, settings, _) = ENTRIES[name], plain_result(name)
    for kind, k in itertools.product(OTHER, range(len(inputs))):
        refused(lambda kind=kind, k=k: value(entry, [*inputs[:k], OTHER[kind](inputs[k]), *inputs[k + 1 :]], settings))  # type: ignore[misc]
    for kind, setting in itertools.product(OTHER, settings):
        if isinstance(array := settings[setting], np.ndarray):
            refused(lambda kind=kind, s=setting, a=array: value(entry, inputs, {**settings, s: OTHER[kind](a)}))  # type: ignore[misc]


@pytest.mark.parametrize("name", ENTRIES)
def test_arrays_of_every_number_of_axes_and_of_no_elements_are_computed_as_such_or_refused(name: str) -> None:
    entry, (inputs, settings, _) = ENTRIES[name], plain_result(name)
    for k, shape in itertools.product(range(len(inputs)), [(), (1,), (0,), (2, 0), (0, 3, 2, 1), (1,) * 6]):
        strange = [*inputs[:k], np.ones(shape), *inputs[k + 1 :]]
        with np.errstate(all="ignore"):
            try:
                computed = value(entry, strange, settings)
            except (TypeError, ValueError, IndexError) as error:
                one_line(error)
                continue
            except RuntimeWarning:  # "Mean of empty slice", as NumPy's
                continue
            expected = np.asarray(entry.expected(tuple(strange), entry.samples[0][1]))
        if entry.name.partition(" ")[0] not in ("batch_norm",):
            assert computed.shape == expected.shape, shape
            np.testing.assert_allclose(computed, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", SAME)
def test_a_tensor_and_its_gradient_are_plain_whatever_they_are_made_of(kind: str) -> None:
    data = SAME[kind](normal(3, 4))
    x = Tensor(data, requires_grad=True)
    assert type(x.data) is np.ndarray
    assert x.data.dtype == np.float64
    assert x.data.dtype.isnative
    assert x.data.flags.c_contiguous
    assert x.data.flags.writeable
    (x * x).backward(SAME[kind](np.full((3, 4), 2.0)))
    assert_same(x.grad, 4 * normal(3, 4))
    assert type(x.grad) is np.ndarray
    x.grad = SAME[kind](normal(3, 4))
    assert type(x.grad) is np.ndarray
    assert_same(x.grad, normal(3, 4))


@pytest.mark.parametrize("kind", OTHER)
def test_no_tensor_is_made_of_what_is_no_number(kind: str) -> None:
    bad = OTHER[kind](normal(3, 4))
    refused(lambda: Tensor(bad))
    x = Tensor(normal(3, 4), requires_grad=True)
    if bad is not None:
        refused(lambda: (x * x).backward(bad))
        refused(lambda: setattr(x, "grad", bad))
    refused(lambda: setattr(x, "data", bad))


@pytest.mark.parametrize(
    "bad", [[[1.0], [1.0, 2.0]], [2**70], "1.5", ["1", "2"], [None], [np.ma.masked_array([1.0], [True])]]
)
def test_a_list_that_is_no_array_of_numbers_is_refused(bad: Any) -> None:
    refused(lambda: Tensor(bad))


def test_a_gradient_of_another_shape_is_refused() -> None:
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    for shape in ((), (3,), (1, 3), (3, 2)):
        assert "shape" in refused(lambda s=shape: setattr(x, "grad", np.ones(s)))  # type: ignore[misc]
    x.grad = np.ones((2, 3), np.float32)
    assert x.grad is not None
    assert x.grad.dtype == np.float64
    x.grad = None


# ── Numbers beside a tensor ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("two", [np.int64(2), np.uint8(2), np.float64(2), np.float16(2), np.longdouble(2), np.array(2)])
def test_an_exponent_may_be_any_number(two: Any) -> None:
    x = Tensor(np.array([3.0, -1.5], np.float32), requires_grad=True)
    y = x**two
    assert y.dtype == np.float32
    assert_same(y.data, np.array([9, 2.25], np.float32))
    y.sum().backward()
    assert_same(x.grad, [6.0, -3.0])
    assert_same(ops.power(x, exponent=two).data, y.data)


@pytest.mark.parametrize("bad", ["2", None, True, np.bool_(True), 2j, np.array([2, 2]), Tensor(2.0), [2], 10**400])
def test_an_exponent_that_is_no_number_is_refused(bad: Any) -> None:
    refused(lambda: ops.power(Tensor([3.0]), exponent=bad))


@pytest.mark.parametrize("bad", [np.complex128(1j), np.str_("a"), np.datetime64("2020-01-01"), np.ma.masked, 10**400])
def test_a_scalar_that_is_no_number_is_refused(bad: Any) -> None:
    x = Tensor([1.0, 2.0])
    for call in (lambda: ops.add(x, bad), lambda: ops.multiply(bad, x), lambda: x + bad):
        with pytest.raises((TypeError, ValueError)):
            call()


def test_a_long_double_does_not_promote() -> None:
    x = Tensor(np.ones(2, np.float32))
    assert (x * np.longdouble(2)).dtype == np.float32


def test_a_whole_number_of_more_than_64_bits_is_computed_as_a_float_or_refused() -> None:
    assert_same((Tensor([2.0]) * 2**70).data, [2.0**71])
    for call in (lambda: Tensor([2]) * 2**70, lambda: ops.add(2**70, 1), lambda: ops.multiply(2**62, 2**62)):
        refused(call)


def test_numbers_without_an_array_are_computed_as_numpy_computes_them() -> None:
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        assert ops.divide(1.0, 0.0).item() == np.inf
    refused(lambda: ops.power(-1.0, exponent=0.5))  # Python's is complex


@pytest.mark.parametrize(
    "index",
    [
        ((0, 0, 1),),
        ((1, 1), (0, 0)),
        [[0, 0]],
        (slice(None), (1, 1)),
        (np.array([0, 0]), 1),
        range(2),
        (np.int64(0), [1, 1]),
    ],
)
def test_an_index_that_names_a_place_twice_adds_the_gradient_twice(index: Any) -> None:
    x = Tensor(normal(3, 3), requires_grad=True)
    x[index].sum().backward()
    right = np.zeros((3, 3))
    np.add.at(right, index, 1)
    assert_same(x.grad, right)


# ── Settings of operations ────────────────────────────────────────────────────────────────────────


def disguises(setting: Any) -> list[Any]:
    """The same number in NumPy's types."""
    if isinstance(setting, bool):
        return [np.bool_(setting)]
    if isinstance(setting, int):
        return [np.int64(setting), np.int8(setting), np.array(setting)]
    if isinstance(setting, float):
        return [np.float64(setting), np.array(setting), np.longdouble(setting)]
    if isinstance(setting, tuple) and setting and all(isinstance(item, int) for item in setting):
        return [tuple(np.int64(item) for item in setting)]
    return []


@pytest.mark.parametrize("name", ENTRIES)
def test_settings_in_numpys_types_are_the_same_settings_and_others_are_refused(name: str) -> None:
    entry = ENTRIES[name]
    for inputs, settings in entry.samples:
        inputs = tuple(np.asarray(x) for x in inputs)
        settings = {**settings, **entry.derived(*inputs)}
        right = value(entry, inputs, settings)
        for setting, plain in settings.items():
            for disguised in disguises(plain):
                other = value(entry, inputs, {**settings, setting: disguised})
                assert other.dtype == right.dtype
                assert_same(other, right)
            bad: list[Any] = ["text", 1j, {1: 2}, np.ma.masked, len, np.array(["a"]), Tensor([1.5])]
            bad += [None, [1.5, 2]] if setting not in ("axis", "axes", "index") else []
            bad += [1.5] if setting not in ("exponent", "eps", "temperature", "margin") else []
            for wrong in bad if setting != "index" else ["text", 1j, 1.5]:
                with pytest.raises((TypeError, ValueError, IndexError)) as caught:
                    value(entry, inputs, {**settings, setting: wrong})
                one_line(caught.value)


# ── Public functions ──────────────────────────────────────────────────────────────────────────────

RNG = np.random.default_rng(0)
H, Y = RNG.standard_normal((6, 3)).astype(np.float32), np.array([0, 1, 0, 1, 2, 2])
IMAGES = RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)
CONFIG = ms.Config(size=8, batch=4, epochs=1)


@functools.cache
def model() -> ms.SimCLR:
    return ms.SimCLR(ms.resnet_small(base=2), ms.ProjectionHead(8, 4, 2))


def leaf() -> Tensor:
    return Tensor(np.ones((2, 2), np.float32), requires_grad=True)


NO_NUMBER: list[Any] = [
    "0.5",
    None,
    True,
    np.bool_(True),
    1j,
    [0.5],
    np.array([0.5, 1]),
    Tensor(0.5),
    np.nan,
    np.ma.masked,
]
NO_COUNT: list[Any] = ["5", True, 2.5, np.float64(2), 1j, [1], np.array([1, 2]), Tensor(1.0), -1, 10**400]
NO_TRUTH: list[Any] = ["yes", None, 1, 0.0, np.array([True, False]), Tensor(1.0)]
NO_METHOD: list[Any] = ["fast", None, 1, ["auto"], np.array(["auto"]), np.array(["auto", "plain"])]
NO_RNG: list[Any] = ["seed", np.random.RandomState(0), np.random, 7]
NO_FEATURES: list[Any] = [
    *(kind(H) for name, kind in OTHER.items()),
    H[0],
    H[:, :, None],
    H[:0],
    H[:, :0],
    np.where(H[1, 1] == H, np.nan, H),
    np.where(H[1, 1] == H, np.inf, H),
    H.astype(float) * 1e30,
    np.float32(1),
    H.tolist(),
    "text",
    Tensor(H),
]
NO_EMBEDDINGS: list[Any] = [*(kind(H) for kind in OTHER.values()), H[0], H[:0], Y, H.tolist()]
NO_LABELS: list[Any] = [
    *(kind(Y) for name, kind in OTHER.items()),
    Y[:, None],
    Y.astype(float),
    Y - 1,
    Y > 0,
    Y[:-1],
    Y + 2**40,
    np.int64(1),
    Tensor(Y),
]
NO_IMAGES: list[Any] = [
    IMAGES.astype(np.float32),
    IMAGES.astype(object),
    IMAGES[0],
    IMAGES[..., :1],
    IMAGES.tolist(),
    np.ma.masked_array(IMAGES, IMAGES > 9),
    "text",
    7,
]
ONE_LIST: list[Any] = [leaf(), None, 1.0, np.ones(2), ["w"], {"w": leaf()}, [leaf() * 2], [np.ones(2)], [None]]

# What each public function must refuse: a call with one argument in its place, and the values of it.
REFUSED: dict[str, list[tuple[Callable[[Any], Any], list[Any]]]] = {
    "SGD": [
        (lambda v: ms.SGD(v, lr=0.1), ONE_LIST),
        (lambda v: ms.SGD([leaf()], lr=v), [*NO_NUMBER, -1]),
        (lambda v: ms.SGD([leaf()], lr=0.1, momentum=v), NO_NUMBER),
        (lambda v: ms.SGD([leaf()], lr=0.1, weight_decay=v), NO_NUMBER),
        (lambda v: ms.SGD([leaf()], lr=0.1, nesterov=v), NO_TRUTH),
        (lambda v: ms.SGD([leaf()], lr=0.1).step(v), [v for v in NO_NUMBER if v is not None]),
    ],
    "LARS": [
        (lambda v: ms.LARS(v, lr=0.1), ONE_LIST),
        (lambda v: ms.LARS([leaf()], lr=v), NO_NUMBER),
        (lambda v: ms.LARS([leaf()], lr=0.1, trust_coefficient=v), NO_NUMBER),
    ],
    "Config": [
        (lambda v: ms.Config(temperature=v), [*NO_NUMBER, 0, np.array([[1.0, 2.0], [3.0, 4.0]] * 9)]),
        (lambda v: ms.Config(batch=v), NO_COUNT),
        (lambda v: ms.Config(blur=v), NO_TRUTH),
        (lambda v: ms.Config(method=v), NO_METHOD),
        (lambda v: ms.Config(device=v), NO_METHOD),
    ],
    "ProjectionHead": [
        (lambda v: ms.ProjectionHead(v, 4, 2), [*NO_COUNT, 0, None]),
        (lambda v: ms.ProjectionHead(4, v, 2), NO_COUNT),
        (lambda v: ms.ProjectionHead(4, 4, v), NO_COUNT),
        (lambda v: ms.ProjectionHead(4, 4, 2, layers=v), [*NO_COUNT, 0]),
        (lambda v: ms.ProjectionHead(4, 4, 2, batch_norm=v), NO_TRUTH),
        (lambda v: ms.ProjectionHead(4, 4, 2, rng=v), NO_RNG),
        (lambda v: ms.ProjectionHead(4, 4, 2, method=v), NO_METHOD),
    ],
    "ResNet": [
        (lambda v: ms.resnet_small(width=v), [*NO_COUNT, 0, None]),
        (lambda v: ms.resnet_small(base=v), [*NO_COUNT, 0]),
        (lambda v: ms.resnet_small(base=2, num_classes=v), NO_COUNT),
        (lambda v: ms.resnet_small(base=2, stem=v), NO_METHOD),
        (lambda v: ms.resnet_small(base=2, rng=v), NO_RNG),
        (lambda v: ms.resnet_small(base=2, method=v), NO_METHOD),
        (
            lambda v: ms.resnet_small(base=2)(v),
            [*NO_IMAGES[1:], IMAGES, np.ma.masked_array(IMAGES / 255, IMAGES > 9), (IMAGES / 255).astype(complex)],
        ),
    ],
    "SimCLR": [
        (lambda v: ms.SimCLR(v, model().head), [len, None, "small"]),
        (lambda v: model().loss(IMAGES / 255, IMAGES / 255, v), NO_NUMBER),
    ],
    "Tensor": [(lambda v: Tensor(v), ["text", None, 1j, {1}, len])],
    "contrastive_accuracy": [(lambda v: ms.contrastive_accuracy(v, H), [*NO_EMBEDDINGS, Tensor(H)])],
    "nt_xent": [
        (lambda v: ms.nt_xent(v, H), NO_EMBEDDINGS),
        (lambda v: ms.nt_xent(H, H, temperature=v), [*NO_NUMBER, 0, -1, np.inf]),
        (lambda v: ms.nt_xent(H, H, method="composed", temperature=v), [*NO_NUMBER, 0, -1, np.inf]),
        (lambda v: ms.nt_xent(H, H, method=v), NO_METHOD),
    ],
    "nt_xent_value_and_grad": [
        (lambda v: ms.nt_xent_value_and_grad(v, H), [*NO_EMBEDDINGS, Tensor(H)]),
        (lambda v: ms.nt_xent_value_and_grad(H, H, temperature=v), [*NO_NUMBER, 0, -1, np.inf]),
        (lambda v: ms.nt_xent_value_and_grad(H, H, method=v), NO_METHOD),
    ],
    "embed": [
        (lambda v: ms.embed(model(), v), [*NO_IMAGES, IMAGES[:0]]),
        (lambda v: ms.embed(model(), IMAGES, batch=v), [*NO_COUNT, 0, None]),
        (lambda v: ms.embed(v, IMAGES), [len, None, "model"]),
    ],
    "gradcheck": [
        (lambda v: ms.gradcheck(lambda x: x * x, v), [kind(H) for name, kind in OTHER.items()]),
        (lambda v: ms.gradcheck(lambda x: x * x, H, tolerance=v), [*NO_NUMBER, -1]),
    ],
    "check_direction": [(lambda v: ms.check_direction(lambda x: x * x, H, tolerance=v), [*NO_NUMBER, -1])],
    "check_path": [(lambda v: ms.check_path(lambda x: x * x, H, -H, tolerance=v), [*NO_NUMBER, -1])],
    "knn_accuracy": [
        (lambda v: ms.knn_accuracy(v, Y, H, Y, k=2), NO_FEATURES),
        (lambda v: ms.knn_accuracy(H, Y, v, Y, k=2), NO_FEATURES),
        (lambda v: ms.knn_accuracy(H, v, H, Y, k=2), NO_LABELS),
        (lambda v: ms.knn_accuracy(H, Y, H, v, k=2), NO_LABELS),
        (lambda v: ms.knn_accuracy(H, Y, H, Y, k=v), [*NO_COUNT, 0, 7, None]),
        (lambda v: ms.knn_accuracy(H, Y, H, Y, k=2, temperature=v), [*NO_NUMBER, 0, -1, np.inf]),
    ],
    "linear_probe": [
        (lambda v: ms.linear_probe(v, Y, H, Y), NO_FEATURES),
        (lambda v: ms.linear_probe(H, v, H, Y), NO_LABELS),
        (lambda v: ms.linear_probe(H, Y, H, v), NO_LABELS),
        (lambda v: fit_linear_probe(v, Y), NO_FEATURES),
        (lambda v: fit_linear_probe(H, v), NO_LABELS),
        (lambda v: fit_linear_probe(H, Y, l2_values=v), [(), (-1.0,), (np.nan,), "text", (None,), None]),
        (lambda v: fit_linear_probe(H, Y, iterations=v), [*NO_COUNT, 0]),
        (lambda v: fit_linear_probe(H, Y, seed=v), NO_COUNT),
    ],
    "load_dataset": [
        (lambda v: ms.load_dataset("doodles", size=v), [*NO_COUNT, 0, None]),
        (lambda v: ms.load_dataset("doodles", limit=v), [*NO_COUNT, 0]),
        (lambda v: ms.load_dataset("doodles", v), [None, 1, ["train"], np.array(["train"])]),
        (lambda v: ms.load_dataset(v), [None, 1, ["doodles"], b"doodles", np.array(["doodles"])]),
    ],
    "pretrain": [
        (lambda v: ms.pretrain(v, IMAGES), [None, {"batch": 4}, "config"]),
        (lambda v: ms.pretrain(CONFIG, v), NO_IMAGES),
        (lambda v: ms.pretrain(CONFIG, IMAGES, workers=v), [*NO_COUNT, 65, None]),
    ],
    "saved_bytes": [(lambda v: ms.saved_bytes(v), [None, H, 1.0])],
    "set_threads": [(lambda v: ms.set_threads(v), [*NO_COUNT, 0])],
    "to_float": [(lambda v: ms.to_float(v), NO_IMAGES)],
    "two_views": [
        (lambda v: ms.two_views(v, RNG, 8), NO_IMAGES),
        (lambda v: ms.two_views(IMAGES, v, 8), [*NO_RNG, None]),
        (lambda v: ms.two_views(IMAGES, RNG, v), [*NO_COUNT, 0, None]),
        (lambda v: ms.two_views(IMAGES, RNG, 8, strength=v), [*NO_NUMBER, -1, 3]),
        (lambda v: ms.two_views(IMAGES, RNG, 8, blur=v), NO_TRUTH),
        (lambda v: ms.two_views(IMAGES, RNG, 8, min_area=v), [*NO_NUMBER, 0, 2]),
        (lambda v: ms.two_views(IMAGES, RNG, 8, method=v), NO_METHOD),
    ],
    "warmup_cosine": [
        (lambda v: ms.warmup_cosine(v, 4, 2, 0.1), NO_NUMBER),
        (lambda v: ms.warmup_cosine(1, v, 2, 0.1), NO_NUMBER),
        (lambda v: ms.warmup_cosine(1, 4, v, 0.1), NO_NUMBER),
        (lambda v: ms.warmup_cosine(1, 4, 2, v), NO_NUMBER),
    ],
}  # fmt: skip
ELSEWHERE = {  # public names that take no values, or whose values other files test
    *("CheckpointError", "DataError", "GradcheckError", "Interrupted", "NonFiniteError"),  # errors
    *("Dataset", "Run", "load_run", "no_grad", "ops", "primitive"),  # records, files, and what is tested above
    *(name for name in ms.__all__ if name.startswith("resnet")),  # see ResNet
    *("Monitor", "Reading", "SimCLRTransformer", "finetune"),  # test_monitor.py, test_layouts.py, test_finetune.py …
    *("duplicates", "draw", "load_torchvision", "save_torchvision"),  # test_search.py, test_drawing.py, test_interop.py
}


def test_every_public_name_has_values_that_it_refuses() -> None:
    assert REFUSED.keys() | ELSEWHERE == set(ms.__all__)


@pytest.mark.parametrize(("name", "k"), [(name, k) for name, calls in REFUSED.items() for k in range(len(calls))])
def test_a_value_of_another_kind_is_refused_in_one_line(name: str, k: int) -> None:
    call, values = REFUSED[name][k]
    for v in values:
        try:
            refused(lambda v=v: call(v))  # type: ignore[misc]
        except BaseException as error:
            error.add_note(f"{name}, call {k}, with {v!r}"[:200])
            raise


@pytest.mark.parametrize("kind", SAME)
def test_features_labels_and_images_of_other_kinds_give_the_same(kind: str) -> None:
    h, y, images = SAME[kind](H), SAME[kind](Y), SAME[kind](IMAGES)
    assert ms.knn_accuracy(h, y, h, y, k=3) == ms.knn_accuracy(H, Y, H, Y, k=3)
    assert_same(nearest(h, h, 2)[0], nearest(H, H, 2)[0])
    assert ms.linear_probe(h, y, h, y, iterations=3) == ms.linear_probe(H, Y, H, Y, iterations=3)
    for a, b in zip(ms.nt_xent_value_and_grad(h, h), ms.nt_xent_value_and_grad(H, H)):
        assert_same(a, b)
    assert ms.contrastive_accuracy(h, h) == ms.contrastive_accuracy(H, H)
    assert type(ms.to_float(images)) is np.ndarray
    assert_same(ms.to_float(images), ms.to_float(IMAGES))
    for a, b in zip(
        ms.two_views(images, np.random.default_rng(0), 8), ms.two_views(IMAGES, np.random.default_rng(0), 8)
    ):
        assert_same(a, b)
    for a, b in zip(ms.embed(model(), images), ms.embed(model(), IMAGES)):
        assert_same(a, b)


@pytest.mark.parametrize("make", [ms.SGD, ms.LARS])
def test_rates_in_numpys_types_make_the_same_step_bit_for_bit(make: Any) -> None:
    def trained(number: Any) -> Array:
        w = leaf()
        optimizer = make([w], lr=number(0.1), momentum=number(0.9), weight_decay=number(0.01))
        for step in range(3):
            ((w - 0.3) ** 2).sum().backward()
            optimizer.step(number(0.1 / (step + 1)))
        return w.data

    for number in (np.float64, np.array):
        assert_same(trained(number), trained(float))


# ── Floating-point errors ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENTRIES)
def test_numpys_order_to_raise_changes_nothing(name: str) -> None:
    """Small numbers underflow, which NumPy ignores unless it is told otherwise."""
    entry = ENTRIES[name]
    inputs, settings, _ = plain_result(name)

    def both(scale: float) -> list[Any]:
        leaves = [Tensor(x * scale, requires_grad=True) for x in inputs]
        y = entry.op(*leaves, **settings, **({"method": entry.method} if entry.method else {}))
        (y * 1e-160 if scale < 1 else y).backward(np.full(y.shape, 1e-160))
        return [y.data, *(leaf.grad for leaf in leaves)]

    for scale in (1.0, 1e-155):
        if scale < 1 and entry.name.split()[0] in ("divide", "power", "log", "nt_xent", "l2_normalize"):
            continue  # there small numbers become large ones, of which NumPy warns in any case
        quiet = both(scale)
        with np.errstate(all="raise"):
            loud = both(scale)
        for a, b in zip(quiet, loud):
            assert_same(a, b)


def test_public_functions_compute_the_same_where_numpy_was_told_to_raise() -> None:
    def everything() -> list[Any]:
        rng, w = np.random.default_rng(0), leaf()
        optimizer = ms.LARS([w], lr=1e-30)
        (w * 1e-38).sum().backward()
        optimizer.backward((w * 1e-38).sum())
        optimizer.step()
        tiny = H * np.float32(1e-25)
        far = np.concatenate([H, -H]) * 100
        return [
            w.data,
            *ms.nt_xent_value_and_grad(tiny, tiny[::-1], 0.005),
            *ms.nt_xent_value_and_grad(far, far, 0.005, method="exact"),
            ms.nt_xent(far, far[::-1], 0.005, method="composed").data,
            ms.knn_accuracy(tiny, Y, tiny, Y, k=3, temperature=0.001),
            ms.linear_probe(tiny, Y, tiny, Y, iterations=3),
            ms.contrastive_accuracy(tiny, tiny),
            *ms.two_views(IMAGES, rng, 8, 1.0, True),
            *ms.embed(model(), IMAGES),
            copy.deepcopy(model())(IMAGES / 255 * 1e-44, train=True)[1].data,
            ops.moments(np, tiny)[1],
        ]

    quiet = everything()
    with np.errstate(all="raise"):
        loud = everything()
    for a, b in zip(quiet, loud):
        assert_same(a, b)


def test_a_run_is_the_same_where_numpy_was_told_to_raise() -> None:
    runs = []
    for answer in ({}, {"all": "raise"}):
        with np.errstate(**answer):
            runs.append(ms.pretrain(ms.Config(size=8, batch=2, epochs=1, temperature=0.01), IMAGES).model.state_dict())
    for name, array in runs[0].items():
        assert_same(array, runs[1][name])


def test_what_numpy_warns_of_is_warned_of_and_what_the_caller_ignores_is_ignored() -> None:
    zero = np.zeros((2, 3))
    for answer in ({}, {"all": "raise"}):
        with np.errstate(**answer), pytest.warns(RuntimeWarning, match="invalid value"):
            assert np.isnan(ms.nt_xent(zero, zero, method="plain").item())
        with np.errstate(**answer), pytest.warns(RuntimeWarning, match="divide by zero"):
            assert ops.log(np.zeros(1)).item() == -np.inf
    with np.errstate(all="ignore"):
        assert ops.log(np.zeros(1)).item() == -np.inf


def test_a_users_own_floating_point_error_comes_through() -> None:
    @ms.primitive
    def broken(xp: Any, x: Array) -> Any:
        raise FloatingPointError("mine")

    with pytest.raises(FloatingPointError, match="mine"):
        broken(np.ones(2))


def test_a_bug_in_an_operation_of_the_users_keeps_its_own_error() -> None:
    @ms.primitive
    def broken(xp: Any, x: Array) -> Any:
        return x.no_such_thing, None

    with pytest.raises(AttributeError, match="no_such_thing"):
        broken(np.ones(2))


def test_a_captured_stream_is_no_array() -> None:
    refused(lambda: Tensor(io.StringIO("1 2 3")))
    refused(lambda: ops.exp(io.StringIO("1 2 3")))


def test_widths_may_be_numpys_integers() -> None:
    assert ms.resnet_small(width=np.int64(2), base=np.int32(2)).features == 16
