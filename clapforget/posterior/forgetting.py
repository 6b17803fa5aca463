"""What the encoder forgets, the adapters must forget too.

F are the forgotten and R the retained columns, ⁰ marks what was before the request, v_i are the
image features of the memory's exemplars and of the request's own images. The new attention and
adapters solve

    minimise    mean_i KL(p⁰(y | v_i, y ∉ F) ‖ p(y | v_i))                     predict
              + mean_(c ∈ F) huber(max(0, s a_c · (v̄_c − v̄) − ½))                    part
              + 10 mean_(c ∈ R) ‖a_c − a⁰_c‖² / mean_(c ∈ R) ‖a⁰_c‖²                 stay
    subject to  q(z_c) = N(0, I)                                for c ∈ F      release
                N(x_c + μ_c, σ_c²) = N(w⁰_c, (σ⁰_c)²)           for c ∈ R      hold

*Predict* asks that an image of a forgotten class be answered as if the class had never been among
the names, and every other image as before; under *hold* it is ``−log(1 − p(F | v_i))``, and what is
left to move is the guidance of the forgotten classes: attention is trained for it. A class that is answered
to no image can still rank its own images first, so *part* asks that its guidance a_c points to its images
(mean v̄_c) hardly more than to those of the memory (mean v̄). *Stay* keeps the attention fit to learn
with: hold alone lets it change at will, and later tasks pay for it. *Release* and
*hold* are linear in an adapter's weights given its inputs x_c, so each task's adapter is then solved
for with the smallest change that meets them: the KL to the prior of every forgotten class and the
KL between old and new of every retained class are zero up to rounding, as long as no task has more
than d + 1 classes.

Where the request changed the image tower, the old class weights no longer fit the new features:
then w⁰ is first moved, by the same predict term over R, to answer the new features of the memory
as the old ones were answered.

Exactness is not claimed for what is shared: attention and adapters keep what they learned from the
deleted images for other classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.errors import check_least, check_most
from clapforget.posterior.weights import ClassWeights

if TYPE_CHECKING:
    from clapforget.posterior.variational import VariationalHead

__all__ = ["PosteriorForgetting", "forget_posterior", "refit", "solve_adapters"]

_LEVEL = 0.5  # nats by which a forgotten class's guidance may tell its images from the memory's
_STAY = 10.0  # weight of the retained classes' guidance staying as it was


@dataclass(frozen=True)
class PosteriorForgetting:
    """The optimiser (Adam) of the predict term; release and hold are solved, not trained."""

    steps: int = 200
    """At most so many steps on the attention, and as many on the weights if the image tower changed."""
    lr: float = 1e-3
    batch_size: int = 256
    tolerance: float = 0.005
    """Stop once the predict term, in nats an image, is below this."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that make no sense."""
        check_least(self, "posterior", steps=0, lr=0, batch_size=1, tolerance=0)
        check_most(self, "posterior", lr=10)


def forget_posterior(
    head: VariationalHead,
    labels: Sequence[int],
    before: ClassWeights,
    before_features: Tensor,
    features: Tensor,
    image_labels: Tensor,
    settings: PosteriorForgetting,
    generator: torch.Generator,
) -> dict[str, list[float]]:
    """Change ``head`` in place; its text and context must be those after the request already.

    :param labels: classes to forget; those without a column are passed over.
    :param before: posterior of all columns before the request.
    :param before_features: features of memory and forget images under the old encoder, [N, d].
    :param features: the same images' features now, [N, d].
    :param image_labels: their classes, [N].
    :returns: the sum of the trained terms by step.
    """
    met = head.met(labels)
    if met:
        head.retire(met)
    head.close()
    head.eval()
    retained = (~head.retired).nonzero().flatten()
    losses: dict[str, list[float]] = {}
    target = ClassWeights(*(part.detach().clone() for part in before))
    if len(retained) and not torch.equal(before_features, features):
        losses["posterior refit"] = refit(
            target, retained, before_features, features, head, settings, generator
        )
    if len(retained) and met and head.attention is not None:
        losses["posterior predict"] = _release_guidance(
            target, features, image_labels, head, settings, generator
        )
    solve_adapters(head, target)
    return losses


@torch.no_grad()
def solve_adapters(head: VariationalHead, target: ClassWeights) -> None:
    """Change every task's adapter as little as possible (Frobenius norm) so that retained columns
    have the weights of ``target`` and retired ones the prior, given their present inputs x."""
    adapters, now = head.adapters, head.weights()
    mu = torch.where(head.retired[:, None], 0.0, target.x + target.mu - now.x)
    sigma = torch.where(head.retired[:, None], 1.0, target.sigma)
    raw = torch.log(torch.expm1(((sigma - 0.001) / 0.999).double().clamp_min(1e-6)))
    wanted = torch.cat([mu.double(), raw], 1)
    inputs = F.pad(now.x.double(), (0, 1), value=1.0)
    for task in head.task.unique().tolist():
        rows = (head.task == task).nonzero().flatten()
        weight = torch.cat([adapters.weight[task], adapters.bias[task][:, None]], 1).double()
        missing = wanted[rows] - inputs[rows] @ weight.T
        change = torch.linalg.lstsq(
            inputs[rows], missing, driver="gelsd" if missing.device.type == "cpu" else None
        )
        weight += change.solution.T
        adapters.weight[task] = weight[:, :-1].to(adapters.weight)
        adapters.bias[task] = weight[:, -1].to(adapters.bias)


def _samples(
    mean: Tensor, std: Tensor, head: VariationalHead, generator: torch.Generator
) -> Tensor:
    """Logit samples [M, B, C]."""
    shape = (head.settings.draws, 1, mean.shape[-1])
    return mean + std * torch.randn(shape, generator=generator).to(mean)


def _log_predictive(samples: Tensor) -> Tensor:
    """Log of the mean-softmax predictive, [B, C]."""
    return samples.log_softmax(-1).logsumexp(0) - math.log(len(samples))


def _release_guidance(
    target: ClassWeights,
    v: Tensor,
    image_labels: Tensor,
    head: VariationalHead,
    s: PosteriorForgetting,
    generator: torch.Generator,
) -> list[float]:
    """Train attention until forgotten classes, with the prior as latent, answer to no image, and
    their guidance points to their own images hardly more than to others."""
    gone = head.retired.nonzero().flatten()
    apart = _apart(v, image_labels, head.labels[gone], head.labels[~head.retired])
    text, stay = head.text[gone], (~head.retired).nonzero().flatten()
    with torch.no_grad():
        anchor = head.inputs()[stay]
    size = (anchor - head.text[stay]).square().sum(1).mean().clamp_min(1e-12)
    kept = target.take(stay)
    assert head.attention is not None
    attention = head.attention.requires_grad_(True)
    optimizer = torch.optim.Adam(attention.parameters(), lr=s.lr)
    losses: list[float] = []
    for _ in range(s.steps):
        rows = torch.randint(len(v), (s.batch_size,), generator=generator).to(v.device)
        part, every = v[rows], head.inputs()
        x = every[gone]
        prior = torch.zeros_like(x) if head.settings.latent == "point" else torch.ones_like(x)
        free = ClassWeights(x, torch.zeros_like(x), prior)
        (mean, std), (free_mean, free_std) = head.logits(kept, part), head.logits(free, part)
        mean, std = torch.cat([mean, free_mean], 1), torch.cat([std, free_std], 1)
        samples = _samples(mean, std, head, generator)
        others = samples[..., : -len(gone)].logsumexp(-1) - samples.logsumexp(-1)
        loss = -(others.logsumexp(0) - math.log(len(samples))).mean()
        pull = head.scale * ((x - text) * apart).sum(1)
        over = (pull - _LEVEL).clamp_min(0)
        loss = loss + F.huber_loss(over, torch.zeros_like(over))
        loss = loss + _STAY * (every[stay] - anchor).square().sum(1).mean() / size
        losses.append(round(loss.item(), 6))
        if losses[-1] < s.tolerance:
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    attention.requires_grad_(False)
    attention.zero_grad(set_to_none=True)
    return losses


def _apart(v: Tensor, labels: Tensor, gone: Tensor, kept: Tensor) -> Tensor:
    """Where each forgotten class's images lie from the memory's, ``v̄_c − v̄`` [G, d]; zero for a class
    without images here, and where nothing is kept.

    :param v: [N, d]. :param labels: [N]. :param gone: forgotten labels [G]. :param kept: the others.
    """
    memory = torch.isin(labels, kept)
    centre = v[memory].mean(0) if memory.any() else v.new_zeros(v.shape[1])
    own = (labels[None, :] == gone[:, None]).to(v)
    count = own.sum(1, keepdim=True)
    away = own @ v / count.clamp_min(1) - centre
    return torch.where((count > 0) & memory.any(), away, 0.0)


def refit(
    target: ClassWeights, retained: Tensor, old_v: Tensor, v: Tensor,
    head: VariationalHead, s: PosteriorForgetting, generator: torch.Generator,
) -> list[float]:  # fmt: skip
    """Move the retained weights of ``target`` so that new features are answered as old ones were."""
    old = target.take(retained)
    with torch.no_grad():
        wanted = torch.cat([
            _log_predictive(_samples(*head.logits(old, p), head, generator))
            for p in old_v.split(1024)
        ])  # fmt: skip
    moved = old.mu.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moved], lr=s.lr * 10)
    losses: list[float] = []
    for _ in range(s.steps):
        rows = torch.randint(len(v), (s.batch_size,), generator=generator).to(v.device)
        moments = head.logits(old._replace(mu=moved), v[rows])
        answer = _log_predictive(_samples(*moments, head, generator))
        loss = F.kl_div(answer, wanted[rows], log_target=True, reduction="batchmean")
        losses.append(round(loss.item(), 6))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    target.mu[retained] = moved.detach()
    return losses
