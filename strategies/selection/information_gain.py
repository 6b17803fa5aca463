"""Keep the samples that tell a linear posterior most: greedy log-determinant.

With weights ``w ~ N(0, I/λ)`` and unit noise, a set S of features tells ``½ log det(I + Σ_S v vᵀ/λ)``
nats of w. Step by step the sample is taken that adds most, ``½ log(1 + vᵀ A⁻¹ v)`` with ``A = λI +
Σ_S v vᵀ``: within 1 − 1/e of the best set (Nemhauser, Wolsey, Fisher 1978; Krause, Guestrin 2005). At
first all unit features tell the same: the one nearest the class's mean is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clapforget.strategies.selection.base import Candidates, by_class, selector
from clapforget.strategies.selection.matching import class_mean, class_weights, spread

__all__ = ["information_gain"]

_RIDGE = 0.1  # λ: where the chosen have a squared length of 0.1, a direction is half known


@selector("information_gain", two_sided=False, reads="nothing")
def information_gain(candidates: Candidates) -> Tensor:
    """Minus the place in the greedy order, [n]; each class by itself."""
    features = candidates.need_features("information_gain")
    rows, real = (part.to(features.device) for part in by_class(candidates.labels))
    v = features[rows]
    mean = class_mean(v, class_weights(candidates, v, rows, real))
    order = greedy(v, real, (v @ mean[..., None])[..., 0], candidates.k)
    return spread(order, rows, real, len(features))


def greedy(v: Tensor, real: Tensor, first: Tensor, k: int) -> Tensor:
    """Places in the greedy order, all classes at once, by a pivoted Cholesky factorisation of
    ``I + V Vᵀ/λ``: the loop runs over k only.

    :param v: unit features [C, m, d]. :param real: which exist, [C, m].
    :param first: the highest is taken first, [C, m]. :param k: how many to choose a class.
    :returns: 0 for the first chosen, -1 for the next, and so on; -k for those not chosen. [C, m]
    """
    steps = min(k, v.shape[1])
    score = torch.full_like(first, -float(k))
    known = v.new_zeros(*first.shape, steps)
    left = v.square().sum(-1) / _RIDGE  # vᵀ A⁻¹ v
    open_ = real.clone()
    for step in range(steps):
        best = (left if step else first).masked_fill(~open_, -torch.inf).argmax(1, keepdim=True)
        fits = open_.gather(1, best)
        score.scatter_(1, best, torch.where(fits, -float(step), score.gather(1, best)))
        open_.scatter_(1, best, False)
        chosen, taken = (
            t.gather(1, best[..., None].expand(-1, -1, t.shape[-1])) for t in (v, known)
        )
        shared = (v @ chosen.mT)[..., 0] / _RIDGE - (known @ taken.mT)[..., 0]
        known[..., step] = shared / (1 + left.gather(1, best)).sqrt()
        left = left - known[..., step].square()
    return score
