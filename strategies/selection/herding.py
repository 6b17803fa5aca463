"""Herding: exemplars whose mean is near the class mean (iCaRL, Rebuffi et al. 2017, eq. 4)."""

from __future__ import annotations

from torch import Tensor

from clapforget.strategies.selection.base import Candidates, by_class, selector
from clapforget.strategies.selection.matching import class_mean, class_weights, match, spread

__all__ = ["herding"]


@selector("herding", two_sided=False, reads="nothing")
def herding(candidates: Candidates) -> Tensor:
    """Minus the place in iCaRL's greedy order on unit features, [n].

    The class mean is that of the candidates, an exemplar counting for the samples it stands for.
    """
    features = candidates.need_features("herding")
    rows, real = (part.to(features.device) for part in by_class(candidates.labels))
    v = features[rows]
    mean = class_mean(v, class_weights(candidates, v, rows, real))
    target = (v @ mean[..., None])[..., 0]
    order = match(v, real, target, lambda cosine: cosine, candidates.k)
    return spread(order, rows, real, len(features))
