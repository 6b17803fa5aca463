"""Heads without a posterior: one logit a class, and how those made of sums forget."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clapforget import uncertainty
from clapforget.posterior.head import Change, Head
from clapforget.posterior.predictive import Predictive
from clapforget.posterior.sums_head import SumsHead

__all__ = ["PointHead", "PointSumsHead", "RivalSettings"]


@dataclass(frozen=True)
class RivalSettings:
    """No options."""


class PointHead(Head):
    """A head without a posterior: one logit a class, uncertainty of the softmax alone."""

    Settings: ClassVar[type] = RivalSettings

    @abstractmethod
    def logits(self, v: Tensor) -> Tensor:
        """Of image features [n, d], over all columns [n, C]."""

    @torch.no_grad()
    def predict(self, v: Tensor, batch_size: int = 4096) -> Predictive:
        """Softmax of the logits; mutual information and variances are zero."""
        return Predictive.cat([self._predict(part) for part in v.split(batch_size)])

    def _predict(self, v: Tensor) -> Predictive:
        logits = self.logits(v).masked_fill(self.hidden, -torch.inf)
        return Predictive.of_point(logits.softmax(-1), uncertainty.energy(logits), logits)

    def nats(self) -> Tensor:
        """Zero: there is no posterior."""
        return torch.zeros_like(self.labels, dtype=self.templates.dtype)


class PointSumsHead(PointHead, SumsHead):
    """A point head on additive sums, so that a class can be subtracted."""

    def forget(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Subtract the classes' images. Where that is impossible (the image tower changed, or a class
        was learned afresh from exemplars when it did), learn what remains afresh from the exemplars
        that are left."""
        del held, settings, generator
        met = self.met(change.labels)
        own = torch.isin(change.forget_labels, torch.tensor(met).to(change.forget_labels))
        afresh = self._take_away(change, own, met)
        if not afresh:
            for column in self.columns(met).tolist():
                self.sums.clear(column)
        self.retire(met)
        return {"relearned_from_exemplars": len(change.memory_after)} if afresh else {}

    keeps_of_samples = ""

    def forget_samples(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """As :meth:`forget`, of single samples."""
        del held, settings, generator
        labels = change.forget_labels.unique()
        every = torch.ones_like(change.forget_labels, dtype=torch.bool)
        afresh = self._take_away(change, every, labels.tolist())
        columns = self.columns(labels)
        for column in columns[self.sums.count[columns] < 0.5].tolist():
            self.sums.clear(column)
        return {"relearned_from_exemplars": len(change.memory_after)} if afresh else {}

    def _take_away(self, change: Change, own: Tensor, met: list[int]) -> bool:
        """Subtract the change's images where ``own`` [n], or learn afresh from the exemplars that
        are left. :returns: whether the latter."""
        self._solved = None
        if self.can_subtract(change, met):
            self._add(change.forget_before[own], change.forget_labels[own], -1.0)
            return False
        self.sums.empty()
        self._use(change.tower)
        self._add(change.memory_after, change.memory_labels)
        self.sums.carried = self.sums.count > 0
        return True

    def can_subtract(self, change: Change, met: list[int]) -> bool:
        """Whether what the sums hold of these classes is what the request's images add up to."""
        carried = bool(self.sums.carried[self.columns(met)].any())
        return not carried and not self._outdated(change.tower)

    def logits(self, v: Tensor) -> Tensor:
        if not self.sums.count.any():
            return self.scale * v @ self.text.T
        if self._solved is None:
            self._solved = self.solve()
        scores = (self.map(v) @ self._solved.T).to(v.dtype)
        return scores.masked_fill(self.retired | (self.sums.count == 0), -torch.inf)

    @abstractmethod
    def solve(self) -> Tensor:
        """Class weights [C, D] from the sums."""
