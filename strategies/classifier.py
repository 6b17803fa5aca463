"""CLIP as a classifier that Avalanche's own strategies can train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.clip import Clip

__all__ = ["ClipClassifier"]


class ClipClassifier(nn.Module):
    """A frozen CLIP under a linear classifier that begins as the class texts.

    Logits are ``s v·w_c`` with ``w_c = (t_c + δ_c) / ‖t_c + δ_c‖``; δ, zero at first, is what training
    changes: with δ = 0 it is zero-shot CLIP.
    """

    def __init__(
        self,
        clip: Clip,
        class_names: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}",),
    ) -> None:
        """:param clip: copied; the copy stays frozen. :param class_names: by label.
        :param templates: prompts with one ``{}``.
        """
        super().__init__()
        self.clip = clip.trainable_copy([])
        self.class_names, self.templates = tuple(class_names), tuple(templates)
        self.register_buffer("text", self._texts())
        self.delta = nn.Parameter(torch.zeros_like(self.text))

    text: Tensor

    @torch.no_grad()
    def _texts(self) -> Tensor:
        return self.clip.class_features(self.class_names, self.templates)

    @property
    def weights(self) -> Tensor:
        """w [C, d]."""
        return F.normalize(self.text + self.delta, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, h, w] in [0, 1]."""
        with torch.no_grad():
            v = self.clip.encode_image(x)
        return self.clip.scale.detach() * v @ self.weights.T

    @torch.no_grad()
    def forget(self, clip: Clip, labels: Iterable[int]) -> None:
        """Take a changed CLIP, and drop what training taught of some classes: their δ is zero again."""
        self.clip = clip
        self.text.copy_(self._texts())
        self.delta[list(labels)] = 0
        self.delta.grad = None
