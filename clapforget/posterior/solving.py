"""How the exact head gets from its sums to a predictive: prior strengths and temperature, by leaving
learned samples out in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.posterior.discriminant import Discriminant, fit_discriminant, prior_means
from clapforget.posterior.familiarity import Scale, signs
from clapforget.posterior.regression import Regression, fit_regression
from clapforget.posterior.temperature import best_temperature

if TYPE_CHECKING:
    from clapforget.posterior.exact import ExactHead

__all__ = ["Part", "Solution", "solve"]

_STRENGTHS = (1.0, 0.3, 3.0, 0.1, 10.0)
_SPREADS = (0.3, 0.03, 3.0, 0.003)
_LEFT_OUT = 2000  # learned samples that are left out in turn, at most


@dataclass
class Part:
    """One posterior with its temperature."""

    posterior: Discriminant | Regression
    temperature: float
    size: int
    """How many of φ's entries it is on."""
    weight: float = 1.0
    """In the average of the parts."""


@dataclass
class Solution:
    """What the sums say."""

    parts: list[Part]
    """Posteriors whose predictives are averaged."""
    scale: Scale
    """Of the signs of familiarity, over learned samples."""

    @property
    def widest(self) -> int:
        """Which part is on most of φ: its density says how familiar an image looks."""
        return max(range(len(self.parts)), key=lambda k: self.parts[k].size)


@dataclass
class _Left:
    """Learned samples that are left out in turn."""

    phi: Tensor
    """[n, V, D]"""
    columns: Tensor
    weight: Tensor

    def of(self, some: Tensor) -> _Left:
        """Those of a mask [n]."""
        return _Left(self.phi[some], self.columns[some], self.weight[some])


@dataclass
class _Fitted:
    """A part, and what it says of the left-out samples."""

    part: Part
    left: Tensor
    """Whitened, [n, V, size]."""
    probs: Tensor | None
    """Its predictive of them [n, C], if there are any to leave out."""


@torch.no_grad()
def solve(head: ExactHead) -> Solution:
    """The posteriors whose predictives are averaged: of a regression one; of a discriminant on the
    image feature, on random features as well, and with a spherical covariance.

    The last one's weight is how often the others' average is wrong of left-out samples, unless the
    settings give one. Of classes that CLIP does not know, a full covariance is sure of wrong answers
    where the spherical one doubts; where left-out answers are right, it has nothing to add.

    With nothing learned it is the regression's prior for both models, which is zero-shot CLIP.
    """
    v, labels = head.reservoir.sample(_LEFT_OUT)
    columns = head.columns(labels)
    left = _Left(head.map(v), columns, _ignorance(head, v, columns))
    parts = _regression(head, left) if _no_discriminant(head) else _discriminant(head, left)
    found = Solution([one.part for one in parts], Scale.of(left.phi.new_zeros(3, 0)))
    if len(columns):
        widest, counted = parts[found.widest], (head.sums.count > 0) & ~head.retired
        density = widest.part.posterior.likeness(widest.left[:, 0], counted)
        first = head.sums.first[counted, : head.width]
        found.scale = Scale.of(signs(density, v[:, 0], first, head.text[counted]))
    return found


def _no_discriminant(head: ExactHead) -> bool:
    return head.settings.model == "regression" or not head.sums.count.any()


def _regression(head: ExactHead, left: _Left) -> list[_Fitted]:
    rows = left.phi, left.columns, left.weight
    fitted = fit_regression(head.sums, head.text, ~head.retired, *rows, head.settings.ridge)
    return [_part(head, fitted, head.map.size, left)]


def _discriminant(head: ExactHead, left: _Left) -> list[_Fitted]:
    prior = prior_means(head.sums, head.text)
    kappa0, psi = _hyper(head, prior, left)

    def part(size: int, spherical: bool = False) -> _Fitted:
        fitted = fit_discriminant(head.sums, prior[:, :size], kappa0, psi, size, spherical)
        return _part(head, fitted, size, left)

    parts = [part(size) for size in dict.fromkeys((head.width, head.map.size))]
    weight = head.settings.spherical
    if weight is None:
        weight = _error([one.probs for one in parts], left)
    if weight > 0:
        spherical = part(head.width, spherical=True)
        spherical.part.weight = weight
        parts.append(spherical)
    return parts


def _error(probs: list[Tensor | None], left: _Left) -> float:
    """Weighted part of left-out samples that the average of some predictives gets wrong; 1 where
    nothing could be left out."""
    known = [one for one in probs if one is not None]
    if not known:
        return 1.0
    wrong = torch.stack(known).mean(0).argmax(1) != left.columns
    return float(left.weight[wrong].sum() / left.weight.sum())


def _can_leave_out(head: ExactHead, left: _Left) -> bool:
    return len(left.columns) > 0 and int(head.sums.count.count_nonzero()) > 1


def _scores(
    head: ExactHead, posterior: Discriminant | Regression, white: Tensor, columns: Tensor
) -> Tensor:
    return posterior.left_out(white, columns).masked_fill(head.retired, -torch.inf)


def _part(head: ExactHead, posterior: Discriminant | Regression, size: int, left: _Left) -> _Fitted:
    """A posterior with its temperature."""
    white = posterior.whiten(left.phi[..., :size])
    if not _can_leave_out(head, left):
        temperature = _temperature_without_data(posterior, head.scale)
        return _Fitted(Part(posterior, temperature, size), white, None)
    scores = _scores(head, posterior, white, left.columns)
    temperature = best_temperature(scores, left.columns, left.weight, doubt=1.0)
    probs = (scores / temperature).softmax(-1)
    return _Fitted(Part(posterior, temperature, size), white, probs)


def _temperature_without_data(posterior: Discriminant | Regression, scale: float) -> float:
    """The T at which a typical image's scores rise with the cosine as zero-shot CLIP's logits."""
    if isinstance(posterior, Regression):
        return max(posterior.text, 1.0) / scale
    stretch = float(((posterior.kappa + 1) / posterior.kappa).mean())
    psi = float(posterior.factor.diagonal().square().mean())
    rise = (posterior.freedom + posterior.size) / (psi * stretch + 2)
    return rise / scale


def _hyper(head: ExactHead, prior: Tensor, left: _Left) -> tuple[float, float]:
    """κ₀ and ψ of the smallest left-out log loss on the image feature alone: ψ at κ₀ = 1, then
    κ₀ at that ψ.

    Only of classes with two samples or more: without its only sample a class is its text, which says
    nothing of how much a sample should count beside it. Where no class has two, both keep their defaults.
    """
    size, settings = head.width, head.settings
    left = left.of(head.sums.count[left.columns] > 1)
    prior, phi = prior[:, :size], left.phi[..., :size]

    def loss(kappa0: float, psi: float) -> float:
        fitted = fit_discriminant(head.sums, prior, kappa0, psi, size)
        scores = _scores(head, fitted, fitted.whiten(phi), left.columns)
        temperature = best_temperature(scores, left.columns, left.weight, doubt=1.0)
        wrong = F.cross_entropy(scores / temperature, left.columns, reduction="none")
        return float((left.weight * wrong).sum())

    strength, spread = settings.strength or 1.0, settings.spread or 0.3
    if _can_leave_out(head, left):
        if settings.spread is None:
            spread = min(_SPREADS, key=lambda psi: loss(strength, psi))
        if settings.strength is None:
            strength = min(_STRENGTHS, key=lambda kappa0: loss(kappa0, spread))
    return strength, spread


def _ignorance(head: ExactHead, v: Tensor, columns: Tensor) -> Tensor:
    """Weight of each left-out sample, [n]: (1 − zero-shot CLIP's accuracy on its class)²."""
    if head.settings.calibrate_on == "all" or not len(columns):
        return torch.ones(len(columns), dtype=torch.float64, device=v.device)
    cosine = (v[:, 0] @ head.text.to(v.dtype).T).masked_fill(head.retired, -torch.inf)
    right = (cosine.argmax(1) == columns).double()
    seen = torch.bincount(columns, minlength=len(head.labels)).clamp_min(1)
    known = torch.zeros_like(seen, dtype=torch.float64).index_add_(0, columns, right) / seen
    return (1 - known).square().clamp_min(1e-3)[columns]
