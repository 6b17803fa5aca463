"""Keep what lies far from its class: far from the class's weight, or from the mean of its images.

``"name:low"`` keeps the nearest.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clapforget.errors import UserError
from clapforget.strategies.selection.base import Candidates, by_class, selector
from clapforget.strategies.selection.matching import class_mean, class_weights, spread

__all__ = ["distance", "mean_distance"]


@selector("distance")
def distance(candidates: Candidates) -> Tensor:
    """Minus the mean logit of the sample's own class, [n]: CLAP's distance to the class."""
    logits = candidates.need_predictive("distance").logits
    if logits is None:
        raise UserError(
            "exemplar score 'distance' needs logits, which this posterior has not",
            "use score='mean_distance'",
        )
    return -candidates.own(logits, "distance")


@selector("mean_distance", reads="nothing")
def mean_distance(candidates: Candidates) -> Tensor:
    """Cosine distance of the features to the mean of their class's candidates, [n], 0 to 2."""
    features = candidates.need_features("mean_distance")
    rows, real = (part.to(features.device) for part in by_class(candidates.labels))
    v = features[rows]
    mean = F.normalize(class_mean(v, class_weights(candidates, v, rows, real)), dim=-1)
    return spread(1 - (v @ mean[..., None])[..., 0], rows, real, len(features))
