"""A strict stand-in for CuPy: its names on NumPy's arithmetic, so that the GPU's code path runs without a GPU.

With tests/stand_in on sys.path, `import cupy` finds this. It knows only what the real one has (names.txt,
parameters included), and refuses or counts what would go wrong, or be slow, on a GPU:

* its arrays do not mix with NumPy's, in either direction, also where CuPy would copy silently;
* a reduction, or an element, is an array of no dimensions, not a number;
* whatever makes Python wait for the GPU (float(x), if x, x.get(), x[mask] …) is written into `_traffic`;
* an index array that points outside wraps around in CuPy, which hides mistakes: here it is an error;
* no `writeable`, no errstate, no reduction of a ufunc but of add and multiply; no kernels (RawModule …).

It is not a simulator: order, streams and memory pools are not modelled.
"""

from ._strict import _traffic, everything

__version__ = "14.2.0"
__all__ = ["_traffic"]

globals().update(everything())
del everything
