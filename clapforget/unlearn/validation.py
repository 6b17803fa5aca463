"""The best step of a training, chosen on a part of the task's own data that is held out from it.

The rule is ``Acc(retain) − Acc(forget)``, the highest wins, the earliest among equals. Published
programs choose on test data; nothing but the forget and the retain set is at hand here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.unlearn.base import ForgetTask
from clapforget.unlearn.search import Judge, hold_out

__all__ = ["Validation", "hold_out_task"]


def hold_out_task(task: ForgetTask, fraction: float) -> tuple[ForgetTask, ForgetTask]:
    """Split a task's two sets, each as :func:`~clapforget.unlearn.search.hold_out` does: what to
    train on, and what to choose on.

    :param fraction: held out of each set, above 0 and below 1. An empty retain set stays empty.
    :raises UserError: if a set has a single pair.
    """
    rng = generator_for(task.seed, 4)
    parts = [
        hold_out(pairs, fraction if len(pairs) else 0.0, rng)
        for pairs in (task.forget, task.retain)
    ]
    first, second = ({"forget": f, "retain": r} for f, r in zip(*parts))
    return replace(task, **first), replace(task, **second)


class Validation:
    """Watches a training and keeps the parameters of its best step."""

    def __init__(
        self, clip: Clip, held: ForgetTask, changing: Collection[str], megabytes: float = 1024
    ) -> None:
        """:param clip: the model before training. :param held: the data to choose on.
        :param changing: names of the parameters that train.
        :param megabytes: memory for activations before those parameters.
        """
        names = [*held.forget.names, *held.retain.names, *held.vocabulary]
        self._judge = Judge(
            clip, held.forget, held.retain, names, held.templates, changing, megabytes
        )
        self._best: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        """``step``, ``forget_accuracy`` and ``retain_accuracy`` (fractions) of each look."""
        self.best_step = 0

    @torch.no_grad()
    def look(self, clip: Clip, step: int, parameters: dict[str, nn.Parameter]) -> None:
        """Measure the model after a step, and keep its parameters if it is the best so far."""
        score = self._judge(clip)
        scores = {
            "forget_accuracy": round(score.forget_top1, 6),
            "retain_accuracy": round(score.retain_top1, 6),
        }
        before = max((_rule(look) for look in self.history), default=None)
        self.history.append({"step": step, **scores})
        if before is None or _rule(scores) > before:
            self.best_step = step
            self._best = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def restore(self, parameters: dict[str, nn.Parameter]) -> None:
        """Put the best step's values back."""
        for name, parameter in parameters.items():
            parameter.copy_(self._best[name])


def _rule(look: dict[str, Any]) -> float:
    return look["retain_accuracy"] - look["forget_accuracy"]
