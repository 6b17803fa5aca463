"""Cover the part of feature space that the posterior vouches for.

Kernel herding (:mod:`clapforget.strategies.selection.matching`) towards the class's images, each
weighted by what the posterior predictive p says for its label:

    ``w_i ∝ mass_i · p(y_i | x_i) / max_c p(c | x_i)``
    ``K_ij = exp(−½ (1 − cos(v_i, v_j)) / s)``,  ``s`` the class's mean ``1 − cos`` over all pairs

An image whose label the posterior predictive (draws averaged) finds at least as likely as any other
counts fully; the surer it is that another class is meant, the less the exemplars stand for it. Where
the posterior takes no training image for another class this is herding in the kernel's space.
"""

from __future__ import annotations

from torch import Tensor

from clapforget.strategies.selection.base import Candidates, by_class, selector
from clapforget.strategies.selection.matching import class_mean, class_weights, embed, match, spread

__all__ = ["coverage"]

_SHARPNESS = 0.5


@selector("coverage", two_sided=False, reads="probabilities")
def coverage(candidates: Candidates) -> Tensor:
    """Minus the place in the greedy order, [n]."""
    features = candidates.need_features("coverage")
    probs = candidates.need_predictive("coverage").probs
    vouched = candidates.own(probs, "coverage") / probs.amax(1)
    rows, real = (part.to(features.device) for part in by_class(candidates.labels))
    v = features[rows]
    apart = 1 - class_mean(v, class_weights(candidates, v, rows, real)).square().sum(-1)
    scale = _SHARPNESS / apart.clamp_min(1e-6)[:, None, None]

    def kernel(cosine: Tensor) -> Tensor:
        return ((cosine - 1) * scale).exp()

    weights = class_weights(candidates, v, rows, real, vouched.clamp_min(1e-6))
    order = match(v, real, embed(v, weights, kernel), kernel, candidates.k)
    return spread(order, rows, real, len(features))
