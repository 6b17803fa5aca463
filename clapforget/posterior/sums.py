"""The additive sums that an exact posterior is made of: adding learns, subtracting deletes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clapforget.errors import UserError

__all__ = ["FeatureSums"]

_ROWS = 256  # of a symmetric matrix, added to at once


class FeatureSums(nn.Module):
    """Counts ``n_c``, ``Σ φ`` by class and ``Σ φ φᵀ`` over all, in float64.

    Of an image with several views each view counts one over their number. Columns are those of the
    head. With ``by_class`` the second moments are kept by class as well, so that a class can be
    deleted without its data, for C·D² numbers more.
    """

    count: Tensor
    first: Tensor
    second: Tensor
    class_second: Tensor
    carried: Tensor
    """Classes whose sums were carried over from another image tower, or made again from exemplars, [C]:
    they are no longer sums over the images learned, which can't be subtracted from them."""

    def __init__(self, size: int, by_class: bool) -> None:
        """:param size: D, the length of φ."""
        super().__init__()
        self.size, self.by_class = size, by_class
        double = torch.float64
        self.register_buffer("count", torch.zeros(0, dtype=double))
        self.register_buffer("first", torch.zeros(0, size, dtype=double))
        self.register_buffer("second", torch.zeros(size, size, dtype=double))
        self.register_buffer("carried", torch.zeros(0, dtype=torch.bool))
        rows = size if by_class else 0
        self.register_buffer("class_second", torch.zeros(0, rows, rows, dtype=double))

    def resize(self, kept: Tensor, new: int) -> None:
        """Keep some columns, in order, and append empty ones."""
        for name in ("count", "first", "class_second", "carried"):
            old = getattr(self, name)
            empty = old.new_zeros(new, *old.shape[1:])
            setattr(self, name, torch.cat([old[kept], empty]))

    def add(self, phi: Tensor, columns: Tensor, sign: float = 1.0) -> None:
        """Add samples, or with sign -1 subtract them.

        :param phi: float64 [n, V, D]. :param columns: [n].
        """
        share = sign / phi.shape[1]
        self.count.index_add_(0, columns, phi.new_full((len(phi),), sign))
        self.first.index_add_(0, columns, phi.sum(1) * share)
        flat = phi.flatten(0, 1)
        for start in range(0, self.size, _ROWS):  # the upper triangle, then its mirror image
            rows, rest = slice(start, start + _ROWS), slice(start, None)
            self.second[rows, rest].addmm_(flat[:, rows].T, flat[:, rest], alpha=share)
        for start in range(0, self.size, _ROWS):
            rows, below = slice(start, start + _ROWS), slice(start + _ROWS, None)
            self.second[below, rows] = self.second[rows, below].T
        if self.by_class:
            for column in columns.unique().tolist():
                own = phi[columns == column].flatten(0, 1)
                self.class_second[column].addmm_(own.T, own, alpha=share)

    def delete_class(self, column: int) -> None:
        """Delete a class without its data.

        :raises UserError: if second moments are not kept by class.
        """
        if not self.by_class:
            raise UserError(
                "a class can't be deleted exactly without all the images it was learned from",
                "give them with the request, or learn with --set exact.by_class=true",
            )
        self.second -= self.class_second[column]
        self.clear(column)

    def clear(self, column: int) -> None:
        """Zero a column whose samples were all subtracted: no rounding of theirs stays."""
        for part in (self.count, self.first, self.class_second, self.carried):
            part[column] = 0
        if not self.count.any():
            self.second.zero_()

    def empty(self) -> None:
        """Forget everything; the columns stay."""
        for part in (self.count, self.first, self.second, self.class_second, self.carried):
            part.zero_()
