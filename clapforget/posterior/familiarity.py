"""How familiar an image looks to the exact posterior: three signs, each on the scale of learned samples.

==========  =======================================================================================
density     negated relative Mahalanobis distance (Ren et al., 2021), or for a regression the negated
            variance of its scores
mean        cosine with the nearest mean of a learned class
text        cosine with the nearest text of a learned class
==========  =======================================================================================

Their average of ``(sign − m)/s`` over signs, m and s mean and standard deviation of each over the learned samples that
leave-one-out holds. Which sign speaks depends on the data: where all classes share a shape density
tells nearly everything, where CLIP knows most of the classes the text does. None depends on which other classes
there are columns for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Scale", "signs"]


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each sign over learned samples."""

    mean: Tensor
    """[3]"""
    spread: Tensor
    """[3]"""

    @classmethod
    def of(cls, values: Tensor) -> Scale:
        """:param values: signs of learned samples [3, n]; of fewer than two the scale is 1."""
        if values.shape[1] < 2:
            return cls(values.new_zeros(len(values)), values.new_ones(len(values)))
        return cls(values.mean(1), values.std(1).clamp_min(1e-9))

    def __call__(self, values: Tensor) -> Tensor:
        """Average of the standardised signs [3, B]: [B]."""
        return ((values - self.mean[:, None]) / self.spread[:, None]).mean(0)


def signs(density: Tensor, v: Tensor, first: Tensor, text: Tensor) -> Tensor:
    """All three, [3, B]; the cosines are zero where nothing is learned.

    :param density: [B]. :param v: unit image features [B, d]. :param first: sums of image features of
        the learned classes [C, d]. :param text: their unit text features [C, d].
    """
    v = v.to(density)
    if not len(first):
        nothing = density.new_zeros(len(v))
        return torch.stack([density, nothing, nothing])
    mean = (v @ F.normalize(first.to(density), dim=-1).T).amax(1)
    word = (v @ F.normalize(text.to(density), dim=-1).T).amax(1)
    return torch.stack([density, mean, word])
