"""Accuracy on what is retained, and on what is forgotten."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation import GenericPluginMetric
from avalanche.evaluation.metrics import Mean

from clapforget.strategies.metrics.life import Life

__all__ = ["ForgetAccuracy", "RetainAccuracy", "unlearning_metrics"]


class _SplitAccuracy(GenericPluginMetric[float, Mean]):
    """Top-1 accuracy over one part of an evaluated stream; 0 where that part has no image.

    Which classes are forgotten is read off the train experiences (:class:`Life`), so it
    works with any strategy that is trained on an interleaved stream. A class that several test
    experiences show, because it was learned again, counts in the first of them alone.
    """

    forgotten_part: bool

    def __init__(self) -> None:
        super().__init__(Mean(), reset_at="stream", emit_at="stream", mode="eval")
        self.life = Life()
        self._shown: dict[int, int] = {}

    def before_training_exp(self, strategy: Any) -> Any:
        self.life.live(strategy.experience)
        return super().before_training_exp(strategy)

    def before_eval(self, strategy: Any) -> Any:
        self._shown = {}
        return super().before_eval(strategy)

    def update(self, strategy: Any) -> None:
        right = strategy.mb_output.argmax(1) == strategy.mb_y
        forgotten, number = self.life.forgotten[-1], strategy.experience.current_experience
        part = [
            float(ok) for ok, y in zip(right.tolist(), strategy.mb_y.tolist())
            if (y in forgotten) == self.forgotten_part and self._shown.setdefault(y, number) == number
        ]  # fmt: skip
        if part:
            self._metric.update(sum(part) / len(part), len(part))


class RetainAccuracy(_SplitAccuracy):
    """``Top1_RetainAcc_Stream``: accuracy on classes that are not forgotten."""

    forgotten_part = False

    def __str__(self) -> str:
        return "Top1_RetainAcc_Stream"


class ForgetAccuracy(_SplitAccuracy):
    """``Top1_ForgetAcc_Stream``: accuracy on forgotten classes; low is good."""

    forgotten_part = True

    def __str__(self) -> str:
        return "Top1_ForgetAcc_Stream"


def unlearning_metrics() -> list[GenericPluginMetric[float, Mean]]:
    """Both, for an ``EvaluationPlugin``."""
    return [RetainAccuracy(), ForgetAccuracy()]
