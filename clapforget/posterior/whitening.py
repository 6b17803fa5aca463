"""Whitening by a Cholesky factor."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["whiten"]


def whiten(factor: Tensor, rows: Tensor) -> Tensor:
    """``L⁻¹ φ`` of rows φ [..., D]. :param factor: L [D, D], lower triangular."""
    flat = rows.reshape(-1, rows.shape[-1])
    return torch.linalg.solve_triangular(factor, flat.T, upper=False).T.reshape(rows.shape)
