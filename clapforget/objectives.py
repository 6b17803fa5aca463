"""The terms of CLAP's training loss, each a function of tensors.

Notation: B images, C classes, M Monte Carlo samples, d the joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.blocks import Blocks

__all__ = [
    "distillation",
    "expected_cross_entropy",
    "kl_gaussians",
    "kl_to_prior",
    "language_aware",
    "orthogonality",
]


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
    """``KL(N(μ, σ²) ‖ N(0, 1))`` in nats by class: [..., C] from [..., C, d] each."""
    return 0.5 * (sigma.square() + mu.square() - 1).sum(-1) - sigma.log().sum(-1)


def language_aware(mean_text: Tensor, mean_latent: Tensor, blocks: Blocks, share: Tensor) -> Tensor:
    """Past-task distribution regularisation (CLAP Eqs. 7-8), as released.

    Cross-entropy of the similarities ``S_cc' = Ē_c · z̄_c'`` against c' = c, over the classes of
    the same task; z alone enters, unnormalised and without temperature. Averaging over samples
    and templates before the softmax is the released form.

    :param mean_text: Ē = mean over templates of E, [C, d]. :param mean_latent: z̄, [C, d].
    :param blocks: the classes by task, no task empty. :param share: weights of the rows [C].
    """
    similarity = blocks.pad(mean_text) @ blocks.pad(mean_latent).mT
    if not blocks.full:
        similarity = similarity.masked_fill(blocks.empty[:, None, :], -torch.inf)
    rows = blocks.unpad(similarity.log_softmax(-1).diagonal(dim1=-2, dim2=-1))
    return -(rows * share).sum()


def orthogonality(mean_latent: Tensor) -> Tensor:
    """``CE_rows(z̄ z̄ᵀ, arange)``, mean over classes: latents of different classes pushed apart
    (released: ``--ortho-loss``).

    :param mean_latent: z̄, [C, d].
    """
    target = torch.arange(len(mean_latent), device=mean_latent.device)
    return F.cross_entropy(mean_latent @ mean_latent.T, target)


def distillation(mu: Tensor, previous: Tensor) -> Tensor:
    """``MSE(μ, μ before)``, mean over classes and dimensions (released: ``--distill``).

    :param mu: [C, d]. :param previous: the same classes' means by the model before, [C, d].
    """
    return F.mse_loss(mu, previous)
