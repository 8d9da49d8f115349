"""Products in steps: the same as whole ones, cut only where that was measured to pay."""

from __future__ import annotations

import numpy as np
import pytest

from minisimclr.ops.conv import products


@pytest.fixture(params=[0, 10**4], ids=["BLAS packs", "BLAS does not pack"], autouse=True)
def most(request, monkeypatch):
    """Let BLAS seem to multiply without packing up to this many multiply–adds."""
    monkeypatch.setattr(products, "unpacked_products", lambda: request.param)
    return request.param


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


LENGTHS = [1, 97, 640, 1009, 4096]  # 97 and 1009 are primes: no equal parts


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("lead", [(), (3,)])
def test_many_rows_times_a_small_matrix(length, lead):
    a, b, out = arrays((*lead, length, 8), (*lead, 8, 5), (*lead, length, 5))
    products.by_rows(np, a, b, out)
    np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_small_matrix_times_many_columns_which_may_be_part_of_a_wider_array(length):
    a, wide, target = arrays((6, 9), (9, 2 * length), (6, 3 * length))
    before = target.copy()
    products.by_columns(np, a, wide[:, :length], target[:, length : 2 * length])
    np.testing.assert_allclose(target[:, length : 2 * length], a @ wide[:, :length], rtol=1e-5, atol=1e-5)
    assert np.array_equal(target[:, :length], before[:, :length])
    assert np.array_equal(target[:, 2 * length :], before[:, 2 * length :])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("lead", [(), (3,)])
def test_the_sum_over_many_rows(length, lead):
    a, b, out = arrays((*lead, length, 8), (*lead, length, 5), (*lead, 8, 5))
    products.over_rows(np, a, b, out)
    np.testing.assert_allclose(out, a.swapaxes(-2, -1) @ b, rtol=1e-4, atol=1e-4)


def test_steps_are_equal_few_and_within_what_blas_takes_unpacked(most):
    for length in (640, 4096, 10_000):
        count = products.steps(np, length, 40)
        assert length % count == 0
        assert (count > 1 and length // count * 40 <= most) if most else count == 1


def test_what_has_no_equal_parts_or_a_large_matrix_or_no_rows_is_left_whole():
    assert products.steps(np, 10_007, 40) == 1
    assert products.steps(np, 4096, products.SMALL_MATRIX + 1) == 1
    assert products.steps(np, 0, 40) == 1
