"""Accuracies by task, and what later experiences did to them.

``acc(m, k)`` is the accuracy on task k at moment m: the mean over those of its classes that are
retained now. A class that is forgotten counts nowhere; one that was learned again counts in its
later task. Moment m is after the m-th train experience, and its evaluation the last one that
showed the classes before another experience began; what was not evaluated is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torchmetrics
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from clapforget.strategies.measure import minus
from clapforget.strategies.metrics.base import RetainedMetric

__all__ = [
    "AverageAccuracy", "BackwardTransfer", "Forgetting", "ForwardTransfer", "LastAccuracy",
    "TaskAwareAccuracy",
]  # fmt: skip


class _ByTask(RetainedMetric):
    """Keeps the accuracy of each class at each moment."""

    def __init__(self) -> None:
        super().__init__()
        self._right = torchmetrics.CatMetric()
        self._target = torchmetrics.CatMetric()
        self._tables: dict[int, dict[int, float]] = {}

    def answers(self, log_probs: Tensor, target: Tensor) -> Tensor:
        """The label answered for each image: [n] from [n, C] and the true labels [n]."""
        return log_probs.argmax(1)

    def update(self, log_probs: Tensor, target: Tensor) -> None:
        right = self.answers(log_probs, target) == target
        self._right.to(target.device).update(right.float())
        self._target.to(target.device).update(target.float())

    @property
    def now(self) -> dict[int, float]:
        """Accuracy of each class in this evaluation."""
        if not self._target.update_called:
            return {}
        target, right = self._target.compute().long(), self._right.compute()
        count = torch.bincount(target)
        mean = torch.bincount(target, right) / count
        return {c: float(mean[c]) for c in count.nonzero().flatten().tolist()}

    def at(self, moment: int) -> Mapping[int, float]:
        """Accuracy of each class at a moment."""
        return self._tables.get(moment, {})

    def over_tasks(self, table: Mapping[int, float]) -> float | None:
        """Mean over the tasks learned so far."""
        return _mean(_accuracy(table, self.life.classes(k)) for k in range(len(self.life.tasks)))

    def remember(self) -> None:
        """Keep what this evaluation found."""
        self._tables.setdefault(self.life.moment, {}).update(self.now)

    def after_eval(self, strategy: Any) -> list[MetricValue] | None:
        self.remember()
        return super().after_eval(strategy)

    def reset(self) -> None:
        super().reset()
        self._right.reset()
        self._target.reset()


class LastAccuracy(_ByTask):
    """``LastAccuracy_Stream``: mean of ``acc(m, k)`` over the tasks learned so far, now."""

    def result(self) -> float | None:
        return self.over_tasks(self.now)

    def __str__(self) -> str:
        return "LastAccuracy_Stream"


class TaskAwareAccuracy(LastAccuracy):
    """``TaskAwareAccuracy_Stream``: the same where the task is told, so that only its classes,
    forgotten ones included, are answers."""

    def answers(self, log_probs: Tensor, target: Tensor) -> Tensor:
        group = self.life.groups(log_probs.shape[1]).to(target.device)
        return log_probs.masked_fill(group != group[target][:, None], -torch.inf).argmax(1)

    def __str__(self) -> str:
        return "TaskAwareAccuracy_Stream"


class AverageAccuracy(_ByTask):
    """``AverageAccuracy_Stream``: mean of the last accuracy over the Learn experiences so far, with
    the classes that were retained at the time."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[int, float | None] = {}

    def remember(self) -> None:
        super().remember()
        moment = self.life.moment
        if moment in self.life.tasks:
            self._values[moment] = self.over_tasks(self.at(moment))

    def result(self) -> float | None:
        return _mean(self._values.values())

    def __str__(self) -> str:
        return "AverageAccuracy_Stream"


class BackwardTransfer(_ByTask):
    """``BackwardTransfer_Stream``: ``mean_k acc(now, k) − acc(learned, k)`` over all tasks but the
    newest (Lopez-Paz and Ranzato 2017, Eq. 3), in [−1, 1]; below 0 is loss."""

    def result(self) -> float | None:
        changes = []
        for k, learned in enumerate(self.life.tasks[:-1]):
            classes = self.life.classes(k)
            changes.append(
                minus(_accuracy(self.now, classes), _accuracy(self.at(learned), classes))
            )
        return _mean(changes)

    def __str__(self) -> str:
        return "BackwardTransfer_Stream"


class Forgetting(_ByTask):
    """``Forgetting_Stream``: ``mean_k max_m acc(m, k) − acc(now, k)`` over all tasks but the
    newest, m from the moment k was learned to the one before now (Chaudhry et al. 2018, Eq. 3),
    in [−1, 1]. Of what is retained: what a Forget request asked for is none of it."""

    def result(self) -> float | None:
        losses = []
        for k, learned in enumerate(self.life.tasks[:-1]):
            classes = self.life.classes(k)
            earlier = (
                _accuracy(self.at(moment), classes) for moment in range(learned, self.life.moment)
            )
            best = max((value for value in earlier if value is not None), default=None)
            losses.append(minus(best, _accuracy(self.now, classes)))
        return _mean(losses)

    def __str__(self) -> str:
        return "Forgetting_Stream"


class ForwardTransfer(_ByTask):
    """``ForwardTransfer_Stream``: ``mean_k acc(just before, k) − acc(start, k)`` over all tasks but
    the first (Lopez-Paz and Ranzato 2017, Eq. 4), in [−1, 1].

    Needs an evaluation before the first experience. A strategy that has no answer for classes it
    has not met, as CLAP's, can transfer nothing forward; classes that were forgotten before the
    task taught them again do not count.
    """

    def wanted(self, classes: set[int]) -> set[int]:
        return classes

    def result(self) -> float | None:
        changes = []
        for k, learned in enumerate(self.life.tasks[1:], start=1):
            gone = self.life.forgotten[learned - 1]
            classes = [c for c in self.life.classes(k) if c not in gone]
            before, start = self.at(learned - 1), self.at(0)
            changes.append(minus(_accuracy(before, classes), _accuracy(start, classes)))
        return _mean(changes)

    def __str__(self) -> str:
        return "ForwardTransfer_Stream"


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _accuracy(table: Mapping[int, float], classes: list[int]) -> float | None:
    """Mean over the classes, None unless all of them were evaluated."""
    return _mean(table.get(c) for c in classes) if table.keys() >= set(classes) else None
