"""What a posterior predicts for a batch of images, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from clapforget import uncertainty

__all__ = ["Predictive"]


@dataclass
class Predictive:
    """Predictions for B images over C columns (the head's classes, in its order).

    Uncertainties are in nats and have shape [B]; ``probs`` [B, C] sums to one. ``entropy`` is that of
    ``probs``; the other doubts are of the samples behind it, ``mutual_information`` the entropy of their mean
    less ``expected_entropy``, whether or not ``probs`` is that mean. What a posterior
    cannot say (one that draws no samples has no variance of their entropy) is None.
    """

    probs: Tensor
    entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    variance: Tensor
    energy: Tensor
    variance_of_entropy: Tensor | None = None
    """In nats²."""
    expected_energy: Tensor | None = None
    logits: Tensor | None = None
    """Mean logits [B, C]; -inf for a hidden class."""
    logit_variance: Tensor | None = None
    """Posterior variance of the logits, summed over the columns [B]: in closed form where they are
    Gaussian, and for a mixture of Gaussians the mean variance plus the variance of the means."""

    @classmethod
    def of_point(
        cls, probs: Tensor, energy: Tensor | None = None, logits: Tensor | None = None
    ) -> Predictive:
        """Of probabilities [B, C] with nothing known of what they are uncertain of: mutual information and
        variances are zero, and expectations over draws are what the point says.

        :param energy: [B]; not a number where none is given. :param logits: [B, C], if there are any.
        """
        spread, zero = uncertainty.entropy(probs), probs.new_zeros(len(probs))
        return cls(
            probs=probs, entropy=spread, expected_entropy=spread, mutual_information=zero,
            variance=zero, variance_of_entropy=zero, energy=zero * torch.nan if energy is None else energy,
            expected_energy=energy, logits=logits,
        )  # fmt: skip

    @classmethod
    def cat(cls, parts: list[Predictive]) -> Predictive:
        """Join the predictions of consecutive batches; a field missing in one is missing."""
        whole: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            whole[field.name] = None if any(v is None for v in values) else torch.cat(values)
        return cls(**whole)

    def take(self, rows: Tensor) -> Predictive:
        """The predictions of some images only."""
        some: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            some[field.name] = None if value is None else value[rows.to(value.device)]
        return Predictive(**some)

    def score(self, name: str) -> Tensor:
        """One uncertainty by name, [B]."""
        value = getattr(self, name)
        assert value.ndim == 1, f"{name} is not a score"
        return value
