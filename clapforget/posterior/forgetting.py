"""What the encoder forgets, the adapters must forget too.

Attention and adapters are trained for some steps on

    L = λ_f mean_{c∈F} KL(q(z_c) ‖ N(0, I))                               release
      + λ_h mean_{c∈R} KL(N(x_c + μ_c, σ_c²) ‖ N(x⁰_c + μ⁰_c, σ⁰_c²))     hold
      + λ_p mean_i KL(p⁰(y | v_i, y ∉ F) ‖ p(y | v_i))                    predict

F the forgotten and R the retained columns, ⁰ before the request, v_i the image features of the
memory's exemplars and of the request's own images, p the mean-softmax predictive. *Release* drives
the forgotten classes' posterior back to the prior; *hold* keeps the retained classes' weights in
distribution, guidance included; *predict* asks that an image of the forgotten class be answered as
if the class had never been among the names, and every other image as before.

The forgotten classes are retired as well: no class attends to them, later tasks do not train them.
Exactness is not claimed: attention and adapters are shared, and what they learned from the deleted
images for other classes stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clapforget.objectives import kl_gaussians, kl_to_prior
from clapforget.posterior.variational import ClassWeights, VariationalHead

__all__ = ["PosteriorForgetting", "forget_posterior"]


@dataclass(frozen=True)
class PosteriorForgetting:
    """Weights of the three terms, and the optimiser (Adam, cosine rate)."""

    release_weight: float = 1.0
    hold_weight: float = 1.0
    predict_weight: float = 10.0
    steps: int = 300
    lr: float = 2e-3
    batch_size: int = 128


def forget_posterior(
    head: VariationalHead,
    labels: Sequence[int],
    before: ClassWeights,
    before_features: Tensor,
    features: Tensor,
    settings: PosteriorForgetting,
    generator: torch.Generator,
) -> dict[str, list[float]]:
    """Train ``head`` in place; its text and context must be those after the request already.

    :param labels: classes to forget; those without a column are passed over.
    :param before: posterior of all columns before the request.
    :param before_features: features of memory and forget images under the old encoder, [N, d].
    :param features: the same images' features now, [N, d].
    :returns: each term's value by step.
    """
    met = [label for label in labels if bool((head.labels == label).any())]
    if met:
        head.retire(met)
    forgotten = head.columns(met)
    retained = (~head.retired).nonzero().flatten()
    if not len(retained):
        return {}
    target = _without(before, before_features, head, retained, generator)
    head.adapters.close()
    head.requires_grad_(True)
    head.eval()
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(settings.steps, 1))
    losses: dict[str, list[float]] = {}
    for _ in range(settings.steps):
        weights = head.weights()
        rows = torch.randint(len(features), (settings.batch_size,), generator=generator)
        rows = rows.to(features.device)
        logits = _log_predictive(weights, features[rows], head, generator)
        kept, old = weights.take(retained), before.take(retained)
        hold = kl_gaussians(kept.x + kept.mu, kept.sigma, old.x + old.mu, old.sigma).mean()
        wanted = target[rows]
        predict = (
            (torch.special.xlogy(wanted, wanted) - wanted * logits[:, retained]).sum(-1).mean()
        )
        terms = {"hold": settings.hold_weight * hold, "predict": settings.predict_weight * predict}
        if len(forgotten):
            gone = weights.take(forgotten)
            terms["release"] = settings.release_weight * kl_to_prior(gone.mu, gone.sigma).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 100.0)
        optimizer.step()
        schedule.step()
        for name, value in terms.items():
            losses.setdefault(f"posterior {name}", []).append(round(value.item(), 6))
    head.requires_grad_(False)
    return losses


def _log_predictive(
    weights: ClassWeights, v: Tensor, head: VariationalHead, generator: torch.Generator
) -> Tensor:
    """Log of the mean-softmax predictive [B, C], differentiable, with fresh noise."""
    mean, std = weights.mean_logits(v, head.scale), weights.std_logits(v, head.scale)
    shape = (head.settings.samples, 1, mean.shape[1])
    noise = torch.randn(shape, generator=generator).to(v)
    samples = (mean + std * noise).log_softmax(-1)
    return samples.logsumexp(0) - math.log(len(samples))


@torch.no_grad()
def _without(
    before: ClassWeights,
    v: Tensor,
    head: VariationalHead,
    retained: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The old predictive as if only the retained columns had been among the names, [N, R]."""
    return torch.cat(
        [
            _log_predictive(before.take(retained), part, head, generator).exp()
            for part in v.split(1024)
        ]
    )
