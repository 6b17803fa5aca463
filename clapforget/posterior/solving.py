"""How the exact head gets from its sums to a predictive: prior strengths, and how much each of its models
counts, by leaving learned samples out in turn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.posterior.discriminant import Discriminant, fit_discriminant, prior_means
from clapforget.posterior.familiarity import Scale, signs
from clapforget.posterior.regression import Regression, fit_regression
from clapforget.posterior.temperature import best_rates, best_temperature, pooled, spread_of

if TYPE_CHECKING:
    from clapforget.posterior.exact import ExactHead

__all__ = ["Part", "Pool", "Solution", "solve"]

_STRENGTHS = (1.0, 0.3, 3.0, 0.1, 10.0)
_SPREADS = (0.3, 0.03, 3.0, 0.003)
_LEFT_OUT = 2000  # learned samples that are left out in turn, at most
_FOR_RIDGE = 500  # of them, those by which a regression's λ is chosen: each λ is a factorisation of its own


@dataclass
class Part:
    """One posterior with its rate."""

    posterior: Discriminant | Regression
    size: int
    """How many of φ's entries it is on."""
    rate: float = 1.0
    """What its scores are multiplied by in its pool: of a pool of one, the inverse temperature."""
    spread: float = 1.0
    """Standard deviation of its left-out scores, the unit of the rate's inverse."""


@dataclass
class Pool:
    """Posteriors that answer together: ``softmax(Σ_k β_k scores_k)``."""

    parts: list[Part]
    weight: float = 1.0
    """In the average of the pools."""


@dataclass
class Solution:
    """What the sums say."""

    pools: list[Pool]
    """Whose predictives are averaged."""
    scale: Scale
    """Of the signs of familiarity, over learned samples."""

    @property
    def parts(self) -> list[Part]:
        """Of all pools."""
        return [part for pool in self.pools for part in pool.parts]

    @property
    def widest(self) -> int:
        """Which part is on most of φ, a discriminant before a regression: its density says how familiar an image
        looks."""
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

    def first(self, each: int) -> _Left:
        """The first so many of each class."""
        if not len(self.columns):
            return self
        rows = torch.arange(len(self.columns), device=self.columns.device)
        return self.of(F.one_hot(self.columns).cumsum(0)[rows, self.columns] <= each)


@torch.no_grad()
def solve(head: ExactHead) -> Solution:
    """A pool of a discriminant on the image feature, one on random features as well, and a regression on these;
    averaged with it, a discriminant whose covariance is spherical.

    The latter's weight is half of how often the pool is wrong of left-out samples, unless the settings give one. Of
    classes that CLIP does not know, a full covariance is sure of wrong answers where the spherical one doubts; where
    left-out answers are right, it has nothing to add.

    With nothing learned it is the regression's prior for every model, which is zero-shot CLIP.
    """
    v, labels = head.reservoir.sample(_LEFT_OUT)
    columns = head.columns(labels)
    left = _Left(head.map(v), columns, _ignorance(head, v, columns))
    fitted = _fitted(head, left)
    found = Solution([pool for pool, _ in fitted], Scale.of(left.phi.new_zeros(3, 0)))
    if len(columns):
        white = [own for _, whites in fitted for own in whites][found.widest][:, 0]
        widest, counted = found.parts[found.widest], (head.sums.count > 0) & ~head.retired
        first = head.sums.first[counted, : head.width]
        found.scale = Scale.of(
            signs(widest.posterior.likeness(white, counted), v[:, 0], first, head.text[counted])
        )
    return found


def _fitted(head: ExactHead, left: _Left) -> list[tuple[Pool, list[Tensor]]]:
    """The pools, each with the left-out samples as each of its parts whitens them, [n, V, size]."""
    model = head.settings.model if head.sums.count.any() else "regression"
    posteriors: list[tuple[Discriminant | Regression, int]] = []
    if model != "regression":
        prior = prior_means(head.sums, head.text)
        kappa0, psi = _hyper(head, prior, left)
        posteriors += [
            (fit_discriminant(head.sums, prior[:, :size], kappa0, psi, size), size)
            for size in dict.fromkeys((head.width, head.map.size))
        ]
    if model != "discriminant":
        few = left.first(max(1, _FOR_RIDGE // len(head.labels)))
        rows = few.phi, few.columns, few.weight
        fitted = fit_regression(head.sums, head.text, ~head.retired, *rows, head.settings.ridge)
        posteriors.append((fitted, head.map.size))
    pool, white, error = _pool(head, posteriors, left)
    weight = head.settings.spherical
    weight = error / 2 if weight is None else weight
    if model == "regression" or not weight > 0:
        return [(pool, white)]
    spherical = fit_discriminant(
        head.sums, prior[:, : head.width], kappa0, psi, head.width, spherical=True
    )
    doubting, own, _ = _pool(head, [(spherical, head.width)], left)
    doubting.weight = weight
    return [(pool, white), (doubting, own)]


def _pool(
    head: ExactHead, posteriors: list[tuple[Discriminant | Regression, int]], left: _Left
) -> tuple[Pool, list[Tensor], float]:
    """The rates of least left-out log loss; the left-out samples, whitened by each part; and the weighted part of
    them that the pool gets wrong, 1 where nothing could be left out."""
    white = [posterior.whiten(left.phi[..., :size]) for posterior, size in posteriors]
    if not _can_leave_out(head, left):
        share = 1 / len(posteriors)
        rates = [
            share / _temperature_without_data(posterior, head.scale) for posterior, _ in posteriors
        ]
        parts = [Part(*one, rate) for one, rate in zip(posteriors, rates, strict=True)]
        return Pool(parts), white, 1.0
    scores = torch.stack([
        _scores(head, posterior, own, left.columns)
        for (posterior, _), own in zip(posteriors, white, strict=True)
    ])  # fmt: skip
    rate = best_rates(scores, left.columns, left.weight, doubt=1.0)
    numbers = zip(posteriors, rate.tolist(), spread_of(scores).tolist(), strict=True)
    wrong = pooled(rate, scores).argmax(1) != left.columns
    error = float(left.weight[wrong].sum() / left.weight.sum())
    return Pool([Part(*one, beta, spread) for one, beta, spread in numbers]), white, error


def _can_leave_out(head: ExactHead, left: _Left) -> bool:
    return len(left.columns) > 0 and int(head.sums.count.count_nonzero()) > 1


def _scores(
    head: ExactHead, posterior: Discriminant | Regression, white: Tensor, columns: Tensor
) -> Tensor:
    return posterior.left_out(white, columns).masked_fill(head.retired, -torch.inf)


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

    @cache
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
