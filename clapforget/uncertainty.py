"""What a posterior predictive says about its own doubt, in nats.

``probs`` are samples of the predictive, [M, B, C]: M draws from the posterior, each a distribution
over C classes for B inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "SCORES",
    "energy",
    "entropy",
    "expected_energy",
    "expected_entropy",
    "mutual_information",
    "predictive_entropy",
    "variance",
    "variance_of_entropy",
]


def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy over the last dimension, with 0 log 0 = 0."""
    return torch.special.entr(probs).sum(-1)


def predictive_entropy(probs: Tensor) -> Tensor:
    """Total uncertainty: entropy of the mean prediction. [M, B, C] to [B]."""
    return entropy(probs.mean(0))


def expected_entropy(probs: Tensor) -> Tensor:
    """Aleatoric part: mean entropy of the samples. [M, B, C] to [B]."""
    return entropy(probs).mean(0)


def mutual_information(probs: Tensor) -> Tensor:
    """Epistemic part (BALD): predictive minus expected entropy, never below 0. [M, B, C] to [B]."""
    return (predictive_entropy(probs) - expected_entropy(probs)).clamp_min(0)


def variance(probs: Tensor) -> Tensor:
    """Variance of the class probabilities over samples, summed over classes. [M, B, C] to [B]."""
    return (probs - probs.mean(0)).square_().mean(0).sum(-1)  # var() is several times slower


def variance_of_entropy(probs: Tensor) -> Tensor:
    """Variance over samples of their entropy, ``E_m[H(p_m)²] - E_m[H(p_m)]²``, in nats²: whether the
    draws agree on how sure they are. [M, B, C] to [B].
    """
    return entropy(probs).var(0, unbiased=False)


def energy(mean_logits: Tensor) -> Tensor:
    """Negative free energy ``logsumexp`` of the mean logits (Liu et al. 2020), temperature 1.
    Higher means more like what was learned. [B, C] to [B].
    """
    return mean_logits.logsumexp(-1)


def expected_energy(logits: Tensor) -> Tensor:
    """``logsumexp`` averaged over draws of the logits; at least :func:`energy` of their mean
    (Jensen). [M, B, C] to [B].
    """
    largest = logits.softmax(-1).amax(-1)  # exp(max − logsumexp); logsumexp() is several times slower
    return (logits.amax(-1) - largest.log()).mean(0)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": predictive_entropy,
    "expected_entropy": expected_entropy,
    "mutual_information": mutual_information,
    "variance": variance,
    "variance_of_entropy": variance_of_entropy,
}
"""Scores of predictive samples by name; each maps [M, B, C] to [B], higher is more uncertain."""
