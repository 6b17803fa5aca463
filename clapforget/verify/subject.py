"""What is examined: a bare CLIP, or a CLIP with a head that answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.posterior.predictive import Predictive
from clapforget.verify.inner import watch_last_block
from clapforget.verify.material import Part

__all__ = ["Subject"]

Answer = Callable[[Tensor, Tensor], Tensor]


@lru_cache(maxsize=16)
def _tokens(tokenizer: Any, names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
    """Token ids of class names, which before, after and every rounded copy share. Names of classes alone,
    which certificates hold too: a caption of a request must not come here."""
    return tokenizer([template.format(name) for name in names for template in templates])


def _finite(rows: Tensor) -> Tensor:
    """Rows [n, d], those that are not finite as zeros: a tower that overflows says nothing of them, and what is
    near no name is no knowledge."""
    return torch.where(rows.isfinite().all(1, keepdim=True), rows, 0)


@dataclass(eq=False)
class Subject:
    """A model under examination. What it works out for a set of images is kept."""

    clip: Clip
    answer: Answer | None = None
    """``answer(features [n, d], images [n, 3, h, w])`` gives logits [n, C] over :attr:`columns`;
    None: zero-shot among all names."""
    columns: Sequence[int] = ()
    """The class label of each column of the answer; empty: labels 0, 1, 2 …"""
    class_weights: Tensor | None = None
    """Stored class vectors [C, d] of a head, where it has any."""
    nats: dict[int, float] = field(default_factory=dict)
    """Nats of a head's posterior over its prior by class label, where it has one."""
    predict: Callable[[Tensor, Tensor], Predictive] | None = None
    """``predict(features, images)``: what the head's posterior predicts over :attr:`columns`, with its doubt,
    where it has one."""
    _features: dict[Part, Tensor] = field(default_factory=dict, repr=False)
    _inner: dict[Part, Tensor | None] = field(default_factory=dict, repr=False)
    _wordings: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = field(
        default_factory=dict, repr=False
    )

    def with_clip(self, clip: Clip) -> Subject:
        """The same head on other weights; nothing kept is carried over."""
        return replace(self, clip=clip, _features={}, _inner={}, _wordings={})

    def with_image_tower(self, clip: Clip) -> Subject:
        """The same on a CLIP that differs in its image tower alone: what texts came to is shared."""
        return replace(self, clip=clip, _features={}, _inner={})

    def passing(self) -> Subject:
        """The same subject, to be asked about images of which nothing is to be kept longer than it is."""
        return replace(self, _features={}, _inner={})

    def bare(self) -> Subject:
        """The CLIP without its head; what was worked out is shared."""
        return replace(self, answer=None, columns=(), class_weights=None, nats={}, predict=None)

    def ways(self) -> list[Subject]:
        """How it answers: by bare CLIP, and by its head where it has one."""
        return [self.bare()] if self.answer is None else [self.bare(), self]

    @torch.no_grad()
    def features(self, part: Part) -> Tensor:
        """Unit-norm image features [n, d], each part encoded once; zeros for an image of which the tower
        gives out what is not finite."""
        if part not in self._features:
            with watch_last_block(self.clip) as left:
                self._features[part] = _finite(self.clip.encode_image(part.images))
            inner = _finite(torch.cat(left)) if left else None
            self._inner[part] = inner if inner is not None and len(inner) == len(part) else None
        return self._features[part]

    def inner(self, part: Part) -> Tensor | None:
        """What the image tower's last block makes of the same images [n, w]; None where it shows none."""
        self.features(part)
        return self._inner[part]

    @torch.no_grad()
    def wordings(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Text features [C, L, d] of every name in every template, encoded once; zeros where one is
        not finite."""
        key = (tuple(names), tuple(templates))
        if key not in self._wordings:
            tokens = _tokens(self.clip.tokenizer, *key).to(self.clip.device)
            features = _finite(self.clip.encode_tokens(tokens))
            self._wordings[key] = features.view(len(names), len(templates), -1)
        return self._wordings[key]

    def names(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Class text features [C, d]: mean over templates, then unit norm."""
        return torch.nn.functional.normalize(self.wordings(names, templates).mean(1), dim=-1)

    def zero_shot(self, part: Part, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Cosines [n, C] of images with class names."""
        return self.features(part) @ self.names(names, templates).T

    @torch.no_grad()
    def logits(self, part: Part, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """What the subject answers, [n, columns]."""
        if self.answer is None:
            return self.clip.scale * self.zero_shot(part, names, templates)
        return self.answer(self.features(part), part.images)

    def column_labels(self, classes: int) -> Tensor:
        """Class label of each column of :meth:`logits`, [columns]."""
        own = list(self.columns) if self.answer is not None and len(self.columns) else None
        return torch.tensor(own if own is not None else list(range(classes)))
