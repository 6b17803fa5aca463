"""A linear classifier that starts at the class texts and is trained along a stream with replay.

``logits_c = s v · w_c / ‖w_c‖``, w_c from t_c on: fine-tuning of the head alone (Wortsman et al.,
"Robust fine-tuning of zero-shot models", CVPR 2022, start from the texts; the cosine keeps old and new
classes on one scale: Hou et al., "Learning a Unified Classifier Incrementally", CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.errors import check_least, check_most
from clapforget.posterior.head import HEADS
from clapforget.posterior.trained import TrainedHead

__all__ = ["LinearHead", "LinearSettings"]


@dataclass(frozen=True)
class LinearSettings:
    """Options of the linear classifier."""

    lr: float = 0.05
    """Peak rate of stage 1."""
    relearn_steps: int = 500
    """Batches of the exemplars that are left, on a forget request."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that make no sense."""
        check_least(self, "linear", lr=0, relearn_steps=0)
        check_most(self, "linear", lr=10)


@HEADS.register("linear")
class LinearHead(TrainedHead):
    """Class weights [C, d], trained. A forgotten class is answered by its text alone."""

    Settings = LinearSettings
    settings_group = "linear"
    settings: LinearSettings

    def __init__(
        self, width: int, scale: float, settings: LinearSettings | None = None, seed: int = 0
    ) -> None:
        super().__init__(width, scale, settings, seed)
        self.weight = nn.Parameter(torch.zeros(0, width))

    def reset(self) -> None:
        self.weight = nn.Parameter(self.text.clone())

    def grow(self, labels: Sequence[int], templates: Tensor) -> None:
        known = {label: row for row, label in enumerate(self.labels.tolist())}
        old, retired = self.weight.detach(), self.retired
        super().grow(labels, templates)
        weight = self.text.clone()
        for column, label in enumerate(self.labels.tolist()):
            if label in known and not retired[known[label]]:
                weight[column] = old[known[label]]
        self.weight = nn.Parameter(weight)

    def logits(self, v: Tensor) -> Tensor:
        weight = torch.where(self.retired[:, None], self.text, F.normalize(self.weight, dim=-1))
        return self.scale * v @ weight.T

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state of any number of classes."""
        self.weight = nn.Parameter(
            torch.empty_like(state_dict["weight"], device=self.weight.device)
        )
        return super().load_state_dict(state_dict, strict, assign)
