"""The additive sums that an exact posterior is made of: adding learns, subtracting deletes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clapforget.errors import UserError
from clapforget.posterior import packed

__all__ = ["FeatureSums"]


class FeatureSums(nn.Module):
    """Counts ``n_c``, ``Σ φ`` by class and ``Σ φ φᵀ`` over all, in float64.

    Of an image with several views each view counts one over their number. Columns are those of the
    head. With ``by_class`` the second moments are kept by class as well, so that a class can be
    deleted without its data, for C·D²/2 numbers more. Second moments are held packed
    (:mod:`~clapforget.posterior.packed`), a triangle each.
    """

    count: Tensor
    first: Tensor
    packed: Tensor
    class_packed: Tensor
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
        shape = packed.packed_shape(size)
        self.register_buffer("packed", torch.zeros(shape, dtype=double))
        self.register_buffer("carried", torch.zeros(0, dtype=torch.bool))
        by = shape if by_class else (0, 0)
        self.register_buffer("class_packed", torch.zeros(0, *by, dtype=double))

    @property
    def second(self) -> Tensor:
        """``Σ φ φᵀ`` [D, D], made anew at each call."""
        return packed.symmetric(self.packed, self.size)

    @property
    def class_second(self) -> Tensor:
        """``Σ_c φ φᵀ`` [C, D, D], made anew at each call; only with ``by_class``."""
        assert self.by_class, "second moments are not kept by class"
        return packed.symmetric(self.class_packed, self.size)

    def second_lower(self, leading: int) -> Tensor:
        """The lower triangle of the leading [n, n] of ``Σ φ φᵀ``, zero above it, made anew."""
        return packed.lower_triangle(self.packed, self.size, leading)

    def resize(self, kept: Tensor, new: int) -> None:
        """Keep some columns, in order, and append empty ones."""
        for name in ("count", "first", "class_packed", "carried"):
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
        packed.add_products(self.packed, flat, share)
        if self.by_class:
            for column in columns.unique().tolist():
                own = phi[columns == column].flatten(0, 1)
                packed.add_products(self.class_packed[column], own, share)

    def transform(self, matrix: Tensor) -> None:
        """Make the sums those of ``φ M``. :param matrix: M [D, D]."""
        self.first = self.first @ matrix
        packed.write_packed(self.packed, matrix.T @ self.second @ matrix)
        if self.by_class:
            packed.write_packed(self.class_packed, matrix.T @ self.class_second @ matrix)

    def delete_class(self, column: int) -> None:
        """Delete a class without its data.

        :raises UserError: if second moments are not kept by class.
        """
        if not self.by_class:
            raise UserError(
                "a class can't be deleted exactly without all the images it was learned from",
                "give them with the request, or learn with --set exact.by_class=true",
            )
        self.packed -= self.class_packed[column]
        self.clear(column)

    def clear(self, column: int) -> None:
        """Zero a column whose samples were all subtracted: no rounding of theirs stays."""
        for part in (self.count, self.first, self.class_packed, self.carried):
            part[column] = 0
        if not self.count.any():
            self.packed.zero_()

    def empty(self) -> None:
        """Forget everything; the columns stay."""
        for part in (self.count, self.first, self.packed, self.class_packed, self.carried):
            part.zero_()
