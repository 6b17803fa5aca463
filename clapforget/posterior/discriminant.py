"""A Gaussian discriminant around the text: normal-inverse-Wishart posterior, Student-t predictive.

For the feature φ of an image of class c, with D = dim φ::

    Σ        ~ IW(Ψ₀, ν₀)             Ψ₀ = ψ I,  ν₀ = D + 2
    μ_c | Σ  ~ N(m_c, Σ / κ₀)
    φ | c    ~ N(μ_c, Σ)

m_c is the class's text feature carried over to the image side, ``m_c = ā + a (t_c − t̄)``: ā and t̄
are the means of image and text features over the classes with data, a their regression slope,
shrunk to 1 by one pseudo-class; on random features, which text does not have, m_c is ā for every
class. The posterior has (κ_c, μ̂_c, ν, Ψ) in closed form (Murphy, "Conjugate Bayesian analysis of
the Gaussian distribution", 2007, section 9), and a new φ is Student-t distributed with ``ν − D + 1``
degrees of freedom around μ̂_c with shape ``Ψ (κ_c + 1) / (κ_c (ν − D + 1))``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from clapforget.posterior.sums import FeatureSums
from clapforget.posterior.whitening import whiten

__all__ = ["Discriminant", "fit_discriminant", "prior_means"]

_SPHERICAL = 100  # images that a spherical covariance counts for, by image learned


@dataclass
class _Background:
    """All learned features as one Gaussian around their mean, whitened."""

    counted: Tensor
    """Classes that have data [C]."""
    centre: Tensor
    """[D]"""
    between: Tensor
    """Of each counted class, its mean's distance from the centre times √n."""
    inverse: Tensor
    """``(I + V Vᵀ)⁻¹`` of these V."""


@dataclass
class Discriminant:
    """The posterior, with Ψ = L Lᵀ."""

    prior: Tensor
    """m_c [C, D]."""
    kappa0: float
    kappa: Tensor
    """κ_c [C]."""
    mean: Tensor
    """μ̂_c [C, D]."""
    nu: float
    factor: Tensor
    """L [D, D]."""
    _around: _Background | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def freedom(self) -> float:
        """ν − D + 1."""
        return self.nu - self.size + 1

    @property
    def precision(self) -> float:
        """ν − D − 1, so that Σ's expectation is Ψ over it."""
        return self.nu - self.size - 1

    @property
    def size(self) -> int:
        """D."""
        return self.factor.shape[0]

    def whiten(self, phi: Tensor) -> Tensor:
        """L⁻¹ φ of rows [..., D]."""
        return whiten(self.factor, phi)

    @cached_property
    def centres(self) -> Tensor:
        """L⁻¹ μ̂_c, [C, D]."""
        return self.whiten(self.mean)

    def scores(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log of each class's Student-t predictive, and the standard deviation of the log density
        under the posterior of the class's mean, Σ at its expectation: ``√(δ²/κ + D/(2κ²))`` with δ²
        the Mahalanobis distance. Of whitened rows [n, D] two [n, C]."""
        distance = _squared_distance(u, self.centres)
        mahalanobis = distance * self.precision
        spread = (mahalanobis / self.kappa + self.size / (2 * self.kappa.square())).sqrt()
        return _student(distance, self.kappa, self.freedom, self.factor), spread

    def likeness(self, u: Tensor, counted: Tensor) -> Tensor:
        """Relative Mahalanobis distance, negated (Ren et al., 2021): ``(φ − φ̄)ᵀ S⁻¹ (φ − φ̄) −
        min_c (φ − μ̂_c)ᵀ Σ⁻¹ (φ − μ̂_c)``, S the covariance of all learned features around their mean
        φ̄. Higher is more like what was learned. Of whitened rows [n, D], [n]

        :param counted: classes that have data [C].
        """
        if not counted.any():
            return u.new_zeros(len(u))
        around = self._background(counted)
        near = _squared_distance(u, self.centres[counted]).min(1).values
        u = u - around.centre
        along = u @ around.between.T
        background = u.square().sum(1) - (along @ around.inverse * along).sum(1)
        return (background - near) * self.precision

    def _background(self, counted: Tensor) -> _Background:
        """What :meth:`likeness` needs of all learned features together; kept for the next call."""
        if self._around is None or not torch.equal(self._around.counted, counted):
            total = (self.kappa - self.kappa0)[counted]
            centres = self.centres[counted]
            share = total / total.sum()
            centre = share @ centres
            between = (centres - centre) * total.sqrt()[:, None]
            # Ψ + VᵀV has the inverse Ψ⁻¹ − Ψ⁻¹Vᵀ (I + V Ψ⁻¹ Vᵀ)⁻¹ V Ψ⁻¹
            inner = torch.eye(len(between)).to(between) + between @ between.T
            self._around = _Background(counted, centre, between, torch.linalg.inv(inner))
        return self._around

    def left_out(self, u: Tensor, columns: Tensor) -> Tensor:
        """Log densities of learned samples, each as if it had not been learned; m_c stays. [n, C]

        Removing a sample of V views with residuals R [V, D] (rows ``φ_v − μ̂_c``) leaves
        ``Ψ − Rᵀ B R``, ``B = I/V + 11ᵀ/(V² (κ_c − 1))``: the inverse follows by Woodbury's identity,
        the determinant by ``|Ψ − Rᵀ B R| = |Ψ| |B| |B⁻¹ − R Ψ⁻¹ Rᵀ|``.

        :param u: whitened [n, V, D]; the first view is scored. :param columns: each one's class [n].
        """
        views = u.shape[1]
        centre = self.centres
        rows = torch.arange(len(u), device=u.device)
        less = self.kappa[columns] - 1
        residual = u - centre[columns][:, None]
        eye = torch.eye(views).to(u)
        weight = eye / views + torch.ones_like(eye) / (views**2 * less)[:, None, None]
        inner = torch.linalg.inv(torch.linalg.inv(weight) - residual @ residual.mT)
        distance = _squared_distance(u[:, 0], centre)
        along = torch.einsum("nd,nvd->nv", u[:, 0], residual)[:, None] - torch.einsum(
            "cd,nvd->ncv", centre, residual
        )
        own = residual[:, 0] + residual.mean(1) / less[:, None]
        distance[rows, columns] = own.square().sum(1)
        along[rows, columns] = torch.einsum("nd,nvd->nv", own, residual)
        distance = distance + (along @ inner * along).sum(2)
        kappa = self.kappa.expand_as(distance).clone()
        kappa[rows, columns] = less
        shrunk = weight.logdet() - inner.logdet()
        return _student(distance, kappa, self.freedom - 1, self.factor) - shrunk[:, None] / 2

    def nats(self) -> Tensor:
        """KL of each mean's posterior over its prior given Σ at its expectation, [C]:
        ``½ [D (κ₀/κ − 1 − log κ₀/κ) + κ₀ (μ̂ − m)ᵀ Σ⁻¹ (μ̂ − m)]``."""
        size = self.size
        ratio = self.kappa0 / self.kappa
        moved = self.whiten(self.mean - self.prior).square().sum(1) * self.precision
        return 0.5 * (size * (ratio - 1 - ratio.log()) + self.kappa0 * moved)


def fit_discriminant(
    sums: FeatureSums, prior: Tensor, kappa0: float, psi: float, size: int, spherical: bool = False
) -> Discriminant:
    """The posterior on the first ``size`` entries of φ.

    :param prior: m_c [C, size].
    :param spherical: add ``100 n σ² I`` to Ψ₀, n the images learned and σ² their mean variance, and
        100 n to ν₀: what the data say of the covariance's shape then hardly counts.
    """
    kappa, mean, scatter = _posterior(sums, prior, kappa0, size)
    learned = float(sums.count.sum())
    nu = size + 2 + learned
    if spherical:
        nu += _SPHERICAL * learned
        psi += _SPHERICAL * float(scatter.diagonal().mean())
    scatter.diagonal().add_(psi)
    return Discriminant(prior, kappa0, kappa, mean, nu, torch.linalg.cholesky(scatter))


def prior_means(sums: FeatureSums, text: Tensor) -> Tensor:
    """m_c [C, D] from the text features t_c [C, d] and the classes with data."""
    width, seen = text.shape[1], sums.count > 0
    text = text.double()
    means = sums.first[seen] / sums.count[seen][:, None]
    prior = text.new_zeros(len(text), sums.size)
    if not seen.any():
        prior[:, :width] = text
        return prior
    images, words = means[:, :width], text[seen]
    image_centre, text_centre = means.mean(0), words.mean(0)
    away = words - text_centre
    slope = (1 + (away * (images - image_centre[:width])).sum()) / (1 + away.square().sum())
    prior += image_centre
    prior[:, :width] += slope * (text - text_centre)
    return prior


def _posterior(
    sums: FeatureSums, prior: Tensor, kappa0: float, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """κ [C], μ̂ [C, size] and Ψ − Ψ₀ [size, size], right on and below the diagonal."""
    kappa = kappa0 + sums.count
    mean = (kappa0 * prior + sums.first[:, :size]) / kappa[:, None]
    scatter = sums.second_lower(size)
    scatter.addmm_(torch.cat([prior * kappa0, mean * -kappa[:, None]]).T, torch.cat([prior, mean]))
    return kappa, mean, scatter


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    square = a.square().sum(1, keepdim=True) - 2 * a @ b.T + b.square().sum(1)
    return square.clamp_min(0)


def _student(distance: Tensor, kappa: Tensor, freedom: float, factor: Tensor) -> Tensor:
    size = factor.shape[0]
    stretch = (kappa + 1) / kappa
    half = (freedom + size) / 2
    constant = math.lgamma(half) - math.lgamma(freedom / 2) - size / 2 * math.log(math.pi)
    constant -= float(factor.diagonal().log().sum())
    return constant - size / 2 * stretch.log() - half * torch.log1p(distance / stretch)
