"""Keep what the draws disagree about and the prediction is unsure of: variance and entropy at once.

The released CLAP program's ``var_entropy`` means the geometric mean of both, but puts in the entropy with a
minus, so that its score is no number and the first samples of the data set are kept. This is the formula
that it means, ``√(Var · H)``, 0 where either is.
"""

from __future__ import annotations

from torch import Tensor

from clapforget.strategies.selection.base import Candidates, selector

__all__ = ["variance_entropy"]


@selector("variance_entropy")
def variance_entropy(candidates: Candidates) -> Tensor:
    """Geometric mean of the probabilities' variance over the draws, summed over classes, and of the
    predictive's entropy, [n]. Zero for a posterior without draws."""
    predictive = candidates.need_predictive("variance_entropy")
    return (predictive.variance * predictive.entropy).clamp_min(0).sqrt()
