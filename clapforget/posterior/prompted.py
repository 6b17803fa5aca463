"""A head that is nothing but learned prompts: the class weight is the prompted text feature itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clapforget.posterior.head import HEADS, Change
from clapforget.posterior.trained import TrainedHead
from clapforget.posterior.weights import Stage

__all__ = ["PromptedHead"]


@HEADS.register("prompted")
class PromptedHead(TrainedHead):
    """CoOp, AttriCLIP or MaPLe as published, without adapters: ``logits_c = s v · t_c``.

    The prompts are shared by all classes. What they learned from deleted images for other classes
    stays; a forgotten class is worded by the data's templates.
    """

    settings_group = "prompted"
    keeps_of_samples = "the prompts, learned while the samples stood in their batches"

    def reset(self) -> None:
        """Nothing: prompts are not learned afresh."""

    def optimizer(self, stage: Stage) -> torch.optim.Optimizer:
        assert self.prompt is not None
        group = self.prompt.optimised()
        rate = 1.0 if stage == "newest" else 0.1
        return torch.optim.SGD([{**group, "lr": rate * self.prompt.settings.lr}])

    def logits(self, v: Tensor) -> Tensor:
        return self.shifted(self.scale * v @ self.text.T, v)

    def loss(self, logits: Tensor, v: Tensor, y: Tensor) -> Tensor:
        assert self.prompt is not None
        return super().loss(logits, v, y) + self.prompt.penalty(v)

    def forget(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Retire the classes."""
        self.retire(self.met(change.labels))
        return {}

    def forget_samples(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Nothing: see ``keeps_of_samples``."""
        return {}
