"""Ridge regression around the text: RanPAC's classifier (McDonnell et al., 2023) made Bayesian.

One-hot targets y and class weights w_c::

    w_c ~ N(w⁰_c, (σ²/λ) I)      w⁰_c = [a (t_c − t̄), 0]
    y_c | φ ~ N(φ · w_c, σ²)

so with ``A = Σ φφᵀ + λ I`` the posterior is ``w_c ~ N(A⁻¹ (Σ_c φ + λ w⁰_c), σ² A⁻¹)``: a matrix
normal, since A is shared. λ, a and σ² are those of the smallest squared left-out error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clapforget.posterior.sums import FeatureSums
from clapforget.posterior.whitening import whiten

__all__ = ["Regression", "fit_regression"]

_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_FIRST = 1e-1


@dataclass
class Regression:
    """The posterior, with A = L Lᵀ."""

    weight: Tensor
    """Means of w_c, [C, D]."""
    first: Tensor
    """``Σ_c φ`` [C, D]."""
    factor: Tensor
    """L [D, D]."""
    noise: float
    """σ."""
    ridge: float
    text: float
    """a."""

    def whiten(self, phi: Tensor) -> Tensor:
        """L⁻¹ φ of rows [..., D]."""
        return whiten(self.factor, phi)

    def scores(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of ``φ · w_c`` under the posterior. Of whitened rows [n, D] two
        [n, C]"""
        mean = u @ (self.weight @ self.factor).T
        return mean, self.noise * u.norm(dim=1)[:, None].expand_as(mean)

    def likeness(self, u: Tensor, counted: Tensor) -> Tensor:
        """Negative posterior variance of the scores: higher is more like what was learned. Of whitened
        rows [n, D], [n]"""
        return -(self.noise**2) * u.square().sum(1)

    def left_out(self, u: Tensor, columns: Tensor) -> Tensor:
        """Scores of learned samples, each as if it had not been learned. Whitened, [n, V, D], to [n, C]

        ``y − (I − H)⁻¹ (y − ŷ)`` with ``H = Φ A⁻¹ Φᵀ / V`` over a sample's V views.
        """
        target = torch.nn.functional.one_hot(columns, len(self.weight)).to(u)
        fitted = u @ (self.weight @ self.factor).T
        return target - left_out_error(u, target[:, None] - fitted)[:, 0]

    def nats(self) -> Tensor:
        """What the class's own images say of w_c, [C]: KL from the posterior in which they were no
        positives, ``½ (Σ_c φ)ᵀ A⁻¹ (Σ_c φ) / σ²``. Zero for a class without images."""
        return 0.5 * self.whiten(self.first).square().sum(1) / self.noise**2


def left_out_error(u: Tensor, error: Tensor) -> Tensor:
    """``(I − H)⁻¹ e`` of whitened samples [n, V, D] and their errors e [n, V, C]: [n, V, C]."""
    views = u.shape[1]
    return torch.linalg.solve(torch.eye(views).to(u) - u @ u.mT / views, error)


def fit_regression(
    sums: FeatureSums, text: Tensor, awake: Tensor, phi: Tensor, columns: Tensor,
    row_weight: Tensor, ridge: float | None,
) -> Regression:  # fmt: skip
    """The posterior; λ (unless given), a and σ² by the left-out error on some learned samples.

    Without any: λ = 1, a = 1, and σ² the variance of a one-hot target drawn at random.

    :param text: t_c [C, d]. :param awake: columns that the error counts [C]. :param phi: learned
        samples [n, V, D]. :param columns: theirs [n]. :param row_weight: of each sample [n].
    """
    width, seen = text.shape[1], sums.count > 0
    direction = torch.zeros_like(sums.first)
    centre = text[seen].double().mean(0) if seen.any() else 0.0
    direction[:, :width] = text.double() - centre
    target = torch.nn.functional.one_hot(columns, len(text)).to(sums.first)
    classes = max(int(awake.sum()), 1)

    def fit(value: float) -> tuple[float, Regression]:
        """The squared left-out error at a λ, and the posterior."""
        lam = value * max(1.0, float(sums.count.sum()) / 1000)
        matrix = sums.second_lower(sums.size)  # all that a Cholesky factorisation reads
        matrix.diagonal().add_(lam)
        factor = torch.linalg.cholesky(matrix)
        both = torch.cholesky_solve(torch.cat([sums.first, lam * direction]).T, factor).T
        own, prior = both.chunk(2)
        slope, loss = 1.0, (classes - 1) / classes**2
        if len(columns):
            u = whiten(factor, phi)
            error = left_out_error(u, target[:, None] - phi @ own.T)[:, 0]
            by_text = left_out_error(u, -phi @ prior.T)[:, 0]
            w = row_weight[:, None].to(error) * awake
            # error(a) = error + a · by_text, and by_text is minus what the text would add
            slope = float(
                -(w * error * by_text).sum() / (w * by_text * by_text).sum().clamp_min(1e-12)
            )
            slope = max(slope, 0.0)
            loss = float((w * (error + slope * by_text).square()).sum() / w.sum())
        noise = max(loss, 1e-12) ** 0.5
        return loss, Regression(own + slope * prior, sums.first, factor, noise, lam, slope)

    if ridge is not None or not len(columns):
        return fit(1.0 if ridge is None else ridge)[1]
    return _walk(fit)


def _walk(fit: Callable[[float], tuple[float, Regression]]) -> Regression:
    """Over the grid of λ from :data:`_FIRST`, downhill until a neighbour is no better."""
    at = _RIDGES.index(_FIRST)
    loss, best = fit(_RIDGES[at])
    for step in (-1, 1):
        start, here = loss, at
        while 0 <= here + step < len(_RIDGES):
            found, other = fit(_RIDGES[here + step])
            if not found < loss:
                break
            here, loss, best = here + step, found, other
        if loss < start:
            break
    return best
