"""Arrays and the devices on which they live: NumPy or CuPy.

The formulas in all other files are written once, for an array module called `xp`:

    xp = array_module(x)        # numpy for a NumPy array, cupy for a CuPy array
    y = xp.exp(x)

So no formula depends on the device; other files ask for it to choose the faster form. Only this one imports CuPy.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# numpy.ndarray or cupy.ndarray. The two share their interface but no type, so a type checker can only be told "any".
# Where an array is always on the host, the code says NDArray[…] instead.
Array: TypeAlias = Any


# ── Array modules ─────────────────────────────────────────────────────────────────────────────────


def array_module(*values: Any) -> ModuleType:
    """Return the module, numpy or cupy, that computes on these arrays; numpy if none of them is an array.

    >>> array_module(np.ones(3)).__name__
    'numpy'

    Raises: TypeError if NumPy and CuPy arrays are mixed, because we never copy between devices silently.
    """
    # A CuPy array cannot exist before somebody has imported CuPy. So we look whether CuPy is imported, and do not
    # import it here: that would cost seconds, on machines without a GPU too.
    cupy = sys.modules.get("cupy")
    if cupy is None:  # the usual case on a CPU: no array is looked at
        return np
    # Numbers and lists are left out: they fit either kind of array.
    on_gpu = [isinstance(value, cupy.ndarray) for value in values if is_array(value)]
    if not any(on_gpu):  # NumPy arrays only, or no array at all
        return np
    if not all(on_gpu):  # a silent copy would hide a transfer that costs more than the operation
        raise TypeError("NumPy and CuPy arrays are mixed; move them first: backend.to_device(array, device)")
    return cupy


def is_array(value: Any) -> bool:
    """Tell whether this is a NumPy or CuPy array; numbers, lists and NumPy scalars are not."""
    if isinstance(value, np.ndarray):  # the question that needs no CuPy comes first
        return True
    cupy = sys.modules.get("cupy")  # None as long as nobody has imported it
    return cupy is not None and isinstance(value, cupy.ndarray)


# ── From one device to the other ──────────────────────────────────────────────────────────────────


def to_device(array: Array, device: str) -> Array:
    """Return the array on `device`, "cpu" or "cuda"; it is not copied if it is there already.

    Raises: ValueError for another device; RuntimeError if there is no usable GPU.
    """
    if device == "cpu":
        # `get` waits until the GPU has computed the array. So every copy to the host makes Python wait.
        return array if isinstance(array, np.ndarray) else array.get()
    if device == "cuda":
        return _cupy().asarray(array)  # raises here, in one line, if there is no GPU
    raise ValueError(f'device must be "cpu" or "cuda", not {device!r}')


def to_numpy(array: Array) -> NDArray[Any]:
    """Return the array as a NumPy array on the host."""
    on_host: NDArray[Any] = to_device(array, "cpu")  # a name of its own tells the type checker that it is NumPy's
    return on_host


def device_of(*arrays: Any) -> str:
    """Return the device of the arrays: "cpu" or "cuda".

    Raises: TypeError if they are on both.
    """
    return "cpu" if array_module(*arrays) is np else "cuda"  # a mixture does not get past array_module


# ── Facts about a device ──────────────────────────────────────────────────────────────────────────


def device_name(device: str) -> str:
    """Name of the device and its driver. Checkpoints store it: results are bit-identical only on the same device."""
    if device == "cpu":  # which processor it is, and which BLAS, the checkpoint stores beside this name
        return "cpu"
    cupy = _cupy()
    if not hasattr(cupy.cuda, "runtime"):  # the stand-in for CuPy of the tests
        return f"no GPU, CuPy {cupy.__version__}"
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]  # bytes, as the driver gives it
    return f"{name.decode()}, CuPy {cupy.__version__}"


def require(device: str) -> None:
    """Check that a device can be used here, before any work is done for it.

    Raises: RuntimeError, in one line that says what is missing.
    """
    if device == "cuda":  # a CPU is always there
        _cupy()


def whose_memory(error: MemoryError) -> str:
    """Return the end of a message about this MemoryError: " on the GPU" if CuPy raised it, else ""."""
    # CuPy's OutOfMemoryError is a MemoryError too, so only the module that defines it tells them apart.
    return " on the GPU" if type(error).__module__.partition(".")[0] == "cupy" else ""


def compute_capability() -> tuple[int, int]:
    """Generation of the GPU: (9, 0) is an H100; from (8, 0) on there are tensor cores for TF32 and bfloat16."""
    return divmod(int(_cupy().cuda.Device().compute_capability), 10)  # CuPy says "90" for (9, 0)


def free_bytes(device: str) -> float:
    """Free bytes on the device; infinity for the CPU, where we leave the limit to the operating system."""
    if device == "cpu" or not hasattr(_cupy().cuda, "runtime"):  # the stand-in's arrays are on the host, too
        return math.inf
    return float(_cupy().cuda.runtime.memGetInfo()[0])  # (free, total)


def _cupy() -> Any:
    """Import CuPy.

    Raises: RuntimeError, in one line that says what is missing.
    """
    try:
        import cupy  # not at the top of the file: it takes seconds, and most machines do not have it
    except ImportError:  # a traceback would say less in ten lines than this message in one
        raise RuntimeError(
            'device "cuda" needs CuPy: pip install "cupy-cuda12x[ctk]" (or 13x); or use device "cpu"'
        ) from None
    if not cupy.cuda.is_available():  # `import cupy` succeeds without a GPU
        raise RuntimeError('device "cuda": CuPy finds no usable GPU or driver; use device "cpu"')
    return cupy
