"""Options of the exact posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clapforget.errors import UserError, check_least, check_most

__all__ = ["ExactSettings"]


@dataclass(frozen=True)
class ExactSettings:
    """Options of the exact posterior."""

    model: Literal["discriminant", "regression", "both"] = "discriminant"
    """Which models answer together, in a log-linear pool whose rates are those of the least left-out log loss. The
    preset ``best`` takes both; a regression's λ takes three or four factorisations more."""
    features: int = 1000
    """R, number of random ReLU features beside the image feature, at most 20,000; time and memory grow with
    R² (at 20,000 the sums alone take 1.6 GB). The preset ``best`` takes 2,000. With R > 0 the discriminant comes
    twice: on the image feature alone, and on both."""
    spherical: float | None = None
    """Weight, beside 1 of the pool, of one more discriminant that is averaged with it: on the image feature alone,
    with so strong a prior of the covariance that it is spherical. None: half the left-out error of the pool, so that
    it counts where the pool fails. A regression alone has none."""
    samples: int = 20
    """Monte Carlo samples M behind the uncertainties."""
    strength: float | None = None
    """κ₀ of the discriminant: how many images the text prior counts for; None: by leave-one-out."""
    spread: float | None = None
    """ψ of the discriminant: the prior's covariance ψ I counts for one image (features have length
    1); None: by leave-one-out."""
    ridge: float | None = None
    """λ of the regression per 1,000 samples; None: by leave-one-out."""
    reservoir: int = 10
    """Learned samples a class on which leave-one-out scores are computed."""
    calibrate_on: Literal["unknown", "all"] = "unknown"
    """Weigh classes in the rates by how little zero-shot CLIP knows them, (1 − accuracy)²:
    of classes that CLIP was trained on, it may have seen these very images, and their left-out
    scores flatter. ``all``: weigh them alike."""
    by_class: bool = False
    """Keep second moments by class (C·D²/2 numbers), so that a class can be deleted without data."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that make no sense."""
        check_least(self, "exact", features=0, samples=1, reservoir=1)
        check_most(self, "exact", features=20_000, samples=10_000, reservoir=1_000_000)
        if self.spherical is not None:
            check_least(self, "exact", spherical=0)
        for name in ("strength", "spread", "ridge"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"setting exact.{name}={value}", "give a positive number")

    @property
    def unsaid(self) -> frozenset[str]:
        """Fields of a :class:`~clapforget.posterior.Predictive` that its predictions leave out."""
        return frozenset({"expected_energy"})
