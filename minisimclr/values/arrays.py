"""Arrays that users give: taken as plain arrays, or refused in one line.

The plain code would believe any array. But a copy forgets the mask of a masked array, the `*` of a np.matrix is a
matrix product, a label of −1 counts as the last class, and labels (N,1) are compared with all rows. Each function here
takes one kind of array. It returns a plain one, copied only where it must change, or raises TypeError (another kind)
or ValueError (another shape or range) in one line that names the argument.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module, is_array
from .settings import axes_of, dtype_name, number, shape_of, shown, text, truth, unmasked, whole

# NumPy's letters for bool, the integers, and float16, float32 and float64. The long double has another ("g").
NUMBERS = frozenset("?bBhHiIlLqQefd")


def plain_array(data: Any, what: str = "Tensor") -> Array:
    """Return an array, a list or a number as a plain array of numbers; it is copied only where it must change.

    >>> plain_array([1, 2])
    array([1, 2])

    Raises: TypeError for masked arrays, and for what is no number of at most 64 bits; ValueError for a ragged list.
    """
    if type(data) is np.ndarray and data.dtype.char in NUMBERS and data.dtype.isnative:  # nearly always
        return data
    unmasked(data, what)
    try:
        array = (
            data if is_array(data) and not isinstance(data, np.ndarray) else np.asarray(data)
        )  # no subclass any more
    except (ValueError, OverflowError):
        raise ValueError(f"{what} must have the shape of an array, not {shown(data)}") from None
    if array.dtype.char not in NUMBERS:
        raise TypeError(
            f"{what} takes numbers (bool, integer, or float of 16, 32 or 64 bits), not dtype {dtype_name(array.dtype)}"
        )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def float_dtype(what: str, dtype: Any) -> np.dtype[Any]:
    """Return a floating-point dtype of at most 64 bits (or bfloat16) in this machine's byte order."""
    try:
        of_an_array = hasattr(dtype, "dtype") and not isinstance(dtype, (type, np.dtype))
        if dtype is None or of_an_array:  # NumPy would take the one for float64, the other for its dtype
            raise TypeError
        found: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError):
        raise TypeError(f"{what} takes a floating-point dtype, not {shown(dtype)}") from None
    if found.char not in "efd" and found.name != "bfloat16":
        raise TypeError(f"{what} takes a floating-point dtype, not {dtype_name(found)}: rounding has no gradient")
    native: np.dtype[Any] = found if found.isnative else found.newbyteorder("=")
    return native


def need_array(name: str, value: Any) -> Array:
    """Return a NumPy or CuPy array as a plain one; lists are refused."""
    if not is_array(value):
        raise TypeError(f"{name} must be an array, not {shown(value)}")
    return plain_array(value, name)


def finite_rows(name: str, h: Any) -> Array:
    """Return features as a plain array (N,D) with a row at least, none of them NaN, infinite or near to that.

    Squares of rows are summed in float32, where those of larger numbers than 1e16 may overflow.
    """
    h = need_array(name, h)
    if h.ndim != 2:
        raise ValueError(f"features must be (N,D), but {name} is {h.shape}")
    if not h.size:
        raise ValueError(f"features must hold at least one row and one column, but {name} is {h.shape}")
    if not (abs(h.min()) <= 1e16 and abs(h.max()) <= 1e16):  # a NaN is both minimum and maximum
        raise ValueError(f"features must be finite, and at most 1e16 in size; {name} has others")
    return h


def class_labels(name: str, y: Any, rows: int) -> NDArray[np.int64]:
    """Return labels as int64 (N,) on the host: whole numbers from 0 on, one for each row."""
    if isinstance(y, (list, tuple)):
        y = plain_array(y, name)
    y = need_array(name, y)
    if y.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {y.dtype}")
    if y.shape != (rows,):
        raise ValueError(f"{name} must have the shape ({rows},), one label per row expected, not {y.shape}")
    if y.size and not 0 <= int(y.min()) <= int(y.max()) < 2**31:  # −1 would silently be the last class
        raise ValueError(f"{name} must be from 0 on and below 2³¹, not {int(y.min())} to {int(y.max())}")
    labels: NDArray[np.int64] = np.asarray(y if isinstance(y, np.ndarray) else y.get(), np.int64)
    return labels


def features_and_labels(
    train_h: Any, train_y: Any, test_h: Any, test_y: Any
) -> tuple[Array, NDArray[np.int64], Array, NDArray[np.int64]]:
    """Return features and labels as plain arrays that fit together: (M,D), (M,), (N,D), (N,)."""
    train_h, test_h = finite_rows("train_h", train_h), finite_rows("test_h", test_h)
    if train_h.shape[1] != test_h.shape[1]:
        raise ValueError(f"features must be (N,D) with one D, not {train_h.shape} and {test_h.shape}")
    return train_h, class_labels("train_y", train_y, len(train_h)), test_h, class_labels("test_y", test_y, len(test_h))


def embeddings(za: Any, zb: Any, temperature: Any = 1.0) -> tuple[Array, Array, float]:
    """Return the arguments of NT-Xent as plain arrays and a float; refuse those for which it is not defined."""
    array_module(za, zb)  # raises if they are on different devices
    if not (is_array(za) and is_array(zb)):
        raise TypeError(f"embeddings must be NumPy or CuPy arrays, not {type(za).__name__} and {type(zb).__name__}")
    za, zb = plain_array(za, "NT-Xent"), plain_array(zb, "NT-Xent")
    if za.ndim != 2 or za.shape != zb.shape:
        raise ValueError(f"za and zb must be (N, D), the two views of N images, not {za.shape} and {zb.shape}")
    if za.size == 0:
        raise ValueError(f"za and zb must hold at least one embedding, not {za.shape}")
    for z in (za, zb):  # integers are refused rather than converted: they are more likely labels than embeddings
        if z.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"embeddings must be float16, float32 or float64, not {z.dtype}")
    tau = float(number("temperature", temperature))
    if not 0 < tau < np.inf:  # NaN fails both
        raise ValueError(f"temperature must be positive and finite, not {tau:g}")
    # Cosines differ by up to 2, so the logits of one anchor differ by up to 2/τ.
    if 2 / tau > float(np.finfo(computing_dtype(za, zb)).max):
        raise ValueError(f"temperature {tau:g} is too small for {computing_dtype(za, zb)}")
    return za, zb, tau


def computing_dtype(za: Array, zb: Array) -> np.dtype[Any]:
    """Return the wider of the two dtypes, and at least float32."""
    return np.result_type(za.dtype, zb.dtype, np.float32)


def check_pixels(images: Any) -> None:
    """Refuse what is no stack of float images (N,H,W,3), an array or a tensor."""
    if not hasattr(images, "shape"):
        raise TypeError(f"the encoder takes an array or a Tensor, not {shown(images)}")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"the encoder takes images of shape (N,H,W,3), not {images.shape}")
    if images.dtype.kind != "f":
        raise TypeError(f"the encoder takes float images in [0,1], not {images.dtype}; see minisimclr.to_float")


# ── Settings of an operation ──────────────────────────────────────────────────────────────────────

# By the declared type, as it is written; a setting of any other type is taken as it comes.
READERS: dict[str, Callable[[str, Any], Any]] = {
    "int": whole,
    "float": number,
    "bool": truth,
    "str": text,
    "Array": need_array,
    "Axis": axes_of,
    "tuple[int, ...]": shape_of,
    "tuple[int, ...] | None": axes_of,
}


def taken_as_they_are(readers: dict[str, Callable[[str, Any], Any]]) -> frozenset[tuple[str, type]]:
    """Return the settings that need no reader: each name with the exact types that its reader returns unchanged."""
    types: dict[Any, tuple[type, ...]] = {whole: (int,), number: (int, float), truth: (bool,), text: (str,)}
    types |= {axes_of: (int, type(None)), shape_of: (int,)}
    return frozenset((name, kind) for name, reader in readers.items() for kind in types.get(reader, ()))


def readers_of(function: Callable[..., Any]) -> dict[str, Callable[[str, Any], Any]]:
    """Return the readers of an operation's settings, by name; a type that is not in READERS has none."""
    declared = {p.name: p.annotation for p in inspect.signature(function).parameters.values()}
    named = {name: getattr(kind, "__name__", kind) for name, kind in declared.items()}
    return {name: READERS[kind] for name, kind in named.items() if isinstance(kind, str) and kind in READERS}


# ── What a module holds ───────────────────────────────────────────────────────────────────────────


def members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield an attribute with its name, or what a list, tuple or dict of that name holds, as "name.0", "name.1" …

    >>> dict(members("blocks", ["a", {"b": "c"}]))
    {'blocks.0': 'a', 'blocks.1.b': 'c'}
    """
    if isinstance(value, (list, tuple, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from members(f"{name}.{key}", item)
    else:
        yield name, value


def refuse_hidden(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    """Refuse an attribute of a module whose layers or parameters would not be found, and so never be trained."""
    objects = value.ravel().tolist() if isinstance(value, np.ndarray) and value.dtype == object else []
    items = [*value] if isinstance(value, (set, frozenset, deque)) else objects
    if any(isinstance(item, kinds) for item in items):
        raise TypeError(f"{name}: layers are not found in a {type(value).__name__}; use a list or a dict")


# ── Weights that are not drawn ────────────────────────────────────────────────────────────────────


def drawing_zeros(most: int) -> np.random.Generator:
    """Return a generator that draws at most so many zeros: a network's names and shapes are asked for, not its weights.

    Raises: ValueError, when it draws, for a network of more weights than `most`; they are then not made.
    """

    class Zeros(np.random.Generator):  # in here, since NumPy loads its random numbers when they are first named
        left = most

        def standard_normal(self, shape: Any, dtype: Any = np.float32) -> np.ndarray[Any, Any]:  # type: ignore[override]
            """Draw zeros in place of numbers from N(0,1)."""
            self.left -= math.prod(shape)
            if self.left < 0:
                raise ValueError("the network that it describes has more weights than there are")
            return np.zeros(shape, dtype)

        def uniform(self, low: float, high: float, shape: Any) -> np.ndarray[Any, Any]:  # type: ignore[override]
            """Draw zeros in place of numbers from low to high."""
            return self.standard_normal(shape if isinstance(shape, tuple) else (shape,))

    return Zeros(np.random.PCG64(0))


def view_pair(given: Any, count: int) -> tuple[Array, Array]:
    """Return what a function of one's own gave as two views of each of `count` images.

    Shapes: two arrays (B,H,W,3) of one shape -> the same
    Raises: ValueError for anything else: fewer views would be another, smaller batch.
    """
    shapes: list[Any] = [getattr(views, "shape", ()) for views in given] if isinstance(given, (tuple, list)) else []
    if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][0] != count or shapes[0][3] != 3:
        told = " and ".join(map(str, shapes)) if shapes else shown(given)
        raise ValueError(f"views must return two float arrays ({count},H,W,3), one view of each image, not {told}")
    return given[0], given[1]
