"""Control: noise of a given size on the weights. Large, its verdict must be ``damaged``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch

from clapforget.clip import Clip
from clapforget.errors import check_least, check_most
from clapforget.unlearn.base import FORGETTERS, ForgetTask, Forgetter, Unlearned, generator_for

__all__ = ["RandomEdit", "RandomEditSettings"]


@dataclass(frozen=True)
class RandomEditSettings:
    """How much, and where."""

    relative: float = 1.0
    """Length of each tensor's change relative to the tensor's."""
    train: Literal["all", "image", "text"] = "all"

    def __post_init__(self) -> None:
        """:raises UserError: for a length out of range."""
        check_least(self, "forget", relative=0)
        check_most(self, "forget", relative=1_000)


@FORGETTERS.register("random-edit")
class RandomEdit(Forgetter):
    """Adds to every tensor a random direction of the same relative length."""

    Settings = RandomEditSettings
    settings: RandomEditSettings

    @torch.no_grad()
    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        s = self.settings
        rng = generator_for(task.seed, 2)
        changed = clip.trainable_copy([])
        names = set(clip.parameter_names(None if s.train == "all" else s.train))
        for name, parameter in changed.model.named_parameters():
            if name in names and parameter.ndim:
                noise = torch.randn(parameter.shape, generator=rng).to(parameter)
                size = s.relative * parameter.norm() / noise.norm().clamp_min(1e-12)
                parameter.add_(noise * size)
        return Unlearned(changed, 1, {}, {"settings": asdict(s)})
