"""The terms of CLAP's training loss, each a function of tensors.

Notation: B images, C classes, M Monte Carlo samples, d the joint width; ``share`` [C] is one over
the size of the class's task for classes whose task counts in the stage, else zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["expected_cross_entropy", "kl_gaussians", "kl_to_prior", "language_aware"]


def expected_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """``(1/MB) Σ_m Σ_b CE(logits[m, b], y_b)``: the likelihood term, mean of the losses.

    :param logits: [M, B, C]. :param target: column of the true class, [B].
    """
    return F.cross_entropy(logits.flatten(0, 1), target.repeat(len(logits)))


def kl_gaussians(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor) -> Tensor:
    """``KL(N(μ, σ²) ‖ N(μ₀, σ₀²))`` in nats, summed over the last dimension.

    :param mu: means [..., d]; the other arguments broadcast against it. :returns: [...].
    """
    ratio = (sigma / prior_sigma).square()
    distance = ((mu - prior_mu) / prior_sigma).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def kl_to_prior(mu: Tensor, sigma: Tensor) -> Tensor:
    """``KL(N(μ, σ²) ‖ N(0, 1))`` in nats by class: [C] from [C, d] each."""
    return kl_gaussians(mu, sigma, torch.zeros_like(mu), torch.ones_like(sigma))


def language_aware(mean_text: Tensor, mean_latent: Tensor, group: Tensor, share: Tensor) -> Tensor:
    """Past-task distribution regularisation (CLAP Eqs. 7-8), as released.

    Cross-entropy of the similarities ``S_cc' = Ē_c · z̄_c'`` against c' = c, over the classes of
    the same task; z alone enters, unnormalised and without temperature. Averaging over samples
    and templates before the softmax is the released form.

    :param mean_text: Ē = mean over templates of E, [C, d]. :param mean_latent: z̄, [C, d].
    :param group: task of each class [C]. :param share: weights of the rows [C].
    """
    apart = group[:, None] != group[None, :]
    similarity = (mean_text @ mean_latent.T).masked_fill(apart, -torch.inf)
    rows = F.cross_entropy(
        similarity, torch.arange(len(group), device=group.device), reduction="none"
    )
    return (rows * share).sum()
