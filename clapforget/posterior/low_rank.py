"""Sums over features of which only the leading directions of the second moment are kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LowRankSums"]

_NOISE = 1e-7  # singular values below this part of the largest are rounding


class LowRankSums(nn.Module):
    """Counts ``n_c``, ``Σ φ`` by class, and ``U diag(s)² Uᵀ ≈ Σ φ φᵀ`` of rank k, in float64.

    Each :meth:`add` keeps the k leading singular directions of ``[U diag(s), Φᵀ]``, where
    ``k = min(round((1 − truncation) n), rank, round((1 − truncation) D))`` and n counts all rows so
    far (each view of an image is one): LoRanPAC's continual truncation. Columns are the head's.
    """

    count: Tensor
    first: Tensor
    basis: Tensor
    """U [D, k], orthonormal columns."""
    singular: Tensor
    """s [k], falling."""
    rows: Tensor
    """n, how many rows were added."""
    lost: Tensor
    """``Σ s²`` of all directions that were cut off."""
    carried: Tensor
    """As :attr:`~clapforget.posterior.sums.FeatureSums.carried`. [C]"""

    def __init__(self, size: int, truncation: float, rank: int) -> None:
        """:param size: D. :param truncation: part of the directions cut off, in [0, 1).
        :param rank: directions kept at most.
        """
        super().__init__()
        self.size, self.truncation, self.rank = size, truncation, rank
        double = torch.float64
        self.register_buffer("count", torch.zeros(0, dtype=double))
        self.register_buffer("first", torch.zeros(0, size, dtype=double))
        self.register_buffer("carried", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("basis", torch.zeros(size, 0, dtype=double))
        self.register_buffer("singular", torch.zeros(0, dtype=double))
        self.register_buffer("rows", torch.zeros((), dtype=double))
        self.register_buffer("lost", torch.zeros((), dtype=double))

    def resize(self, kept: Tensor, new: int) -> None:
        """Keep some columns, in order, and append empty ones."""
        for name in ("count", "first", "carried"):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old[kept], old.new_zeros(new, *old.shape[1:])]))

    def add(self, phi: Tensor, columns: Tensor, sign: float = 1.0) -> None:
        """Add samples; with sign -1 subtract them, exact only while nothing was cut off.

        :param phi: float64 [n, V, D]. :param columns: [n].
        """
        n, views, _ = phi.shape
        self.count.index_add_(0, columns, phi.new_full((n,), sign))
        self.first.index_add_(0, columns, phi.sum(1) * (sign / views))
        self.rows += sign * n * views
        flat = phi.flatten(0, 1) / views**0.5
        inner = flat @ self.basis
        if sign < 0:
            moment = torch.diag(self.singular.square()) - inner.T @ inner
            self._rotate(self.basis, moment, len(self.singular))
        else:
            new = self._outside(flat - inner @ self.basis.T, flat.norm())
            basis = torch.cat([self.basis, new], 1)
            whole = torch.cat([inner, flat @ new], 1)
            moment = whole.T @ whole
            moment[: len(self.singular), : len(self.singular)].diagonal().add_(
                self.singular.square()
            )
            kept = 1 - self.truncation
            wanted = min(round(kept * float(self.rows)), self.rank, round(kept * self.size))
            self._rotate(basis, moment, wanted)

    def _outside(self, rest: Tensor, length: Tensor) -> Tensor:
        """Orthonormal directions [D, r] of what rows have outside U; rounding is none.

        :param rest: those parts [n, D]. :param length: norm of the whole rows.
        """
        values, vectors = torch.linalg.eigh(rest @ rest.T)
        real = values > (_NOISE * length).square()
        new = (rest.T @ vectors[:, real]) / values[real].sqrt()
        return torch.linalg.qr(new - self.basis @ (self.basis.T @ new)).Q

    def _rotate(self, basis: Tensor, moment: Tensor, wanted: int) -> None:
        """Keep the leading directions of ``basis · moment · basisᵀ``."""
        values, vectors = torch.linalg.eigh(moment)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        real = int((values > (_NOISE**2) * values[:1]).sum())
        keep = min(max(wanted, 1), real)
        self.lost += values[keep:real].sum()
        self.singular = values[:keep].sqrt()
        self.basis = torch.linalg.qr(basis @ vectors[:, :keep]).Q

    def clear(self, column: int) -> None:
        """Zero a column whose samples were all subtracted: no rounding of theirs stays."""
        for part in (self.count, self.first, self.carried):
            part[column] = 0
        if not self.count.any():
            self.empty()

    def empty(self) -> None:
        """Forget everything; the columns stay."""
        for part in (self.count, self.first, self.carried, self.rows, self.lost):
            part.zero_()
        self.basis, self.singular = self.basis[:, :0], self.singular[:0]
