"""CLIP as a classifier that Avalanche's own strategies can train."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.errors import UserError

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
        """Take a changed CLIP's weights, and drop what training taught of some classes: their δ is zero
        again.

        The weights are written over the old ones: whoever holds these parameters, as an optimiser does,
        holds none of the old.

        :raises UserError: for a CLIP of other tensors.
        """
        old, new = self.clip.state_dict(), clip.state_dict()
        if {n: t.shape for n, t in old.items()} != {n: t.shape for n, t in new.items()}:
            raise UserError(
                "the forgetter gave back a CLIP with other tensors than it was given",
                "use one that keeps their names and shapes",
            )
        for name, tensor in old.items():
            tensor.copy_(new[name])
        self.text.copy_(self._texts())
        self.delta[list(labels)] = 0
        self.delta.grad = None

    def fingerprint(self) -> str:
        """SHA-256 of CLIP's weights and the classifier's own, as hex."""
        digest = hashlib.sha256(self.clip.fingerprint().encode())
        for own in (self.text, self.delta):
            digest.update(own.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
