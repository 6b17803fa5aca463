"""What an exact head can prove of itself: that it is the head of never having seen what it deleted."""

from __future__ import annotations

import torch
from torch import Tensor

from clapforget.posterior.discriminant import Discriminant
from clapforget.posterior.exact import ExactHead
from clapforget.posterior.regression import Regression

__all__ = ["refit_difference"]


@torch.no_grad()
def refit_difference(head: ExactHead, v: Tensor, labels: Tensor, ids: Tensor) -> float:
    """The largest difference between a head and one that learned these samples and no others.

    Compared are, of every posterior in the predictive: the means of the classes or of their weights;
    Ψ or A over its largest entry; its rate, in units of its scores' spread, over the largest of these; and the
    probabilities of these samples. Text and columns are the head's own.

    :param v: features [n, V, d] of everything that is to remain, by the image tower of now.
    :param labels: [n]. :param ids: sample ids [n].
    """
    twin = ExactHead(head.width, head.scale, head.settings, head.seed).to(v.device)
    twin.templates = twin.templates.to(head.templates)
    twin.grow(head.labels.tolist(), head.templates)
    twin.retired, twin.hidden = head.retired.clone(), head.hidden.clone()
    twin.learn(v, labels, ids, "refitted")
    sharpest = max(part.rate * part.spread for part in twin.parts) or 1.0  # all 0: nothing is told apart
    gaps = [(head.probs(v[:, 0]) - twin.probs(v[:, 0])).abs().max()]
    for mine, other in zip(head.parts, twin.parts, strict=True):
        a, b = mine.posterior, other.posterior
        shape = b.factor @ b.factor.T
        gaps += [
            (_centre(a) - _centre(b)).abs().max(),
            (a.factor @ a.factor.T - shape).abs().max() / shape.abs().max(),
            gaps[0].new_tensor(abs(mine.rate - other.rate) * other.spread / sharpest),
        ]
    return float(torch.stack([gap.double() for gap in gaps]).max())


def _centre(posterior: Discriminant | Regression) -> Tensor:
    """Of the classes, or of their weights. [C, D]"""
    return posterior.mean if isinstance(posterior, Discriminant) else posterior.weight
