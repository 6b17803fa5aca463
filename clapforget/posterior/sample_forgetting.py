"""Forget single samples of classes that stay, in the variational posterior.

S are the columns of the classes that the samples show, R all other columns that are not forgotten, E
the exemplars that are left. What S's posterior holds goes back to the prior and is made again from E:

    minimise    mean_(v, y) ∈ E  E_q[−log p(y | v, z)]  +  β Σ_(c ∈ S) KL(q(z_c) ‖ N(0, I)) / |S|
    over        μ_c, σ_c of c ∈ S, from N(0, I) on
    subject to  N(x_c + μ_c, σ_c²) as before for c ∈ R                                      hold

A class of S without an exemplar keeps the prior. As in :mod:`clapforget.posterior.forgetting`, each
task's adapter is then solved for with the smallest change that says all this.

What is removed: the exemplars, and everything that S's own posterior had learned. What is not: the
attention, and the posteriors of R, were trained while the samples stood in their batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.objectives import expected_cross_entropy, kl_to_prior
from clapforget.posterior.forgetting import PosteriorForgetting, refit, solve_adapters
from clapforget.posterior.head import Change
from clapforget.posterior.weights import ClassWeights

if TYPE_CHECKING:
    from clapforget.posterior.variational import VariationalHead

__all__ = ["forget_samples_posterior"]

_RATE = 10  # free means and spreads move faster than shared attention


def forget_samples_posterior(
    head: VariationalHead,
    before: ClassWeights,
    change: Change,
    settings: PosteriorForgetting,
    generator: torch.Generator,
) -> dict[str, list[float]]:
    """Change ``head`` in place; its text and context must be those after the request already.

    :param before: posterior of all columns before the request.
    :returns: the objective by step, as ``posterior relearn``; with ``posterior refit`` where the
        image tower changed, see :func:`~clapforget.posterior.forgetting.refit`.
    """
    head.close()
    head.eval()
    losses: dict[str, list[float]] = {}
    target = ClassWeights(*(part.detach().clone() for part in before))
    old, new = change.memory_before[:, 0], change.memory_after[:, 0]
    if len(old) and not torch.equal(old, new):
        awake = (~head.retired).nonzero().flatten()
        losses["posterior refit"] = refit(target, awake, old, new, head, settings, generator)
    touched = head.columns(change.forget_labels.unique())
    with torch.no_grad():
        target.x[touched] = head.inputs()[touched]
        target.mu[touched] = 0
        if head.settings.latent != "point":
            target.sigma[touched] = 1
    columns = head.columns(change.memory_labels)
    if torch.isin(columns, touched).any():
        losses["posterior relearn"] = _relearn(
            target, touched, new, columns, head, settings, generator
        )
    solve_adapters(head, target)
    return losses


def _relearn(
    target: ClassWeights, touched: Tensor, v: Tensor, y: Tensor,
    head: VariationalHead, s: PosteriorForgetting, generator: torch.Generator,
) -> list[float]:  # fmt: skip
    """Fit the touched rows of ``target`` to exemplars v [m, d] of columns y [m]."""
    present = touched[torch.isin(touched, y)]
    mu = target.mu[present].clone().requires_grad_(True)
    raw = torch.log(torch.expm1(target.sigma[present].clamp_min(1e-6))).requires_grad_(True)
    point = head.settings.latent == "point"
    optimizer = torch.optim.Adam([mu] if point else [mu, raw], lr=s.lr * _RATE)
    losses: list[float] = []
    for _ in range(s.steps):
        rows = torch.randint(len(v), (s.batch_size,), generator=generator).to(v.device)
        sigma = target.sigma[present] if point else F.softplus(raw)
        weights = target._replace(
            mu=target.mu.index_copy(0, present, mu),
            sigma=target.sigma.index_copy(0, present, sigma),
        )
        mean, std = head.logits(weights, v[rows])
        shape = (head.settings.draws, 1, mean.shape[-1])
        noise = torch.randn(shape, generator=generator).to(mean)
        samples = (mean + std * noise).masked_fill(head.retired, -torch.inf)
        nats = mu.square().sum(-1) / 2 if point else kl_to_prior(mu, sigma)
        loss = expected_cross_entropy(samples, y[rows]) + head.settings.kl_weight * nats.mean()
        losses.append(round(loss.item(), 6))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    target.mu[present] = mu.detach()
    if not point:
        target.sigma[present] = F.softplus(raw).detach()
    return losses
