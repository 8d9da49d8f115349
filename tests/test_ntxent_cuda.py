"""The CUDA kernels of NT-Xent without a GPU: compiled for two of them, and run on a CPU.

`Gpu` below is what cuda.py needs of CuPy. Its RawModule builds the very same files for this CPU; `fibres.h` runs
them, thread by thread, in an order that is shuffled at every barrier. So a result that is right, and the same bit
for bit for every shuffle, does not owe it to the order.
The tests marked `gpu` repeat the comparison on a real one.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_ntxent import KINDS, check_accuracy, rows, views

from minisimclr import backend
from minisimclr.ntxent import METHODS, cuda, exact, nt_xent, nt_xent_value_and_grad

pytestmark = pytest.mark.host("the kernels run on fibres, or on a real GPU")

HERE = Path(__file__).parent
PRECISIONS = {"cuda": cuda.FLOAT32, "cuda-bf16x3": cuda.BFLOAT16X3, "cuda-bf16": cuda.BFLOAT16}
# One bfloat16 product is what three of them begin with: its own runs are left to the slow tier.
TENSOR = ["cuda-bf16x3", pytest.param("cuda-bf16", marks=pytest.mark.slow)]
AS_CUPY_DOES = ("--std=c++17", "-ftz=true", "--device-as-default-execution-space")  # cupy/cuda/compiler.py
# How many times the error of float32 each may make; cuda.py states what is measured.
TIMES = {"cuda": 1, "cuda-bf16x3": 12, "cuda-bf16": 6000}

FLUSHED = 3e-33  # with -ftz=true an entry below 1.2e-38 becomes 0: an error of 5e-6 in a row of this length


# ── Compiled for a GPU ────────────────────────────────────────────────────────────────────────────


def by_nvcc(code: str, target: str, options: tuple[str, ...], folder: Path) -> str:
    """Compile to machine code, which checks assembly and shared memory; return the compiler's remarks."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    source = folder / "kernels.cu"
    source.write_text(code, encoding="utf-8")
    command = [
        nvcc,
        f"-arch={target}",
        "-cubin",
        "-Xptxas=-v",
        "-Werror=all-warnings",
        "--std=c++17",
        "-ftz=true",
        *options,
        "-o",
        str(folder / "out"),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def by_nvrtc(code: str, target: str, options: tuple[str, ...], folder: Path) -> str:
    """The same by NVRTC, as CuPy does it, from a wheel in this environment or from the system."""
    found = [
        path
        for path_ in sys.path
        for path in glob.glob(f"{path_}/nvidia/*/lib/libnvrtc.so.1*") + glob.glob(f"{path_}/nvidia/*/lib/libnvrtc.so")
    ]
    library = next(filter(None, map(loaded, [*found, "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"])), None)
    if library is None:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None) == 0
    every = [f"--gpu-architecture={target}", "--ptxas-options=-v", *AS_CUPY_DOES, *options]
    result = library.nvrtcCompileProgram(program, len(every), (ctypes.c_char_p * len(every))(*map(str.encode, every)))
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert result == 0, log.value.decode()
    assert library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    assert size.value > 0
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode()


def loaded(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def check_compiles(compiler: Callable[..., str], precision: cuda.Precision, target: str, folder: Path) -> None:
    remarks = compiler(cuda.ascii_source(precision), target, precision.options, folder)
    assert len(re.findall(r"Compiling entry function", remarks)) == len(cuda.KERNELS)
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", remarks)
    assert spilled == [("0", "0")] * len(cuda.KERNELS)  # registers suffice


@pytest.mark.slow
def test_a_compiler_for_gpus_accepts_the_kernels(tmp_path: Path) -> None:
    check_compiles(by_nvcc if shutil.which("nvcc") else by_nvrtc, cuda.BFLOAT16X3, "sm_90", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [by_nvcc, by_nvrtc])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", PRECISIONS)
def test_each_compiler_accepts_all_kernels(compiler: Any, target: str, name: str, tmp_path: Path) -> None:
    check_compiles(compiler, PRECISIONS[name], target, tmp_path)


# ── The shape of the launches ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_launches_fit_the_kernels(name: str) -> None:
    precision = PRECISIONS[name]
    terms = 3 if precision.parts == 2 else precision.parts
    code = cuda.source(precision)
    sizes = {"TERMS": str(terms)}
    for size, meaning in re.findall(r"^#define (\w+) +(.*?) *(?://.*)?$", code, re.MULTILINE):
        choice = re.fullmatch(r"\(TERMS == 1 \? (\d+) : (\d+)\)", meaning)
        sizes[size] = choice[1 if terms == 1 else 2] if choice else meaning
    assert (sizes["THREADS"], sizes["ROWS"], sizes["COLUMNS"]) == (
        str(cuda.THREADS),
        str(precision.rows),
        str(precision.columns),
    )
    if precision.parts:
        assert (sizes["PARTS"], sizes["DEPTH"]) == (str(precision.parts), str(precision.most_entries))
        assert precision.options == (f"-DTERMS={terms}",)
    assert tuple(re.findall(r"__launch_bounds__\(THREADS\)\n(\w+)\(", code)) == cuda.KERNELS


@pytest.mark.parametrize("tile", [32, 64, 128])
@pytest.mark.parametrize("n", [2, 130, 512, 8192])
def test_the_blocks_shares_cover_each_column_once_and_none_is_idle(n: int, tile: int) -> None:
    for blocks in (0, 1, 2, 3, 7, 66, 10**6):
        share, shares = cuda.shared_out(n, tile, blocks)
        assert share % tile == 0
        assert (shares - 1) * share < n <= shares * share
        assert shares <= max(1, blocks)


def test_few_anchors_are_spread_over_the_gpu_and_many_need_not_be() -> None:
    assert cuda.shared_out(512, 128, 2 * 132 // 8) == (128, 4)  # N = 256: as many blocks as there are tiles
    assert cuda.shared_out(8192, 128, 2 * 132 // 128) == (4096, 2)  # N = 4096: two for each multiprocessor
    assert cuda.shared_out(131072, 128, 2 * 132 // 2048) == (131072, 1)


# ── Run on a CPU ──────────────────────────────────────────────────────────────────────────────────


class Device:
    """A GPU that has as many multiprocessors as its number says."""

    def __init__(self, number: int) -> None:
        self.id, self.attributes = number, {"MultiProcessorCount": number}

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *problem: object) -> None:
        pass


class Gpu:
    """The part of CuPy that cuda.py needs, on this CPU, with what a test may change about it."""

    float32, int32, empty, ascontiguousarray = np.float32, np.int32, staticmethod(np.empty), np.ascontiguousarray
    cuda = SimpleNamespace(Device=Device)

    def __init__(self, folder: Path, *options: str, change: tuple[str, str] = ("", "")) -> None:
        self.folder, self.options, self.change = folder, ("-O1", *options), change
        self.seed, self.libraries, self.launched = 0, list[Any](), list[Any]()

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> Any:
        assert code.isascii()
        library = ctypes.CDLL(str(self.build(code, options)))
        self.libraries.append(library)
        return SimpleNamespace(get_function=functools.partial(self.function, library, code))

    def build(self, code: str, options: tuple[str, ...]) -> Path:
        """The kernels as a library for this CPU. (A hardened longjmp takes a change of fibres for an attack.)"""
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("g++ is not installed")
        library = self.folder / (hashlib.sha256(f"{code} {options}".encode()).hexdigest()[:16] + ".so")
        if not library.exists():
            source = library.with_suffix(".cpp")
            kernels = "\n".join(f"KERNEL({name})" for name in cuda.KERNELS)
            source.write_text(f'#include "fibres.h"\n{code.replace(*self.change)}\n{kernels}\n')
            command = [
                compiler,
                *options,
                *self.options,
                "-shared",
                "-fPIC",
                "-w",
                "-U_FORTIFY_SOURCE",
                f"-I{HERE}",
                "-o",
                str(library),
                str(source),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        return library

    def function(self, library: Any, code: str, name: str) -> Callable[..., None]:
        function = getattr(library, f"run_{name}")
        function.restype = ctypes.c_bool
        signature = re.search(rf"\n{name}\((.*?)\) {{", code, re.DOTALL)
        assert signature
        types = [declared.split()[-2] for declared in signature[1].split(",")]
        dtypes = {"float*": np.float32, "int*": np.int32, "float": np.float32, "int": np.int32}

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            assert len(arguments) == len(types)
            for declared, argument in zip(types, arguments):  # a GPU would take whatever bits it gets
                assert argument.dtype == dtypes[declared], (name, declared, argument)
                assert isinstance(argument, np.ndarray) == declared.endswith("*"), (name, declared, argument)
                assert not isinstance(argument, np.ndarray) or argument.flags.c_contiguous
            self.launched.append((name, grid))
            # An array is passed as its address, a number as it is: here a pointer to either.
            values = [np.array(x.ctypes.data if isinstance(x, np.ndarray) else x) for x in arguments]
            pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
            columns, height = (*grid, 1)[:2]
            if not function(columns, height, block[0], self.seed, pointers):
                raise RuntimeError(f"{name}: threads wait for each other for ever, or a block arrives too early")

        return launch


class OnGpu(np.ndarray[Any, Any]):
    """An array that cuda.py takes for one of CuPy's."""

    device = Device(8)


class Fibres:
    """A method of nt_xent_value_and_grad on fibres, of and to NumPy arrays."""

    def __init__(self, gpu: Gpu, method: str) -> None:
        self.gpu, self.method = gpu, METHODS[method]

    def __call__(self, za: Any, zb: Any, temperature: float, processors: int = 8) -> tuple[Any, Any, Any]:
        a, b = za.view(OnGpu), zb.view(OnGpu)
        a.device = Device(processors)
        return self.method(a, b, temperature)


@pytest.fixture(scope="session")
def session_gpu(tmp_path_factory: pytest.TempPathFactory) -> Gpu:
    return Gpu(tmp_path_factory.mktemp("fibres"))


@pytest.fixture
def gpu(session_gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    monkeypatch.setattr(cuda, "array_module", lambda *arrays: session_gpu)
    session_gpu.seed = 0
    yield session_gpu
    for library in session_gpu.libraries:
        library.leave_out(-1)


@pytest.fixture(params=["cuda", *TENSOR])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fibres(gpu: Gpu, name: str, monkeypatch: pytest.MonkeyPatch) -> Fibres:
    """The kernels of each precision in turn, on this CPU; also as method "fibres"."""
    run = Fibres(gpu, name)
    monkeypatch.setitem(METHODS, "fibres", run)
    return run


def single(n: int, d: int, seed: int = 0) -> tuple[Any, Any]:
    a, b = views(n, d, seed)
    return a.astype(np.float32), b.astype(np.float32)


def exactly(a: Any, b: Any, temperature: float) -> tuple[float, Any, Any]:
    return exact.value_and_grad(a.astype(np.float64), b.astype(np.float64), temperature)


def check_close(result: tuple[Any, ...], expected: tuple[Any, ...], temperature: float, times: float) -> None:
    allowed = times * 5e-6 * max(1, 0.05 / temperature)
    assert float(result[0]) == pytest.approx(float(expected[0]), rel=allowed)
    for g, e in zip(result[1:], expected[1:]):
        assert np.linalg.norm(g - e) <= allowed * np.linalg.norm(e) + times * 1e-12 / temperature


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (5, 32), (33, 3), (65, 130)])
def test_kernels_equal_the_exact_form(fibres: Fibres, name: str, n: int, d: int, temperature: float) -> None:
    a, b = single(n, d, seed=1)
    check_close(fibres(a, b, temperature), exactly(a, b, temperature), temperature, TIMES[name])


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d"), [(64, 16), (65, 128), (97, 17), (200, 112)])
def test_kernels_equal_the_exact_form_in_several_tiles(fibres: Fibres, name: str, n: int, d: int) -> None:
    a, b = single(n, d, seed=8)
    for processors in (1, 2, 3, 8):
        check_close(fibres(a, b, 0.1, processors), exactly(a, b, 0.1), 0.1, TIMES[name])


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_of_the_kernels(fibres: Fibres, name: str, kind: str) -> None:
    for temperature in (1e-3, 0.05, 1e3):
        for n, d in [(1, 8), (3, 16)]:
            check_accuracy("fibres", kind, n, d, temperature, seed=11, times=TIMES[name], tiny=FLUSHED)
    check_accuracy("fibres", kind, 33, 20, 0.05, seed=11, times=TIMES[name], tiny=FLUSHED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_accuracy_of_the_kernels_at_the_ends(fibres: Fibres, name: str, kind: str, temperature: float) -> None:
    check_accuracy("fibres", kind, 33, 20, temperature, seed=11, times=TIMES[name], tiny=FLUSHED)


def test_accuracy_where_tiles_are_whole_and_shares_are_not_equal(fibres: Fibres, name: str) -> None:
    """Tiles of negatives only skip the question who is one; the last block gets fewer columns than the others."""
    a, b = single(128, 4, seed=15)
    check_close(fibres(a, b, 0.1, processors=3), exactly(a, b, 0.1), 0.1, TIMES[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_of_the_kernels_in_large_batches(fibres: Fibres, name: str, kind: str) -> None:
    for temperature in (0.01, 0.1, 1):
        for n, d in [(129, 130), (2, 512), (300, 64)]:
            check_accuracy("fibres", kind, n, d, temperature, seed=12, times=TIMES[name], tiny=FLUSHED)


def test_the_order_of_threads_and_blocks_changes_no_bit(fibres: Fibres) -> None:
    a, b = single(34, 20, seed=2)
    first = fibres(a, b, 0.1)
    for fibres.gpu.seed in (1, 2):
        for x, y in zip(fibres(a, b, 0.1), first):
            np.testing.assert_array_equal(x, y)


def test_blocks_share_the_columns_if_anchors_are_few(fibres: Fibres) -> None:
    a, b = single(66, 3, seed=9)
    alone, together = fibres(a, b, 0.1, processors=1), fibres(a, b, 0.1, processors=99)
    shares = [grid[1] for kernel, grid in fibres.gpu.launched[-6:] if kernel == "gradient"]
    assert shares[0] < shares[1]
    for x, y in zip(alone, together):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TENSOR, indirect=True)
def test_rows_too_long_for_tensor_cores_are_computed_in_float32(gpu: Gpu, name: str) -> None:
    a, b = single(3, 129)
    for x, y in zip(Fibres(gpu, name)(a, b, 0.1), Fibres(gpu, "cuda")(a, b, 0.1)):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", TENSOR, indirect=True)
def test_equal_rows_stay_equal_in_bfloat16(fibres: Fibres, name: str) -> None:
    """If all rows are equal, the loss is log(2N−1) and the gradient 0, however bfloat16 rounds the rows."""
    z = np.tile(np.linspace(-0.3, 1, 20, dtype=np.float32), (128, 1))  # whole tiles, some of negatives only
    loss, da, db = fibres(z, z, 0.1)
    assert float(loss) == pytest.approx(np.log(255), rel=1e-5)
    assert max(abs(da).max(), abs(db).max()) < 1e-4


def test_zero_rows_get_no_gradient(fibres: Fibres, name: str) -> None:
    a, b = single(4, 16, seed=14)
    a[1] = 0
    expected = exactly(a, b, 0.1)
    loss, da, db = fibres(a, b, 0.1)
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-6 * TIMES[name])
    assert not da[1].any()
    np.testing.assert_allclose(da, expected[1], atol=1e-6 * TIMES[name])
    np.testing.assert_allclose(db, expected[2], atol=1e-6 * TIMES[name])
    loss, da, db = fibres(0 * a, 0 * b, 0.1)
    assert float(loss) == pytest.approx(np.log(7), rel=1e-6)
    assert not da.any()
    assert not db.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 2, 35])
def test_not_finite_in_nan_out(fibres: Fibres, bad: float, n: int) -> None:
    for where in (0, 1):
        ab = single(n, 3)
        ab[where][n - 1] = 0
        ab[where][n - 1, 1] = bad
        assert np.isnan(fibres(*ab, 0.1)[0])


def test_one_image_has_no_negatives(fibres: Fibres) -> None:
    loss, da, db = fibres(*single(1, 40), 0.1)
    assert loss == 0
    assert not da.any()
    assert not db.any()


@pytest.mark.parametrize("temperature", [1e-38, 1e-30, 1e30, 1e300])
def test_any_temperature_gives_finite_numbers(fibres: Fibres, temperature: float) -> None:
    loss, da, db = fibres(*single(3, 4), temperature)
    assert np.isfinite(loss)
    assert np.isfinite(da).all()
    assert np.isfinite(db).all()


# ── The harness sees planted faults ───────────────────────────────────────────────────────────────


def barriers(precision: cuda.Precision) -> int:
    return len(re.findall(r"^ *__syncthreads\(\);", cuda.source(precision), re.MULTILINE))


def check_barrier(fibres: Fibres, number: int, n: int) -> None:
    """Check that without this barrier the gradient is wrong, or a block arrives before it has written all."""
    a, b = single(n, 20, seed=3)
    seen = False
    for processors in (1, 8):
        right = fibres(a, b, 0.1, processors)
        fibres(b, -a, 0.2, processors)  # leaves something else in shared memory
        for library in fibres.gpu.libraries:
            library.leave_out(number)
        try:
            seen |= not all(np.array_equal(x, y) for x, y in zip(fibres(a, b, 0.1, processors), right))
        except RuntimeError:
            seen = True
        for library in fibres.gpu.libraries:
            library.leave_out(-1)
    assert seen


@pytest.mark.parametrize("name", ["cuda"], indirect=True)
@pytest.mark.parametrize("number", range(barriers(cuda.FLOAT32)))
def test_a_missing_barrier_is_seen(fibres: Fibres, number: int) -> None:
    check_barrier(fibres, number, n=66)


@pytest.mark.parametrize("name", ["cuda-bf16x3"], indirect=True)
@pytest.mark.parametrize("number", range(barriers(cuda.BFLOAT16X3)))
def test_a_missing_barrier_is_seen_on_tensor_cores(fibres: Fibres, number: int) -> None:
    check_barrier(fibres, number, n=34)


SANITIZED = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
import numpy as np
from test_ntxent_cuda import Fibres, Gpu, cuda, single
gpu = Gpu(Path(sys.argv[1]))
cuda.array_module = lambda *arrays: gpu
for method in sys.argv[3].split():
    for n, d in [(1, 1), (3, 16), (65, 17)]:
        a, b = (z.reshape(-1).copy().reshape(n, d) for z in single(n, d))
        assert np.isfinite(Fibres(gpu, method)(a, b, 0.1)[0])
print("done")
"""


def sanitized(folder: Path, methods: str, change: tuple[str, str] = ("", "")) -> subprocess.CompletedProcess[str]:
    gpu = Gpu(folder, "-fsanitize=address", change=change)
    for method in methods.split():  # built here: the child's compiler would be preloaded too
        precision = PRECISIONS[method]
        gpu.build(cuda.ascii_source(precision), ("--std=c++17", *precision.options))
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).exists():
        pytest.skip("g++ has no AddressSanitizer here")
    environment = os.environ | {
        "LD_PRELOAD": os.path.realpath(runtime),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    return subprocess.run(
        [sys.executable, "-c", SANITIZED, folder, str(HERE), methods],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PRECISIONS)
def test_the_address_sanitizer_finds_nothing(name: str, tmp_path: Path) -> None:
    done = sanitized(tmp_path, name)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("cuda", "if (row < n && d < width)", "if (d < width)"),
        ("cuda", "if (image >= N) return;", ""),
        ("cuda", "if (threadIdx.x % LANES == 0 && i < n)", "if (threadIdx.x % LANES == 0)"),
        ("cuda", "j < n ? loss[j] : 0", "loss[j]"),
        ("cuda-bf16", "left + column < n && d < width", "d < width"),
        ("cuda-bf16x3", "min(16, 4 * (n - left - j))", "16"),
        ("cuda-bf16x3", "if (i < n && d < D) parts", "if (d < D) parts"),
        ("cuda-bf16", "bool exists = i < n && d < width;", "bool exists = d < width;"),
    ],
)
def test_address_sanitizer_sees_a_missing_bound(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    assert cuda.source(PRECISIONS[name]).count(right) == 1
    done = sanitized(tmp_path, name, (right, wrong))
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr


# ── The door ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", PRECISIONS)
def test_numpy_arrays_are_refused(method: str) -> None:
    z = np.ones((2, 2), np.float32)
    with pytest.raises(RuntimeError, match='method "cuda" takes CuPy arrays'):
        nt_xent_value_and_grad(z, z, method=method)


def test_float64_is_refused(gpu: Gpu) -> None:
    z = np.ones((2, 2)).view(OnGpu)
    with pytest.raises(TypeError, match="computes in float32"):
        nt_xent_value_and_grad(z, z, method="cuda-bf16")


def test_a_gpu_without_the_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**module: Any) -> Any:
        raise OSError("libnvrtc.so.12: cannot open shared object file")

    module = SimpleNamespace(RawModule=missing)
    monkeypatch.setattr(cuda, "kernels", cuda.kernels.__wrapped__)  # a namespace cannot be remembered
    monkeypatch.setattr(cuda, "usable", cuda.usable.__wrapped__)
    with pytest.raises(RuntimeError, match=r"cupy-cuda12x\[ctk\].*libnvrtc\.so\.12") as caught:
        cuda.kernels(module, cuda.FLOAT32)
    assert "\n" not in str(caught.value)
    assert not cuda.usable(module)  # then "auto" takes "exact"


def test_the_loss_of_tensors_takes_a_method_too() -> None:
    a, b = single(5, 4)
    assert nt_xent(a, b, 0.1, method="exact").item() == pytest.approx(nt_xent(a, b, 0.1).item(), rel=1e-6)
    with pytest.raises(RuntimeError, match='method "cuda" takes CuPy arrays'):
        nt_xent(a, b, 0.1, method="cuda-bf16")


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
@pytest.mark.parametrize("method", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.05, 0.1, 1, 1e3])
def test_accuracy_on_a_gpu(
    on_gpu: Any, method: str, kind: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "on gpu", lambda za, zb, t: on_gpu(za, zb, t, method))
    for n, d in [(1, 8), (2, 512), (5, 130), (129, 32), (256, 128), (1000, 128), (4096, 128)]:
        check_accuracy("on gpu", kind, n, d, temperature, seed=11, times=TIMES[method], tiny=FLUSHED)


@pytest.mark.gpu
@pytest.mark.parametrize("method", PRECISIONS)
@pytest.mark.parametrize("n", [5, 256, 1000, 9000])
def test_a_gpu_repeats_itself_bit_for_bit(on_gpu: Any, method: str, n: int) -> None:
    a, b = single(n, 128, seed=4)
    first = on_gpu(a, b, 0.1, method)
    for x, y in zip(on_gpu(a, b, 0.1, method), first):
        np.testing.assert_array_equal(x, y)


@pytest.mark.gpu
@pytest.mark.parametrize("method", PRECISIONS)
def test_fibres_say_what_a_gpu_does(on_gpu: Any, gpu: Gpu, method: str) -> None:
    """Both differ only by rounding in another order, so the errors that were measured on a CPU are those of the GPU."""
    a, b = single(200, 128, seed=7)
    expected = Fibres(gpu, method)(a, b, 0.1)
    for x, y in zip(on_gpu(a, b, 0.1, method), expected):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-6 * TIMES[method] ** 0.5 * np.abs(y).max())


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
def test_what_a_gpu_cannot_compute_is_refused(on_gpu: Any) -> None:
    z = np.ones((2, 2))
    with pytest.raises(TypeError, match="float32"):
        on_gpu(z, z, 0.1)
    a, b = rows("random", 5, 8, np.random.default_rng(6))
    a[1, 1] = np.nan
    assert np.isnan(on_gpu(a, b, 0.1)[0])
