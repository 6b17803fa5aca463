"""Keep samples at random: the comparison every score has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from clapforget.strategies.selection.base import Candidates, selector

__all__ = ["random"]


@selector("random", two_sided=False, reads="nothing")
def random(candidates: Candidates) -> Tensor:
    """Uniform scores from the memory's own generator, [n], drawn once a sample.

    A sample keeps its number in later rounds, so a class that arrives in parts is sampled
    uniformly from all its parts (reservoir sampling by random keys, Vitter 1985).
    """
    drawn = torch.rand(len(candidates.labels), generator=candidates.generator)
    if candidates.scores is None:
        return drawn
    return torch.where(candidates.scores.isnan(), drawn, candidates.scores)
