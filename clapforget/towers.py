"""A tower of CLIP run in parts: some of its blocks, or no further than its texts reach.

Layouts that are known: open_clip's ``VisionTransformer``, ``CLIP`` and ``TextTransformer`` around a
``Transformer`` with the batch first. A causal text tower that pools at the end token is run up to the
longest text's end and no further, which changes no feature: no token sees a later one. A
``ModifiedResNet`` that pools by attention asks for its first token alone, the one that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.transformer import TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn

__all__ = ["blocks_owner", "one_query", "some_blocks", "text_length"]


def blocks_owner(model: Any, tower: str) -> Any:
    """The module whose ``transformer`` does a tower's work; None where the layout is unknown, or
    where a subclass, a hook or a replaced forward does more than the blocks do.

    :param model: of open_clip. :param tower: ``image`` or ``text``.
    """
    owner = model.visual if tower == "image" else getattr(model, "text", model)
    transformer: Any = getattr(owner, "transformer", None)
    known = type(owner) in ((VisionTransformer,) if tower == "image" else (CLIP, TextTransformer))
    if not known or type(transformer) is not Transformer or _changed(transformer):
        return None
    return owner if transformer.batch_first else None


def _changed(module: nn.Module) -> bool:
    """Whether calling it does more, or other things, than its class says: hooks, another forward."""
    hooks = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
        module._backward_pre_hooks,
    )  # fmt: skip
    return any(map(len, hooks)) or "forward" in vars(module)


def text_length(model: Any, tokens: Tensor) -> int | None:
    """Tokens up to the longest text's end, where no later one can matter; else None.

    :param tokens: ids [n, L], n at least 1.
    """
    owner = blocks_owner(model, "text")
    mask = getattr(owner, "attn_mask", None)
    pool = getattr(owner, "text_pool_type", getattr(owner, "pool_type", ""))
    pads = getattr(owner, "use_pad_mask", False) or getattr(owner, "cls_emb", None) is not None
    if pool != "argmax" or pads or mask is None:
        return None
    later = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return int(tokens.argmax(-1).max()) + 1 if mask[later].isneginf().all() else None


@contextmanager
def some_blocks(
    model: Any, tower: str, blocks: slice, given: Tensor | None, length: int | None
) -> Iterator[_Part]:
    """Inside, only some of a tower's blocks run, over the first tokens only where a length is given.

    :param given: what enters the first of these blocks [n, L, w]; None: what the tower makes of its
        input. :param length: tokens of a text.
    """
    owner = blocks_owner(model, tower)
    whole = owner.transformer
    part = _Part(whole, blocks, given, length)
    owner.transformer = part
    try:
        yield part
    finally:
        owner.transformer = whole


@contextmanager
def one_query(model: Any) -> Iterator[None]:
    """Inside, open_clip's attention pooling of images asks for the token that it reads, and no more:
    it works out all tokens' answers and drops all but the first. Features and gradients are the
    same up to rounding; a pool with a hook, another forward or of another class runs whole.
    """
    owner = model.visual
    pool: Any = getattr(owner, "attnpool", None)
    if type(owner) is not ModifiedResNet or type(pool) is not AttentionPool2d or _changed(pool):
        yield
        return
    owner.attnpool = _OneQuery(pool)
    try:
        yield
    finally:
        owner.attnpool = pool


class _OneQuery(nn.Module):
    """``AttentionPool2d``, asked by the mean token alone: [n, w, h, h] to [n, d].

    A head's score of a token, q · (K x + b), is (Kᵀ q) · x + q · b, and its answer is V (Σ aₜ xₜ) + c, for
    its weights aₜ sum to one: neither keys nor values of any token are worked out, and a pool of T
    tokens costs four products of width² an image in place of 2 + 2 T.
    """

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pool = self.pool
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        tokens = tokens + pool.positional_embedding.to(tokens.dtype)
        heads = (pool.num_heads, -1)
        q, k, v, c = pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj
        query = F.linear(tokens[:, 0], q.weight, q.bias).unflatten(-1, heads)
        query = query * query.shape[-1] ** -0.5
        asked = torch.einsum("nhe,hew->nhw", query, k.weight.unflatten(0, heads))
        level = (query * k.bias.unflatten(0, heads)).sum(-1, keepdim=True)
        found = (asked @ tokens.mT + level).softmax(-1) @ tokens
        answer = torch.einsum("nhw,hew->nhe", found, v.weight.unflatten(0, heads))
        return F.linear(answer.flatten(1) + v.bias, c.weight, c.bias)


class _Part(nn.Module):
    """Some blocks of a transformer in its place, from given activations [n, L, w] or its input."""

    output: Tensor

    def __init__(self, whole: Any, blocks: slice, given: Tensor | None, length: int | None) -> None:
        super().__init__()
        self.whole, self.blocks, self.given, self.length = whole, blocks, given, length

    def get_cast_dtype(self) -> torch.dtype:
        """As of the whole."""
        return self.whole.get_cast_dtype()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x[:, : self.length] if self.given is None else self.given
        if attn_mask is not None and self.length is not None:
            attn_mask = attn_mask[: self.length, : self.length]
        for block in self.whole.resblocks[self.blocks]:
            x = block(x, attn_mask=attn_mask)
        self.output = x
        return x
