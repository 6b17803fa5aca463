"""Symmetric matrices in half the memory: LAPACK's rectangular full packed format.

Of a symmetric [D, D] the lower triangle fills a rectangle with nothing left over: [D + 1, D/2] for an
even D, [D, (D + 1)/2] for an odd one (Gustavson et al., "Rectangular Full Packed Format for Cholesky's
Algorithm", ACM TOMS 2010; LAPACK's layout for ``UPLO='L'``, ``TRANSR='N'``). The matrix is split into
``[[A, .], [B, C]]``: B lies in the rectangle as it is, above it A's lower triangle and C's upper one
share a block. Every function takes leading dimensions, ``[..., rows, columns]``.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["add_products", "lower_triangle", "packed_shape", "symmetric", "write_packed"]

_ROWS = 256  # of a triangle, added to at once


def packed_shape(size: int) -> tuple[int, int]:
    """Of the rectangle that holds a symmetric [size, size]."""
    return (size, (size + 1) // 2) if size % 2 else (size + 1, size // 2)


def _blocks(packed: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views: one whose lower triangle is A's, B, one whose upper triangle is C's."""
    odd, head = size % 2, (size + 1) // 2
    tail, down = size - head, 1 - odd
    return (
        packed[..., down : down + head, :head],
        packed[..., down + head :, :head],
        packed[..., :tail, odd : odd + tail],
    )


def add_products(packed: Tensor, rows: Tensor, alpha: float) -> None:
    """Add ``alpha · rowsᵀ rows`` to one packed matrix, a triangle's worth of arithmetic.

    :param packed: of a [D, D]; changed in place. :param rows: [n, D].
    """
    size = rows.shape[1]
    upper_left, corner, lower_right = _blocks(packed, size)
    head, tail = rows[:, : len(upper_left)], rows[:, len(upper_left) :]
    corner.addmm_(tail.T, head, alpha=alpha)
    for start in range(0, head.shape[1], _ROWS):
        own = slice(start, start + _ROWS)
        upper_left[own, :start].addmm_(head[:, own].T, head[:, :start], alpha=alpha)
        upper_left[own, own] += (head[:, own].T @ head[:, own]).tril() * alpha
    for start in range(0, tail.shape[1], _ROWS):
        own, after = slice(start, start + _ROWS), slice(start + _ROWS, None)
        lower_right[own, after].addmm_(tail[:, own].T, tail[:, after], alpha=alpha)
        lower_right[own, own] += (tail[:, own].T @ tail[:, own]).triu() * alpha


def lower_triangle(packed: Tensor, size: int, leading: int | None = None) -> Tensor:
    """The lower triangle, zero above it, as a new matrix [..., n, n].

    :param size: D. :param leading: n, of the leading block only; None: D.
    """
    n = size if leading is None else leading
    upper_left, corner, lower_right = _blocks(packed, size)
    head = upper_left.shape[-1]
    if n <= head:
        return upper_left[..., :n, :n].tril()
    out = packed.new_zeros(*packed.shape[:-2], n, n)
    out[..., :head, :head] = upper_left.tril()
    out[..., head:, :head] = corner[..., : n - head, :]
    out[..., head:, head:] = lower_right[..., : n - head, : n - head].triu().mT
    return out


def symmetric(packed: Tensor, size: int) -> Tensor:
    """The whole matrix, as a new one. [..., D, D] :param size: D."""
    lower = lower_triangle(packed, size)
    return lower + lower.tril(-1).mT


def write_packed(packed: Tensor, matrix: Tensor) -> None:
    """Overwrite with a symmetric matrix [..., D, D], of which the lower triangle is read."""
    upper_left, corner, lower_right = _blocks(packed, matrix.shape[-1])
    head = upper_left.shape[-1]
    packed.zero_()
    upper_left += matrix[..., :head, :head].tril()
    lower_right += matrix[..., head:, head:].tril().mT
    corner.copy_(matrix[..., head:, :head])
