"""Image features as a head reads them: CLIP's own, or those of an image tower with prompts in it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from clapforget.features import FeatureCache, ImageSource
from clapforget.strategies.model import ClapModel

__all__ = ["PromptedFeatures"]


class PromptedFeatures:
    """The cache of CLIP's features or, where prompts change them, a cache of its own beside it."""

    def __init__(self, model: ClapModel, plain: FeatureCache) -> None:
        """:param model: its prompts and CLIP of any time count. :param plain: of CLIP's features."""
        self.model, self.plain = model, plain
        self._own = FeatureCache(_Encoder(model)) if model.changes_images else None  # type: ignore[arg-type]

    def __call__(self, source: ImageSource, rows: Tensor, mirrored: bool = False) -> Tensor:
        """Unit-norm features [n, d] of the rows [n] of a source, on the model's device."""
        if self._own is None:
            return self.plain(source, rows, mirrored)
        self.refresh()
        return self._own(source, rows, mirrored)

    def drop(self, source: ImageSource, rows: Tensor) -> None:
        """Overwrite the features of some rows with zeros, every view of them."""
        self.plain.drop(source, rows)
        if self._own is not None:
            self._own.drop(source, rows)

    def refresh(self) -> bool:
        """Forget features that prompts or tower of now no longer give. :returns: whether there are
        prompts that change any, and they or the tower did."""
        return self._own is not None and self._own.use(_Encoder(self.model))  # type: ignore[arg-type]


class _Encoder:
    """What a feature cache asks of a CLIP, of one with prompts in its image tower."""

    def __init__(self, model: ClapModel) -> None:
        self.model = model
        clip = model.clip
        self.width, self.device, self.dtype = clip.width, clip.device, clip.dtype

    def fingerprint(self, tower: str) -> str:
        """Of the image tower and the prompts, as hex."""
        digest = hashlib.sha256(self.model.clip.fingerprint("image").encode())
        prompt = self.model.prompt
        assert prompt is not None and tower == "image"
        for name, value in sorted(prompt.named_parameters()):
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit-norm features [n, d]."""
        parts = [self.model.encode_image(part) for part in images.split(256)]
        return torch.cat(parts)
