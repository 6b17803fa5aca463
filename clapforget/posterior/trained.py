"""Heads without a posterior that are trained by gradient steps, in the two stages CLAP has."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.posterior.head import Change
from clapforget.posterior.point import PointHead
from clapforget.posterior.weights import Stage

__all__ = ["TrainedHead"]

_MOMENTUM = 0.9
_BATCH = 32
_LATER = 0.1  # rate of stage 2 over that of stage 1, as CLAP's


class TrainedHead(PointHead):
    """Cross-entropy on the task's data and the memory, then on the memory alone.

    Everything learned is shared by the classes, so no part of it can be subtracted. On a forget
    request it is therefore learned afresh from the exemplars that are left: nothing of the deleted
    images stays in the head. Settings name ``lr``, the peak rate of stage 1, and
    ``relearn_steps``, batches of exemplars then.
    """

    @abstractmethod
    def reset(self) -> None:
        """Back to the start, before anything was learned."""

    def train_only(self, stage: Stage) -> None:
        """Ask for gradients of what a stage trains: all in both."""
        del stage
        self.requires_grad_(True)

    def close(self) -> None:
        """End the newest task's training."""

    def optimizer(self, stage: Stage) -> torch.optim.Optimizer:
        """A new optimiser of what requires gradients; in stage 2 at a tenth of the rate."""
        lr = self.settings.lr * (1.0 if stage == "newest" else _LATER)
        parameters = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(parameters, lr=lr, momentum=_MOMENTUM)

    def loss(self, logits: Tensor, v: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy among the classes that are not retired.

        :param logits: of :meth:`logits` [B, C]. :param v: image features [B, d].
        :param y: columns of the true classes [B].
        """
        del v
        return F.cross_entropy(logits.masked_fill(self.retired, -torch.inf), y)

    def forget(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Retire the classes and learn afresh from the exemplars that are left."""
        self.retire(self.met(change.labels))
        return self.forget_samples(change, held, settings, generator)

    keeps_of_samples = ""

    def forget_samples(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Learn afresh from the exemplars that are left."""
        del held, settings
        self.reset()
        self._relearn(change.memory_after, self.columns(change.memory_labels), generator)
        return {"relearned_from_exemplars": len(change.memory_after)}

    def _relearn(self, views: Tensor, columns: Tensor, generator: torch.Generator) -> None:
        """:param views: features [m, V, d]. :param columns: [m]."""
        m, steps = len(columns), self.settings.relearn_steps
        if not m or not steps:
            return
        self.train_only("newest")
        optimizer = self.optimizer("newest")
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(m, (_BATCH,), generator=generator)
                view = torch.randint(views.shape[1], (_BATCH,), generator=generator)
                v, y = views[rows, view], columns[rows]
                optimizer.zero_grad(set_to_none=True)
                self.loss(self.logits(v), v, y).backward()
                optimizer.step()
                schedule.step()
        self.requires_grad_(False)
        self.zero_grad(set_to_none=True)
