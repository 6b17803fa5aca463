"""The terms of CLAP's loss beside the likelihood: divergence from the priors, and terms on means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from clapforget.blocks import Blocks
from clapforget.objectives import (
    distillation,
    kl_gaussians,
    kl_to_prior,
    language_aware,
    orthogonality,
)
from clapforget.posterior.priors import latent_prior, top_prior
from clapforget.posterior.weights import ClassWeights, Stage, TopLatent

if TYPE_CHECKING:
    from clapforget.posterior.variational import VariationalHead

__all__ = ["divergence", "language_term", "regularisers"]


def divergence(
    head: VariationalHead, weights: ClassWeights, v: Tensor, stage: Stage, subset: Tensor | None,
    top: TopLatent | None, near: ClassWeights | None = None,
) -> Tensor:  # fmt: skip
    """``Σ_tasks (1/C_t) Σ_c KL(q(z_c) ‖ p(z_c))`` in nats; with a global latent the mean of that over
    its draws, and the mean over classes of its own. The released program, where it is hierarchical,
    averages over draws and adds classes up.

    Arguments as :func:`~clapforget.posterior.priors.latent_prior`.

    :param near: the posterior of the columns that count, ``terms.kl_counting``, where it is at hand.
    """
    if head.settings.latent == "point":
        return weights.mu.new_zeros(())
    terms = head.layout.terms[stage]
    rows = terms.kl_counting
    prior = latent_prior(head, v, weights, subset, top)
    near = weights.take(rows) if near is None else near
    if prior is None:
        nats = kl_to_prior(near.mu, near.sigma)
    else:
        nats = kl_gaussians(near.mu, near.sigma, prior.mu[..., rows, :], prior.sigma[..., rows, :])
    total = (nats * terms.kl_share[rows].to(nats)).sum(-1).mean()
    if top is None:
        return total
    prior = top_prior(head, v, top, subset, stage)
    if prior is None:
        nats = kl_to_prior(top.mu, top.sigma)
    else:
        nats = kl_gaussians(top.mu, top.sigma, prior.mu, prior.sigma)
    return total + nats.mean()


def regularisers(
    head: VariationalHead, weights: ClassWeights, noise: Tensor, v: Tensor, stage: Stage,
    top: TopLatent | None = None, near: ClassWeights | None = None,
) -> Tensor:  # fmt: skip
    """``β L_LASP``, and where asked for orthogonality and distillation. Scalar.

    :param noise: of z̄, the samples' mean, as :class:`~clapforget.posterior.LogitNoise` has it.
    :param v: the batch that guides the classes, [B, d]. :param near: as :func:`divergence`.
    """
    s, terms = head.settings, head.layout.terms[stage]
    near = weights.take(terms.kl_counting) if near is None else near
    every = s.orthogonality_weight > 0
    latent = _mean_latent(near, noise[..., terms.kl_counting, :] if every else noise, top)
    total = language_term(
        head, latent if terms.within is None else latent[terms.within], stage, top
    )
    if every:
        latent = _mean_latent(weights, noise, top)
        total = total + s.orthogonality_weight * orthogonality(latent[head.layout.awake])
    if s.distillation_weight and head.previous is not None:
        rows = head.previous.columns(head)
        kept = ~head.layout.retired[rows]
        before = (
            head.previous.weights(head, v) if top is None else head.previous.top_latent(head, v)
        )
        mu = weights.mu if top is None else top.mu
        if kept.any():
            total = total + s.distillation_weight * distillation(mu[rows][kept], before.mu[kept])
    return total


def _mean_latent(weights: ClassWeights, noise: Tensor, top: TopLatent | None) -> Tensor:
    """``z̄ = μ + σ ε`` of these columns, averaged over draws of a global latent. [n, d]"""
    latent = weights.mu + weights.sigma * noise
    return latent if top is None else latent.mean(0)


def language_term(
    head: VariationalHead, mean_latent: Tensor, stage: Stage, top: TopLatent | None = None
) -> Tensor:
    """``β L_LASP`` of the latent means z̄, and of the global latent's over all classes.

    :param mean_latent: of the columns that count in the stage, [n, d].
    """
    terms, text = head.layout.terms[stage], head.mean_text
    total = mean_latent.new_zeros(())
    if terms.blocks is not None:
        rows = terms.counting
        share = terms.share[rows].to(mean_latent)
        text_rows = text[terms.kl_counting] if terms.within is None else text[rows]
        total = language_aware(text_rows, mean_latent, terms.blocks, share)
    if top is not None:
        everyone = Blocks.of(head.layout.task * 0)
        share = mean_latent.new_full((len(text),), 1 / len(text))
        total = total + language_aware(text, top.draws.mean(0), everyone, share)
    return head.settings.language_weight * total
