"""Keep samples at random: the comparison every score has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from clapforget.strategies.selection.base import SELECTORS, Candidates

__all__ = ["random"]


@SELECTORS.register("random")
def random(candidates: Candidates) -> Tensor:
    """Uniform scores from the memory's own generator, [n]."""
    return torch.rand(len(candidates.labels), generator=candidates.generator)
