"""Packed symmetric matrices: LAPACK's own conversion says what they hold."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg.lapack import dtrttf

from clapforget.posterior.packed import (
    add_products,
    lower_triangle,
    packed_shape,
    symmetric,
    write_packed,
)

SIZES = [1, 2, 3, 6, 7, 600, 601]  # wider than what is added to at once, too


def rows_of(n: int, size: int) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(size)).double()


def product_of(rows: torch.Tensor) -> torch.Tensor:
    """Symmetric to the last bit."""
    product = rows.T @ rows
    return (product + product.T) / 2


@pytest.mark.parametrize("size", SIZES)
def test_products_are_held_as_lapack_lays_them_out(size: int) -> None:
    rows = rows_of(12, size)
    packed = torch.zeros(packed_shape(size)).double()
    add_products(packed, rows, 0.5)
    add_products(packed, rows[:4], -0.5)
    product = rows[4:].T @ rows[4:] / 2
    flat, info = dtrttf(product.numpy(), transr="N", uplo="L")
    assert info == 0
    expected = torch.from_numpy(flat).reshape(tuple(reversed(packed.shape))).T
    torch.testing.assert_close(packed, expected)
    torch.testing.assert_close(symmetric(packed, size), product)


@pytest.mark.parametrize("size", SIZES)
def test_the_lower_triangle_of_a_leading_block_is_zero_above(size: int) -> None:
    product = product_of(rows_of(12, size))
    packed = torch.zeros(packed_shape(size)).double()
    write_packed(packed, product)
    for leading in {1, (size + 1) // 2, min(size, size // 2 + 2), size}:
        found = lower_triangle(packed, size, leading)
        torch.testing.assert_close(found, product[:leading, :leading].tril(), rtol=0, atol=0)
        found.zero_()  # a matrix of its own
    torch.testing.assert_close(symmetric(packed, size), product, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES[:5])
def test_many_matrices_at_once(size: int) -> None:
    many = torch.stack([product_of(rows_of(n, size)) for n in (3, 5)])
    packed = torch.full((2, *packed_shape(size)), 7.0).double()
    write_packed(packed, many)
    torch.testing.assert_close(symmetric(packed, size), many, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_half_the_numbers(size: int) -> None:
    rows, columns = packed_shape(size)
    assert rows * columns == size * (size + 1) // 2
