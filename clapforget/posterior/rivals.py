"""Heads this project is compared with, on the same features, streams and requests.

``zero-shot``     Continual-CLIP (Thengane et al., 2022): the frozen model, nothing is learned
``nearest-mean``  SimpleCIL (Zhou et al., IJCV 2024): cosine to the mean feature of each class
``ranpac``        RanPAC (McDonnell et al., NeurIPS 2023), phase 2: ridge regression on random ReLU
                  features, λ from a split of each task's own data
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.errors import UserError, check_least, check_most
from clapforget.posterior.feature_map import FeatureMap, RandomReLU
from clapforget.posterior.head import HEADS, Change, OnePassHead
from clapforget.posterior.point import PointHead, PointSumsHead
from clapforget.posterior.temperature import best_temperature
from clapforget.seeding import generator_for

__all__ = ["NearestMeanHead", "RanPACHead", "RanPACSettings", "ZeroShotHead"]


@dataclass(frozen=True)
class RanPACSettings:
    """Options of RanPAC."""

    features: int = 2000
    """R, number of random features (published: 10,000), at most 20,000: memory grows with R²."""
    validation: float = 0.2
    """Part of each task's data on which λ is chosen."""
    calibrated: bool = False
    """Divide the scores by the temperature of least negative log likelihood on that part, the sums of the
    other part given; as published they are not scaled, and their softmax is nearly flat."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that make no sense."""
        check_least(self, "ranpac", features=1)
        check_most(self, "ranpac", features=20_000)
        if not 0 < self.validation < 1:
            raise UserError(
                f"setting ranpac.validation={self.validation}", "give a part between 0 and 1"
            )


@HEADS.register("zero-shot")
class ZeroShotHead(PointHead, OnePassHead):
    """Continual-CLIP: cosine with the text times CLIP's scale, among the classes met."""

    settings_group = "zero_shot"

    def logits(self, v: Tensor) -> Tensor:
        return self.scale * v @ self.text.T

    def learn(self, v: Tensor, labels: Tensor, ids: Tensor, tower: str) -> None:
        """Nothing."""

    def forget(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Nothing is stored: what CLIP's text tower forgot is forgotten here."""
        del held, settings, generator
        self.retire(self.met(change.labels))
        return {}

    keeps_of_samples = ""

    def forget_samples(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Nothing is stored."""
        return {}


@HEADS.register("nearest-mean")
class NearestMeanHead(PointSumsHead):
    """SimpleCIL: cosine with the class mean, times CLIP's scale."""

    settings_group = "nearest_mean"

    def __init__(self, width: int, scale: float, settings: Any = None, seed: int = 0) -> None:
        super().__init__(FeatureMap(width, 0, seed), False, width, scale, settings, seed)

    def solve(self) -> Tensor:
        return self.scale * F.normalize(self.sums.first, dim=1)


@HEADS.register("ranpac")
class RanPACHead(PointSumsHead):
    """RanPAC without its first-session adapter. As published it answers with unscaled regression
    scores, whose softmax says little of confidence; ``calibrated`` is for a fair look at that."""

    Settings = RanPACSettings
    settings_group = "ranpac"
    settings: RanPACSettings
    ridge: Tensor
    temperature: Tensor
    keeps_of_samples = "the ridge and the temperature, chosen when they were there"

    def __init__(
        self, width: int, scale: float, settings: RanPACSettings | None = None, seed: int = 0
    ) -> None:
        s = settings or RanPACSettings()
        super().__init__(RandomReLU(width, s.features, seed, 23), False, width, scale, s, seed)
        self.register_buffer("ridge", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("temperature", torch.tensor(1.0, dtype=torch.float64))

    def learn(self, v: Tensor, labels: Tensor, ids: Tensor, tower: str) -> None:
        """Add the task, and choose λ among 10⁻⁸ … 10⁸ by squared error on a part of it, the sums of
        the other part and of earlier tasks given (as the published program)."""
        order = torch.randperm(len(v), generator=generator_for(self.seed, 24, self.tasks))
        cut = round(len(v) * (1 - self.settings.validation))
        fit, check = order[:cut].to(v.device), order[cut:].to(v.device)
        super().learn(v[fit], labels[fit], ids[fit], tower)
        phi = self.map(v[check]).flatten(0, 1)
        target = F.one_hot(self.columns(labels[check]), len(self.labels)).double()
        target = target.repeat_interleave(v.shape[1], 0)
        values = torch.linalg.eigh(self.sums.second)
        inner, outer = values.eigenvectors.T @ self.sums.first.T, phi @ values.eigenvectors

        def scores(lam: float) -> Tensor:
            return (outer / (values.eigenvalues.clamp_min(0) + lam)) @ inner

        grid = torch.logspace(-8, 8, 17, dtype=torch.float64).tolist()
        self.ridge.fill_(min(grid, key=lambda lam: float((scores(lam) - target).square().mean())))
        if self.settings.calibrated and len(target):
            absent = self.retired | (self.sums.count == 0)
            found = scores(float(self.ridge)).masked_fill(absent, -torch.inf)
            self.temperature.fill_(best_temperature(found, target.argmax(1)))
        super().learn(v[check], labels[check], ids[check], tower)

    def solve(self) -> Tensor:
        matrix = self.sums.second
        matrix.diagonal().add_(float(self.ridge))
        return torch.linalg.solve(matrix, self.sums.first.T).T / self.temperature
