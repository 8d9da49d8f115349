"""The CUDA kernels of NT-Xent without a GPU: compiled for two of them, and run on a CPU.

`fibres.h` runs the very same file on a CPU, thread by thread, in an order that is shuffled at every
barrier. So a result that is right, and the same bit for bit for every shuffle, does not owe it to the order.
The tests marked `gpu` repeat the comparison on a real one.
"""

from __future__ import annotations

import ctypes
import glob
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_ntxent import KINDS, check_accuracy, rows, views

from minisimclr import backend
from minisimclr.ntxent import METHODS, cuda, nt_xent_value_and_grad
from minisimclr.ntxent import loss as readable

pytestmark = pytest.mark.host

HERE = Path(__file__).parent
CODE = cuda.SOURCE.read_text(encoding="utf-8")
BARRIERS = len(re.findall(r"^ *__syncthreads\(\);", CODE, re.MULTILINE))


# ── Compiled for a GPU ────────────────────────────────────────────────────────────────────────────

def test_nvcc_compiles(tmp_path: Path) -> None:
    """To machine code of both GPUs: only then is the assembly checked, and that shared memory suffices."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (80, 90)]
    command = [nvcc, *targets, "--threads=2", "-fatbin", "-Werror=all-warnings",
               "-o", str(tmp_path / "out"), str(cuda.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def nvrtc() -> Any:
    """NVRTC, the compiler that CuPy uses, from a wheel in this environment or from the system."""
    found = [path for folder in sys.path for path in
             glob.glob(f"{folder}/nvidia/*/lib/libnvrtc.so.1*") + glob.glob(f"{folder}/nvidia/*/lib/libnvrtc.so")]
    for name in [*found, "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_nvrtc_compiles(target: str) -> None:
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    code = cuda.ascii_source().encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code, b"ntxent.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 2)(f"--gpu-architecture={target}".encode(), b"--std=c++17")
    result = library.nvrtcCompileProgram(program, 2, options)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert result == 0, log.value.decode()
    assert library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    assert size.value > 0
    library.nvrtcDestroyProgram(ctypes.byref(program))


def test_the_launches_fit_the_kernels() -> None:
    for name in ("THREADS", "ROWS", "SLAB"):
        assert re.search(rf"#define {name} +{getattr(cuda, name)}\b", CODE), name
    assert tuple(re.findall(r"__launch_bounds__\(THREADS\)\n(\w+)\(", CODE)) == cuda.KERNELS


# ── Run on a CPU ──────────────────────────────────────────────────────────────────────────────────

class OnFibres:
    """The kernels as cuda.py launches them, and what a test may change about them."""

    def __init__(self, library: Path) -> None:
        self.library, self.seed = ctypes.CDLL(str(library)), 0

    def kernel(self, name: str) -> Callable[..., None]:
        function = getattr(self.library, f"run_{name}")
        function.restype = ctypes.c_bool

        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            # An array is passed as its address, a number as it is: here a pointer to either.
            values = [np.array(x.ctypes.data if isinstance(x, np.ndarray) else x) for x in arguments]
            pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
            if not function(grid[0], block[0], self.seed, pointers):
                raise RuntimeError(f"{name}: threads wait for each other for ever")

        return launch

    def __call__(self, za: Any, zb: Any, temperature: float) -> tuple[Any, Any, Any]:
        kernels = {name: self.kernel(name) for name in cuda.KERNELS}
        return cuda._launch(np, kernels, np.ascontiguousarray(za), np.ascontiguousarray(zb), temperature)


def build(folder: Path, *options: str, code: str = CODE) -> Path:
    """The kernels as a library for this CPU. (A hardened longjmp takes a change of fibres for an attack.)"""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    kernels = "\n".join(f"KERNEL({name})" for name in cuda.KERNELS)
    source, library = folder / "ntxent.cpp", folder / "ntxent.so"
    source.write_text(f'#include "fibres.h"\n{code}\n{kernels}\n', encoding="utf-8")
    command = [compiler, "-std=c++17", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE", f"-I{HERE}", *options,
               "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return library


@pytest.fixture(scope="session")
def on_fibres(tmp_path_factory: pytest.TempPathFactory) -> OnFibres:
    return OnFibres(build(tmp_path_factory.mktemp("fibres"), "-O2"))


@pytest.fixture
def fibres(on_fibres: OnFibres, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnFibres]:
    """The kernels on this CPU, also as method "fibres"."""
    monkeypatch.setitem(METHODS, "fibres", on_fibres)
    on_fibres.seed = 0
    yield on_fibres
    on_fibres.library.leave_out(-1)


def single(n: int, d: int, seed: int = 0) -> tuple[Any, Any]:
    a, b = views(n, d, seed)
    return a.astype(np.float32), b.astype(np.float32)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1, 1])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (5, 32), (33, 3), (64, 16), (65, 130)])
def test_kernels_equal_the_readable_version(fibres: OnFibres, n: int, d: int, temperature: float) -> None:
    a, b = single(n, d, seed=1)
    exact = readable.value_and_grad(a.astype(np.float64), b.astype(np.float64), temperature)
    result = fibres(a, b, temperature)
    allowed = 5e-6 * max(1, 0.05 / temperature)
    assert float(result[0]) == pytest.approx(float(exact[0]), rel=allowed)
    for g, e in zip(result[1:], exact[1:]):
        assert np.linalg.norm(g - e) <= allowed * np.linalg.norm(e) + 1e-12 / temperature


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_of_the_kernels(fibres: OnFibres, kind: str) -> None:
    for temperature in (1e-3, 0.05, 1e3):
        for n, d in [(1, 8), (3, 16), (33, 20)]:
            check_accuracy("fibres", kind, n, d, temperature, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_of_the_kernels_in_large_batches(fibres: OnFibres, kind: str) -> None:
    for temperature in (0.01, 0.1, 1):
        for n, d in [(129, 130), (2, 512), (300, 64)]:
            check_accuracy("fibres", kind, n, d, temperature, seed=12)


def test_the_order_of_threads_changes_no_bit(fibres: OnFibres) -> None:
    a, b = single(66, 20, seed=2)
    first = fibres(a, b, 0.1)
    for fibres.seed in (1, 2, 3):
        for x, y in zip(fibres(a, b, 0.1), first):
            np.testing.assert_array_equal(x, y)


def test_zero_rows(fibres: OnFibres) -> None:
    a, b = single(4, 16, seed=14)
    a[1] = 0
    exact = readable.value_and_grad(a.astype(np.float64), b.astype(np.float64), 0.1)
    loss, da, db = fibres(a, b, 0.1)
    assert float(loss) == pytest.approx(float(exact[0]), rel=1e-6)
    assert not da[1].any()
    np.testing.assert_allclose(da, exact[1], atol=1e-6)
    np.testing.assert_allclose(db, exact[2], atol=1e-6)
    loss, da, db = fibres(0 * a, 0 * b, 0.1)
    assert float(loss) == pytest.approx(np.log(7), rel=1e-6)
    assert not da.any()
    assert not db.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 2, 70])
def test_not_finite_in_nan_out(fibres: OnFibres, bad: float, n: int) -> None:
    for where in (0, 1):
        ab = single(n, 3)
        ab[where][n - 1] = 0
        ab[where][n - 1, 1] = bad
        assert np.isnan(fibres(*ab, 0.1)[0])


def test_one_image_has_no_negatives(fibres: OnFibres) -> None:
    loss, da, db = fibres(*single(1, 40), 0.1)
    assert loss == 0
    assert not da.any()
    assert not db.any()


@pytest.mark.parametrize("temperature", [1e-38, 1e-30, 1e30, 1e300])
def test_any_temperature(fibres: OnFibres, temperature: float) -> None:
    loss, da, db = fibres(*single(3, 4), temperature)
    assert np.isfinite(loss)
    assert np.isfinite(da).all()
    assert np.isfinite(db).all()


# ── The harness sees planted faults ───────────────────────────────────────────────────────────────

@pytest.mark.parametrize("number", range(BARRIERS))
def test_a_missing_barrier_is_seen(fibres: OnFibres, number: int) -> None:
    a, b = single(66, 20, seed=3)
    right = np.concatenate(fibres(a, b, 0.1)[1:])
    fibres.library.leave_out(number)
    assert not np.array_equal(np.concatenate(fibres(a, b, 0.1)[1:]), right)


SANITIZED = """
import sys; sys.path[:0] = sys.argv[2:]
import numpy as np
from test_ntxent_cuda import OnFibres, single
run = OnFibres(sys.argv[1])
for n, d in [(1, 1), (3, 16), (65, 17)]:
    a, b = (z.reshape(-1).copy().reshape(n, d) for z in single(n, d))
    assert np.isfinite(run(a, b, 0.1)[0])
print("done")
"""


def sanitized(folder: Path, code: str = CODE) -> subprocess.CompletedProcess[str]:
    library = build(folder, "-O1", "-fsanitize=address", code=code)
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).exists():
        pytest.skip("g++ has no AddressSanitizer here")
    environment = os.environ | {"LD_PRELOAD": os.path.realpath(runtime), "ASAN_OPTIONS": "detect_leaks=0",
                                "PYTHONMALLOC": "malloc"}
    return subprocess.run([sys.executable, "-c", SANITIZED, library, str(HERE)], env=environment,
                          capture_output=True, text=True, timeout=300)


def test_address_sanitizer(tmp_path: Path) -> None:
    done = sanitized(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"


@pytest.mark.slow
@pytest.mark.parametrize(("right", "wrong"), [
    ("if (row < n && d < width)", "if (d < width)"),
    ("if (image >= N) return;", ""),
    ("if (threadIdx.x % 16 == 0 && i < n)", "if (threadIdx.x % 16 == 0)"),
    ("j < n ? weight[j] : 0", "weight[j]"),
])
def test_address_sanitizer_sees_a_missing_bound(right: str, wrong: str, tmp_path: Path) -> None:
    assert CODE.count(right) == 1
    done = sanitized(tmp_path, CODE.replace(right, wrong))
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr


# ── The choice of the method ──────────────────────────────────────────────────────────────────────

def test_numpy_arrays_are_refused() -> None:
    z = np.ones((2, 2), np.float32)
    with pytest.raises(RuntimeError, match='method "cuda" takes CuPy arrays'):
        nt_xent_value_and_grad(z, z, method="cuda")


# ── On a GPU ──────────────────────────────────────────────────────────────────────────────────────

@pytest.fixture
def on_gpu() -> Callable[..., tuple[float, Any, Any]]:
    """nt_xent_value_and_grad on the GPU, of and to NumPy arrays."""
    try:
        backend.to_device(np.zeros(1), "cuda")
    except RuntimeError as error:
        pytest.skip(str(error))

    def run(za: Any, zb: Any, temperature: float, method: str = "cuda") -> tuple[float, Any, Any]:
        za, zb = (backend.to_device(z, "cuda") for z in (za, zb))
        loss, da, db = nt_xent_value_and_grad(za, zb, temperature, method)
        return loss, backend.to_numpy(da), backend.to_numpy(db)

    return run


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.05, 0.1, 1, 1e3])
def test_accuracy_on_a_gpu(on_gpu: Any, kind: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "on gpu", lambda za, zb, t: on_gpu(za, zb, t) if za.dtype == np.float32 else None)
    for n, d in [(1, 8), (2, 512), (5, 130), (129, 32), (1000, 128), (4096, 128)]:
        check_accuracy("on gpu", kind, n, d, temperature, seed=11)


@pytest.mark.gpu
def test_a_gpu_repeats_itself_bit_for_bit(on_gpu: Any) -> None:
    a, b = single(1000, 128, seed=4)
    first = on_gpu(a, b, 0.1)
    for x, y in zip(on_gpu(a, b, 0.1), first):
        np.testing.assert_array_equal(x, y)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_auto_on_a_gpu(on_gpu: Any, dtype: Any) -> None:
    a, b = (z.astype(dtype) for z in views(50, seed=5))
    expected = nt_xent_value_and_grad(a, b, 0.1)
    result = on_gpu(a, b, 0.1, "auto")
    assert result[0] == pytest.approx(expected[0], rel=1e-5)
    for g, e in zip(result[1:], expected[1:]):
        assert g.dtype == dtype
        np.testing.assert_allclose(g, e, rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
def test_what_a_gpu_cannot(on_gpu: Any) -> None:
    z = np.ones((2, 2))
    with pytest.raises(TypeError, match="float32"):
        on_gpu(z, z, 0.1)
    a, b = rows("random", 5, 8, np.random.default_rng(6))
    a[1, 1] = np.nan
    assert np.isnan(on_gpu(a, b, 0.1)[0])
