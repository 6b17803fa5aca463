"""CLIP-Adapter (Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters",
IJCV 2024, arXiv 2110.04544), its adapter on the image side, trained along a stream::

    A(v) = relu(W₂ relu(W₁ v))            W₁ [d / reduction, d], W₂ [d, d / reduction]
    f = α A(v) + (1 − α) v                 logits_c = s (f / ‖f‖) · t_c

One adapter for all tasks; what keeps old tasks is the exemplar memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.errors import UserError, check_least, check_most
from clapforget.posterior.head import HEADS
from clapforget.posterior.trained import TrainedHead

__all__ = ["ClipAdapterHead", "ClipAdapterSettings"]


@dataclass(frozen=True)
class ClipAdapterSettings:
    """Options of CLIP-Adapter."""

    ratio: float = 0.2
    """α, how much of the adapter's answer is mixed in."""
    reduction: int = 4
    """The hidden layer is so many times narrower than the features."""
    lr: float = 0.1
    """Peak rate of stage 1."""
    relearn_steps: int = 500
    """Batches of the exemplars that are left, on a forget request."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that make no sense."""
        if not 0 < self.ratio <= 1:
            raise UserError(
                f"setting clip_adapter.ratio={self.ratio}", "give a part, above 0 and at most 1"
            )
        check_least(self, "clip_adapter", reduction=1, lr=0, relearn_steps=0)
        check_most(self, "clip_adapter", lr=10)


@HEADS.register("clip-adapter")
class ClipAdapterHead(TrainedHead):
    """A residual bottleneck on image features in front of CLIP's own comparison with the text."""

    Settings = ClipAdapterSettings
    settings_group = "clip_adapter"
    settings: ClipAdapterSettings

    def __init__(
        self, width: int, scale: float, settings: ClipAdapterSettings | None = None, seed: int = 0
    ) -> None:
        super().__init__(width, scale, settings, seed)
        hidden = max(1, width // self.settings.reduction)
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.reset()

    def reset(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for layer in (self.down, self.up):
                layer.reset_parameters()

    def adapt(self, v: Tensor) -> Tensor:
        """Unit-norm adapted features [n, d] of image features [n, d]."""
        out = F.relu(self.up(F.relu(self.down(v))))
        return F.normalize(torch.lerp(v, out, self.settings.ratio), dim=-1)

    def logits(self, v: Tensor) -> Tensor:
        return self.scale * self.adapt(v) @ self.text.T
