"""Where arrays live: NumPy or CuPy.

Everything above this file is written once, for an array module called `xp`:

    xp = array_module(x)        # numpy for a NumPy array, cupy for a CuPy array
    y = xp.exp(x)

so no other file asks which device it runs on, and this is the only one that imports CuPy.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray: the two share their interface, not a type


# ── Array modules ─────────────────────────────────────────────────────────────────────────────────


def array_module(*values: Any) -> ModuleType:
    """The module, numpy or cupy, that computes on these arrays (NumPy if none of them is an array).

    Raises TypeError if NumPy and CuPy arrays are mixed: we never copy between devices silently.
    """
    cupy = sys.modules.get("cupy")  # a CuPy array cannot exist before somebody imported CuPy
    if cupy is None:
        return np
    on_gpu = [isinstance(value, cupy.ndarray) for value in values if is_array(value)]
    if not any(on_gpu):
        return np
    if not all(on_gpu):
        raise TypeError("NumPy and CuPy arrays are mixed; move them first: backend.to_device(array, device)")
    return cupy


def is_array(value: Any) -> bool:
    """Whether this is a NumPy or CuPy array (numbers, lists and NumPy scalars are not)."""
    if isinstance(value, np.ndarray):
        return True
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def to_device(array: Array, device: str) -> Array:
    """The array on `device`, "cpu" or "cuda"; no copy if it is there already."""
    if device == "cpu":
        return array if isinstance(array, np.ndarray) else array.get()
    if device == "cuda":
        return _cupy().asarray(array)
    raise ValueError(f'device must be "cpu" or "cuda", not {device!r}')


def to_numpy(array: Array) -> Any:
    """The array as a NumPy array on the host."""
    return to_device(array, "cpu")


def device_of(*arrays: Any) -> str:
    """Where they are: "cpu" or "cuda"."""
    return "cpu" if array_module(*arrays) is np else "cuda"


def device_name(device: str) -> str:
    """The processor that computes and what drives it: other ones round differently."""
    if device == "cpu":
        return "cpu"
    cupy = _cupy()
    if not hasattr(cupy.cuda, "runtime"):  # a stand-in, in tests
        return f"no GPU, CuPy {cupy.__version__}"
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    return f"{name.decode()}, CuPy {cupy.__version__}"


def require(device: str) -> None:
    """Raises RuntimeError, in one line that says what is missing, if this device cannot be used here."""
    if device == "cuda":
        _cupy()


def whose_memory(error: MemoryError) -> str:
    """Which memory an error says is full: CuPy's own, a MemoryError too, means the GPU's."""
    return " on the GPU" if type(error).__module__.partition(".")[0] == "cupy" else ""


def compute_capability() -> tuple[int, int]:
    """The generation of the GPU: (9, 0) is an H100; from (8, 0) on there are tensor cores for TF32 and bfloat16."""
    return divmod(int(_cupy().cuda.Device().compute_capability), 10)


def free_bytes(device: str) -> float:
    """Memory that arrays on this device may still take; of the host's we never run out before the system does."""
    if device == "cpu" or not hasattr(_cupy().cuda, "runtime"):
        return math.inf
    return float(_cupy().cuda.runtime.memGetInfo()[0])


def _cupy() -> Any:
    """CuPy, or a one-line error that says what is missing."""
    try:
        import cupy
    except ImportError:
        raise RuntimeError(
            'device "cuda" needs CuPy: pip install "minisimclr[cuda12]" (or cuda13); or use device "cpu"'
        ) from None
    if not cupy.cuda.is_available():  # `import cupy` succeeds without a GPU
        raise RuntimeError('device "cuda": CuPy finds no usable GPU or driver; use device "cpu"')
    return cupy
