"""Frozen image features, each computed once.

A cache belongs to one image tower: it is keyed by the tower's fingerprint, the data's fingerprint
and whether the view is mirrored, and forgets everything when the tower's weights change. It lives
in memory only, so that nothing of a deleted image stays on disk.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from clapforget.clip import Clip

__all__ = ["FeatureCache", "ImageSource"]


class ImageSource(Protocol):
    """Images that can be read by row and know their identity."""

    @property
    def fingerprint(self) -> str:
        """Identifies the pixels by row."""

    def images(self, indices: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] of the rows [n]."""

    def __len__(self) -> int: ...


class FeatureCache:
    """Image features by row, encoded when first asked for."""

    def __init__(self, clip: Clip) -> None:
        """:param clip: the model that encodes."""
        self.encoded = 0
        """Number of image encodings done so far (mirrored views count too)."""
        self._features: dict[tuple[str, bool], Tensor] = {}
        self._filled: dict[tuple[str, bool], Tensor] = {}
        self.clip = clip
        self.tower = clip.fingerprint("image")

    def use(self, clip: Clip) -> bool:
        """Encode with this model from now on. :returns: whether its image tower is another one
        than before, in which case every cached feature is dropped.
        """
        tower = clip.fingerprint("image")
        changed = tower != self.tower
        self.clip, self.tower = clip, tower
        if changed:
            self._features, self._filled = {}, {}
        return changed

    def share(self, other: FeatureCache) -> None:
        """Use and fill the features of another cache of the same image tower, until it changes."""
        assert other.tower == self.tower
        self._features, self._filled = other._features, other._filled

    @torch.no_grad()
    def __call__(self, source: ImageSource, rows: Tensor, mirrored: bool = False) -> Tensor:
        """Unit-norm features [n, d] of the rows [n] of a source, on the model's device."""
        key = (source.fingerprint, mirrored)
        if key not in self._features:
            shape = (len(source), self.clip.width)
            self._features[key] = torch.zeros(shape, device=self.clip.device, dtype=self.clip.dtype)
            self._filled[key] = torch.zeros(len(source), dtype=torch.bool)
        rows = rows.cpu()
        missing = rows[~self._filled[key][rows]].unique()
        for part in missing.split(1024):
            images = source.images(part)
            features = self.clip.encode_image(images.flip(-1) if mirrored else images)
            self._features[key][part.to(features.device)] = features
            self._filled[key][part] = True
            self.encoded += len(part)
        store = self._features[key]
        return store[rows.to(store.device)]

    def drop(self, source: ImageSource, rows: Tensor) -> None:
        """Overwrite the features of some rows with zeros, every view of them."""
        for mirrored in (False, True):
            key = (source.fingerprint, mirrored)
            if key in self._features:
                self._features[key][rows.to(self._features[key].device)] = 0
                self._filled[key][rows.cpu()] = False
