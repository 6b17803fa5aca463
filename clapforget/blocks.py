"""Rows of a tensor by group, as one padded tensor: a batched product in place of a loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Blocks"]


@dataclass(frozen=True)
class Blocks:
    """Where each of C rows stands in a padded tensor of G groups with room for n rows each.

    Made once for a grouping and used in every step: it holds what would else be asked of the
    device each time.
    """

    slot: Tensor
    """Place of each row in the flattened groups, [C]."""
    groups: int
    size: int
    empty: Tensor
    """True where a group has no row, [G, n]."""
    full: bool
    """Whether no group has an empty place."""
    in_order: bool
    """Whether it is full and the rows already stand group by group: then nothing is copied."""

    @classmethod
    def of(cls, group: Tensor, groups: int | None = None) -> Blocks:
        """:param group: group id of each row, [C]. :param groups: G; by default only the ids that
        occur make groups, in ascending order, and none of them is empty.
        """
        if groups is None:
            ids, group = group.unique(return_inverse=True)
            groups = len(ids)
        if not len(group):
            return cls(group, groups, 0, group.new_zeros(groups, 0, dtype=torch.bool), True, False)
        order = group.argsort(stable=True)
        counts = torch.bincount(group, minlength=groups)
        first = counts.cumsum(0) - counts
        place = torch.empty_like(group)
        place[order] = torch.arange(len(group), device=group.device) - first[group[order]]
        size = int(counts.max())
        slot = group * size + place
        empty = torch.arange(size, device=group.device) >= counts[:, None]
        whole = len(group) == groups * size
        in_order = whole and bool((slot == torch.arange(len(slot), device=slot.device)).all())
        return cls(slot, groups, size, empty, whole, in_order)

    def pad(self, rows: Tensor) -> Tensor:
        """Rows [C, ...] by group, zeros where a group has none: [G, n, ...]."""
        if not self.in_order:
            room = rows.new_zeros(self.groups * self.size, *rows.shape[1:])
            rows = room.index_copy(0, self.slot, rows)
        return rows.unflatten(0, (self.groups, self.size))

    def unpad(self, padded: Tensor) -> Tensor:
        """The rows again, [C, ...] from [G, n, ...]."""
        flat = padded.flatten(0, 1)
        return flat if self.in_order else flat[self.slot]
