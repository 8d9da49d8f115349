"""Convolution in few large products equals the plain form, on any array module; and how it calls cuBLAS."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import devices
import numpy as np
import pytest
from devices import host, on_device
from hypothesis import given
from hypothesis import strategies as st

from minisimclr.ops.conv import cublas, padded, plain

# (H, W, N, C), (K, D), stride, padding: what a ResNet has, and what it has not
SHAPES = [
    ((8, 8, 3, 32), (3, 16), 1, 1),
    ((8, 8, 3, 32), (3, 16), 2, 1),
    ((7, 5, 2, 24), (3, 8), 2, 1),
    ((8, 6, 2, 16), (1, 8), 1, 0),
    ((8, 7, 2, 16), (1, 8), 2, 0),
    ((9, 9, 2, 16), (1, 4), 3, 1),
    ((12, 10, 2, 3), (7, 8), 2, 3),
    ((6, 6, 2, 3), (3, 8), 1, 1),
    ((13, 12, 2, 4), (7, 3), 3, 3),
    ((4, 4, 2, 20), (3, 4), 1, 0),
    ((5, 6, 1, 20), (4, 4), 2, 1),
    ((2, 2, 2, 20), (3, 4), 1, 3),
    ((1, 1, 2, 20), (3, 4), 1, 1),
    ((1, 4, 1, 20), (3, 1), 2, 1),
    ((5, 5, 1, 20), (5, 2), 4, 2),
    ((2, 2, 2, 20), (1, 4), 2, 1),
]


def case(shape: tuple[int, ...], kernel: tuple[int, int], dtype: Any = np.float64) -> tuple[Any, Any]:
    rng = np.random.default_rng(list(shape))
    (K, D), C = kernel, shape[-1]
    return rng.standard_normal(shape).astype(dtype), rng.standard_normal((K, K, C, D)).astype(dtype)


def both_ways(form: Any, x: Any, w: Any, **geometry: int) -> tuple[Any, ...]:
    """y, dx, dw for a gradient that is the same for every form, computed on the device."""
    y, vjp = form(devices.xp(), on_device(x), on_device(w), **geometry)
    g = on_device(np.random.default_rng(5).standard_normal(y.shape).astype(y.dtype))
    return host((y, *(gradient() if callable(gradient) else gradient for gradient in vjp(g))))


def assert_equal(x: Any, w: Any, tolerance: float, **geometry: int) -> None:
    exact = both_ways(plain.convolution, x.astype(np.float64), w.astype(np.float64), **geometry)
    for got, expected in zip(both_ways(padded.convolution, x, w, **geometry), exact):
        assert got.shape == expected.shape
        assert got.dtype == x.dtype
        assert got.flags.c_contiguous
        assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 1e-6), (np.float16, 2e-3)])
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), SHAPES)
def test_the_padded_form_equals_the_plain_form(
    shape: Any, kernel: Any, stride: int, padding: int, dtype: Any, tolerance: float
) -> None:
    assert_equal(*case(shape, kernel, dtype), tolerance, stride=stride, padding=padding)


@given(st.data())
def test_the_padded_form_equals_the_plain_form_on_any_geometry(data: st.DataObject) -> None:
    number = lambda least, most: data.draw(st.integers(least, most))  # noqa: E731
    K, stride, padding = number(1, 7), number(1, 4), number(0, 4)
    H, W = (number(max(1, K - 2 * padding), 11) for _ in "HW")
    x, w = case((H, W, number(1, 3), number(1, 24)), (K, number(1, 4)))
    assert_equal(x, w, 1e-13, stride=stride, padding=padding)


def test_inputs_in_any_order_of_memory() -> None:
    x, w = case((6, 6, 2, 20), (3, 4))
    for geometry in ({"stride": 1, "padding": 1}, {"stride": 2, "padding": 0}):
        expected = both_ways(padded.convolution, x, w, **geometry)
        got = both_ways(
            padded.convolution, np.asfortranarray(x), w.transpose(1, 0, 3, 2).copy().transpose(1, 0, 3, 2), **geometry
        )
        for a, b in zip(got, expected):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.host
def test_neither_inputs_nor_gradient_are_written_to_or_handed_out() -> None:
    for kernel, padding in [((1, 20), 0), ((3, 4), 1)]:
        x, w = case((4, 4, 2, 20), kernel)
        y, vjp = padded.convolution(np, x, w, 1, padding)
        g = np.ones_like(y)
        for array in (x, w, g):
            array.flags.writeable = False
        for gradient in (f() for f in vjp(g)):
            assert not any(np.shares_memory(gradient, array) for array in (x, w, g, y))


@pytest.mark.host
def test_what_lies_beyond_the_edge_is_never_read() -> None:
    """The columns whose results are never read hold a huge number; no result shows it."""
    x, w = case((6, 6, 2, 20), (3, 4))
    x[:, 0] = 1e300  # around the edge: what the junk columns of the row above reach
    w[:, 0] = 0  # the tap that would read it at its proper place
    y, vjp = padded.convolution(np, x, w, 1, 0)
    assert np.abs(y[:, 1:]).max() < 1e3
    (_, dw) = (f() for f in vjp(np.ones_like(y)))
    assert np.abs(dw[:, 1:]).max() < 1e3


@pytest.mark.host
def test_half_precision_is_summed_in_single() -> None:
    """2048 + 1 is 2048 in float16, however often it is added."""
    x, w = np.ones((3, 3, 1, 20), np.float16), np.zeros((3, 3, 20, 1), np.float16)
    w[:, :, 0] = 1
    w[0, 0, 0] = 2048
    y, _ = padded.convolution(np, x, w, 1, 0)
    assert y.item() == 2056
    x, w = np.ones((5, 5, 1, 20), np.float16), w.transpose(0, 1, 3, 2).repeat(20, 2)
    y, vjp = padded.convolution(np, x, w, 1, 0)
    dx, _ = (gradient() for gradient in vjp(np.eye(20, dtype=np.float16)[[[[0]] * 3] * 3]))
    assert dx[2, 2, 0, 0] == 2056  # the pixel under all nine taps


# ── One launch a tap ──────────────────────────────────────────────────────────────────────────────


class Counted:
    """NumPy, without the means to hide how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(np, name)


@pytest.mark.host
@pytest.mark.parametrize(("stride", "most"), [(1, 16), (2, 40)])
def test_calls_are_few_and_do_not_grow_with_the_map(stride: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[None] = []
    monkeypatch.setattr(padded, "add_product", lambda xp, *matrices: products.append(cublas.add_product(np, *matrices)))
    counts = []
    for side in (8, 16):
        x, w = case((side, side, 2, 20), (3, 4))
        counted = Counted()
        products.clear()
        y, vjp = padded.convolution(counted, x, w, stride, 1)
        [f() for f in vjp(y)]
        counts.append((counted.calls, len(products)))
    assert counts[0] == counts[1]
    assert counts[0][0] <= most
    assert counts[0][1] == 2 * 9  # and nine more in dw, by @


# ── How cuBLAS is called ──────────────────────────────────────────────────────────────────────────


class Device:
    """A matrix as CuPy shows it: .data.ptr is an address."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape, self.dtype, self.flags, self.size = array.shape, array.dtype, array.flags, array.size
        self.data = SimpleNamespace(ptr=array.ctypes.data)

    def copy(self, order: str) -> Device:
        return Device(self.array.copy(order=order))


TYPES = {2: np.float16, 0: np.float32, 1: np.float64}  # CUDA_R_16F, 32F, 64F
COMPUTE_32F, COMPUTE_64F, FAST_TF32 = 68, 70, 77


class CuBLAS:
    """cublasGemmEx from its documentation, on the host: C = α op(A) op(B) + β C, all matrices column by column."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_GEMM_DEFAULT = 0, 1, -1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = COMPUTE_32F, COMPUTE_64F, FAST_TF32

    def __init__(self) -> None:
        self.computed: list[int] = []

    def gemmEx(
        self,
        handle: int,
        transa: int,
        transb: int,
        m: int,
        n: int,
        k: int,
        alpha: int,
        A: int,
        Atype: int,
        lda: int,
        B: int,
        Btype: int,
        ldb: int,
        beta: int,
        C: int,
        Ctype: int,
        ldc: int,
        computed: int,
        algo: int,
    ) -> None:
        self.computed.append(computed)

        def matrix(address: int, kind: int, rows: int, columns: int, ld: int) -> Any:
            assert ld >= rows
            dtype = np.dtype(TYPES[kind])
            memory = (ctypes.c_char * (ld * columns * dtype.itemsize)).from_address(address)
            return np.frombuffer(memory, dtype).reshape(columns, ld)[:, :rows].T

        scalar = ctypes.c_double if computed == COMPUTE_64F else ctypes.c_float
        a = matrix(A, Atype, k, m, lda).T if transa else matrix(A, Atype, m, k, lda)
        b = matrix(B, Btype, n, k, ldb).T if transb else matrix(B, Btype, k, n, ldb)
        c = matrix(C, Ctype, m, n, ldc)
        wide = np.float64 if computed == COMPUTE_64F else np.float32
        c[...] = (
            scalar.from_address(alpha).value * (a.astype(wide) @ b.astype(wide)) + scalar.from_address(beta).value * c
        )


def on_cublas(out: Any, a: Any, b: Any) -> CuBLAS:
    library = CuBLAS()
    runtime = SimpleNamespace(CUDA_R_16BF=14, CUDA_R_16F=2, CUDA_R_32F=0, CUDA_R_64F=1)
    device = SimpleNamespace(get_cublas_handle=lambda: 0)
    xp = SimpleNamespace(cuda=SimpleNamespace(cublas=library, runtime=runtime, device=device))
    cublas.add_product(xp, Device(out), Device(a), Device(b))
    return library


@pytest.mark.host
@pytest.mark.parametrize(
    ("dtype", "into"), [(np.float64, np.float64), (np.float32, np.float32), (np.float16, np.float32)]
)
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
def test_gemm_adds_matrices_in_either_order(dtype: Any, into: Any, turned: str) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((5, 3)).astype(dtype), rng.standard_normal((3, 4)).astype(dtype)
    out = rng.standard_normal((5, 4)).astype(into)
    expected = out + a.astype(np.float64) @ b.astype(np.float64)
    a, b = (np.asfortranarray(m) if name in turned else m for name, m in (("a", a), ("b", b)))
    library = on_cublas(out, a, b)
    np.testing.assert_allclose(out, expected, rtol=1e-14 if into == np.float64 else 1e-5)
    assert library.computed == [COMPUTE_64F if dtype == np.float64 else COMPUTE_32F]


@pytest.mark.host
def test_gemm_takes_parts_of_matrices_and_matrices_in_no_order() -> None:
    rng = np.random.default_rng(2)
    a, b, out = rng.standard_normal((9, 3)), rng.standard_normal((3, 8))[:, ::2], np.zeros((7, 4))
    on_cublas(out, a[1:8], b)
    np.testing.assert_allclose(out, a[1:8] @ b, rtol=1e-14)


@pytest.mark.host
def test_gemm_of_nothing_adds_nothing() -> None:
    out = np.ones((2, 3))
    assert on_cublas(out, np.ones((2, 0)), np.ones((0, 3))).computed == []
    np.testing.assert_array_equal(out, 1)


@pytest.mark.host
@pytest.mark.parametrize(("setting", "computed"), [("1", FAST_TF32), ("0", COMPUTE_32F), (None, COMPUTE_32F)])
def test_tf32_is_cupys_own_switch(setting: str | None, computed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUPY_TF32", raising=False)
    if setting is not None:
        monkeypatch.setenv("CUPY_TF32", setting)
    cublas.tf32.cache_clear()
    try:
        assert on_cublas(*(np.ones((2, 2), np.float32) for _ in range(3))).computed == [computed]
        assert on_cublas(*(np.ones((2, 2), np.float64) for _ in range(3))).computed == [COMPUTE_64F]
    finally:
        cublas.tf32.cache_clear()
