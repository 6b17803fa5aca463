"""What a posterior predicts for a batch of images, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["Predictive"]


@dataclass
class Predictive:
    """Predictions for B images over C columns (the head's classes, in its order).

    Uncertainties are in nats and have shape [B]; ``probs`` [B, C] sums to one.
    """

    probs: Tensor
    entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    variance: Tensor
    energy: Tensor

    @classmethod
    def cat(cls, parts: list[Predictive]) -> Predictive:
        """Join the predictions of consecutive batches."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def score(self, name: str) -> Tensor:
        """One uncertainty by name, [B]."""
        value = getattr(self, name)
        assert value.ndim == 1, f"{name} is not a score"
        return value
