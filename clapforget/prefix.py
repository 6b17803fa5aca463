"""What a change leaves alone is computed once: a tower up to the first tensor that may change.

==========================================  =======================================================
what may change                             what is kept
==========================================  =======================================================
nothing of the tower                        its features
some of a transformer's last blocks, or     the activations that enter the first of those blocks
what comes after the blocks (final norm,
pooling, projection)
anything before the second block; a tower   nothing: each call computes the tower whole
of another layout
==========================================  =======================================================

Layouts that are known: those of :mod:`clapforget.towers`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.clip import Clip, Tower, tower_of
from clapforget.towers import blocks_owner, some_blocks, text_length

__all__ = ["Budget", "Prefix", "blocks_before"]

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_AFTER = re.compile(r"(parametrizations\.)?(ln_post|ln_final|attn_pool|proj|text_projection)(\.|$)")
_CHUNK = 64


class Budget:
    """Memory that activations may still take, shared by several prefixes."""

    def __init__(self, megabytes: float) -> None:
        self.bytes = int(megabytes * 2**20)

    def take(self, rows: int, row_bytes: int) -> int:
        """How many of the rows fit; their memory is taken."""
        rows = min(rows, self.bytes // max(row_bytes, 1))
        self.bytes -= rows * row_bytes
        return rows


class Prefix:
    """Inputs of one tower, encoded again and again while a part of it changes.

    Whatever is kept lives as long as this object.
    """

    def __init__(
        self, clip: Clip, tower: Tower, inputs: Tensor, changing: Collection[str] | None,
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        """:param clip: the reference: the model before any change.
        :param inputs: images [n, 3, h, w] of the image tower, token ids [n, L] of the text tower.
        :param changing: names of the parameters that may change; None: all.
        :param budget: for kept activations, default 1024 MB. Rows that find no room are computed
            whole in every call.
        """
        self.clip, self.tower, self.inputs = clip, tower, inputs
        names = clip.parameter_names(tower) if changing is None else changing
        self.frozen = all(tower_of(name) != tower for name in names)
        """Whether nothing of the tower changes."""
        self.skipped = blocks_before(clip, tower, names) if len(inputs) else 0
        """How many blocks come before everything that may change."""
        self._budget = budget or Budget(1024)
        self._length = text_length(clip.model, inputs) if tower == "text" and len(inputs) else None

    def __len__(self) -> int:
        return len(self.inputs)

    def __call__(self, clip: Clip, rows: Tensor | None = None) -> Tensor:
        """Unit features [m, d] of the rows [m] (default: all), by a model that differs from the
        reference in the parameters named and in no other. Differentiable in those."""
        if self.frozen:
            return self.reference if rows is None else self.reference[rows.to(self.clip.device)]
        rows = torch.arange(len(self)) if rows is None else rows.cpu()
        return torch.cat([self._encode(clip, part) for part in rows.split(256)])

    @cached_property
    @torch.no_grad()
    def reference(self) -> Tensor:
        """The reference's unit features [n, d]."""
        rows = torch.arange(len(self))
        return torch.cat([self._encode(self.clip, part) for part in rows.split(256)])

    def _encode(self, clip: Clip, rows: Tensor) -> Tensor:
        inputs = self.inputs[rows.to(self.inputs.device)]
        if self.frozen or not self.skipped:
            return (clip.encode_image if self.tower == "image" else clip.encode_tokens)(inputs)
        return self._after(clip, self._activations(rows).to(clip.dtype), inputs)

    # ---- activations -----------------------------------------------------------------------
    @cached_property
    @torch.no_grad()
    def _kept(self) -> Tensor:
        """Activations [m, L, w] of the first m rows, those that the budget has room for."""
        first = self._before(self.inputs[:_CHUNK])
        fit = self._budget.take(len(self), first[0].numel() * first.element_size())
        kept = first.new_empty(fit, *first.shape[1:])
        for start in range(0, fit, _CHUNK):
            end = min(start + _CHUNK, fit)
            kept[start:end] = self._before(self.inputs[start:end]) if start else first[:end]
        return kept

    @torch.no_grad()
    def _activations(self, rows: Tensor) -> Tensor:
        kept = self._kept
        rows = rows.to(kept.device)
        there = rows < len(kept)
        if there.all():
            return kept[rows]
        new = self._before(self.inputs[rows[~there].to(self.inputs.device)])
        found = new.new_empty(len(rows), *new.shape[1:])
        found[there], found[~there] = kept[rows[there]], new
        return found

    def _before(self, inputs: Tensor) -> Tensor:
        """What enters the first block that may change, [n, L, w]."""
        with some_blocks(
            self.clip.model, self.tower, slice(self.skipped), None, self._length
        ) as part:
            _run(self.clip, self.tower, inputs)
        return part.output

    def _after(self, clip: Clip, activations: Tensor, inputs: Tensor) -> Tensor:
        """Unit features [n, d] from activations [n, L, w]; of an image nothing else is needed."""
        if self.tower == "image":
            inputs = inputs.new_zeros(1, 3, clip.image_size, clip.image_size)
        with some_blocks(
            clip.model, self.tower, slice(self.skipped, None), activations, self._length
        ):
            return F.normalize(_run(clip, self.tower, inputs), dim=-1)


def blocks_before(clip: Clip, tower: Tower, changing: Collection[str]) -> int:
    """How many of a tower's blocks come before all the named parameters of that tower; 0 where its
    layout is unknown."""
    owner = blocks_owner(clip.model, tower)
    if owner is None:
        return 0
    root = "visual." if tower == "image" else "text." if owner is not clip.model else ""
    count = len(owner.transformer.resblocks)
    for name in changing:
        if tower_of(name) == tower:
            inside = name.removeprefix(root)
            block = _BLOCK.match(inside)
            if block is None and not _AFTER.match(inside):
                return 0
            count = min(count, int(block[1])) if block else count
    return count


def _run(clip: Clip, tower: Tower, inputs: Tensor) -> Tensor:
    model: Any = clip.model
    if tower == "text":
        return model.encode_text(inputs)
    return model.encode_image(clip.preprocess(inputs))
