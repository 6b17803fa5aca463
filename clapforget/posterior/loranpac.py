"""LoRanPAC (Peng et al., "LoRanPAC: Low-rank Random Features and Pre-trained Models for Bridging
Theory and Practice in Continual Learning", ICLR 2025, arXiv 2410.00645; first ICL-TSVD): least
squares on many random ReLU features, whose smallest singular directions are cut off at every task::

    H = max(0, V W)ᵀ [D, n],   U diag(s) ≈ the leading left singular part of H
    w_c = U (diag(s)² + λ I)⁻¹ Uᵀ Σ_c φ                    λ = 0: the shortest solution

Exemplar-free in learning. With nothing cut off it is RanPAC's ridge regression at the same λ.

Deletion. While nothing was ever cut off (``truncation=0`` and fewer directions than ``rank``) a
class is subtracted exactly. A truncated factorisation has no such operation: which directions were
kept depended on the deleted images. Then the head is made anew from the exemplars that are left, so
nothing of the class stays, and the event says how many they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clapforget.errors import UserError, check_least, check_most
from clapforget.posterior.feature_map import RandomReLU
from clapforget.posterior.head import HEADS, Change
from clapforget.posterior.low_rank import LowRankSums
from clapforget.posterior.point import PointSumsHead
from clapforget.seeding import generator_for

__all__ = ["LoRanPACHead", "LoRanPACSettings"]

_ROWS = 1024  # rows whose φ is held at once


@dataclass(frozen=True)
class LoRanPACSettings:
    """Options of LoRanPAC."""

    features: int = 5000
    """D, number of random features (published: 100,000)."""
    truncation: float = 0.25
    """Part of the directions cut off."""
    rank: int = 1000
    """Directions kept at most (published: 10,000)."""
    ridge: float = 0.0
    """λ."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that make no sense."""
        check_least(self, "loranpac", features=1, rank=1, ridge=0)
        check_most(self, "loranpac", features=1_000_000, rank=1_000_000)
        if not 0 <= self.truncation < 1:
            raise UserError(
                f"setting loranpac.truncation={self.truncation}", "give a part, below 1"
            )


@HEADS.register("loranpac")
class LoRanPACHead(PointSumsHead):
    """LoRanPAC without its first-session adapter; scores are unscaled, as published."""

    Settings = LoRanPACSettings
    settings_group = "loranpac"
    settings: LoRanPACSettings
    sums: LowRankSums

    def __init__(
        self, width: int, scale: float, settings: LoRanPACSettings | None = None, seed: int = 0
    ) -> None:
        s = settings or LoRanPACSettings()
        features = RandomReLU(width, s.features, seed, 25)
        sums = LowRankSums(s.features, s.truncation, s.rank)
        super().__init__(features, False, width, scale, s, seed, sums)

    def _add(self, v: Tensor, labels: Tensor, sign: float = 1.0) -> None:
        """In a seeded order: what is cut off after a block must not be the classes that came last."""
        order = torch.randperm(len(v), generator=generator_for(self.seed, 26))
        for rows in order.to(v.device).split(max(1, _ROWS // v.shape[1])):
            self.sums.add(self.map(v[rows]), self.columns(labels[rows]), sign)

    def can_subtract(self, change: Change, met: list[int]) -> bool:
        """Only while nothing was cut off.

        :raises UserError: if it is impossible and the memory has no exemplars of a class to keep.
        """
        if super().can_subtract(change, met) and float(self.sums.lost) == 0:
            return True
        kept = (self.sums.count > 0) & ~torch.isin(self.labels, torch.tensor(met).to(self.labels))
        missing = kept & ~torch.isin(self.labels, change.memory_labels.to(self.labels))
        if missing.any():
            raise UserError(
                "loranpac cannot subtract from a truncated factorisation, and the memory holds no "
                f"exemplars of {int(missing.sum())} of the classes to keep",
                "use a larger memory.size, or loranpac.truncation=0 with a large loranpac.rank",
            )
        return False

    def solve(self) -> Tensor:
        """Class weights [C, D]."""
        inner = self.sums.first @ self.sums.basis
        return (inner / (self.sums.singular.square() + self.settings.ridge)) @ self.sums.basis.T
