"""Visual-guided attention: class texts ask, images answer.

It follows CLAP (Jha et al., "CLAP4CLIP: Continual Learning with Probabilistic Finetuning for
Vision-Language Models", NeurIPS 2024) as its released program runs: one post-norm transformer
decoder layer whose self-attention is masked to the classes of one task. Here every task's
self-attention is one entry of a batched product, so that no score is made only to be masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.blocks import Blocks
from clapforget.dropout import dropout as drop

__all__ = ["Groups", "VisualGuidedAttention", "block_mask"]


def block_mask(group: Tensor) -> Tensor:
    """Attention mask [Q, Q], True where query i must not look at query j.

    :param group: group id of each query, [Q]; a query sees only queries of its own group.
    """
    return group[:, None] != group[None, :]


@dataclass(frozen=True)
class Groups:
    """Which queries see each other, made once for a head's classes.

    Queries alone in their group (retired classes) need no scores; the others stand in blocks, or,
    where blocks of very unequal groups would be mostly padding, behind a mask.
    """

    alone: Tensor
    """Rows of the queries alone in their group."""
    together: Tensor
    """Rows of the others."""
    blocks: Blocks | None
    """Groups of the rows ``together``; None: ``seen`` is used."""
    seen: Tensor | None
    """True where a row may look, over the rows ``together``; in blocks only if some are padded."""

    @classmethod
    def of(cls, group: Tensor) -> Groups:
        """:param group: group id of each query, [Q]."""
        _, place, count = group.unique(return_inverse=True, return_counts=True)
        single = count[place] == 1
        alone, together = single.nonzero().flatten(), (~single).nonzero().flatten()
        blocks = Blocks.of(group[together])
        if 2 * blocks.groups * blocks.size**2 > len(together) ** 2 and blocks.groups > 1:
            return cls(alone, together, None, ~block_mask(group[together]))
        seen = ~blocks.empty[:, None, None, :] if blocks.empty.any() else None
        return cls(alone, together, blocks, seen)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
        """Scaled dot-product attention of queries, keys and values [Q, d] inside the groups: [Q, d]."""
        if len(self.alone):
            q, k, v, whole = q[self.together], k[self.together], v[self.together], v
        if self.blocks is None:
            q, k, v = (_split(rows[None], heads) for rows in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, self.seen, dropout)
            mixed = _merge(out)[0]
        elif len(self.together):
            q, k, v = (_split(self.blocks.pad(rows), heads) for rows in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, self.seen, dropout)
            mixed = self.blocks.unpad(_merge(out))
        else:
            mixed = q
        if not len(self.alone):
            return mixed
        own = whole[self.alone].unflatten(1, (heads, -1))
        sure = drop(own.new_ones(*own.shape[:2], 1), dropout)  # softmax over one score
        out = torch.empty_like(whole).index_copy(0, self.alone, (sure * own).flatten(1))
        return out.index_copy(0, self.together, mixed)


class VisualGuidedAttention(nn.Module):
    """One post-norm transformer decoder layer, shared by all tasks.

    Class text features ask (self-attention inside the task), images answer (cross-attention).
    Feed-forward width 2048, GELU, dropout 0.1, one head; the closing layer norm makes the guidance
    about √d long where the text feature has length one. That is the released scale, kept.
    """

    def __init__(
        self, width: int, heads: int = 1, feedforward: int = 2048, dropout: float = 0.1,
        bfloat16: bool = False,
    ) -> None:  # fmt: skip
        """:param width: d of the joint space. :param bfloat16: multiply matrices in bfloat16; weights,
        sums and results stay as they are."""
        super().__init__()
        self.heads, self.dropout, self._rounds = heads, dropout, bfloat16
        self.layer = nn.TransformerDecoderLayer(
            width, heads, feedforward, dropout, activation="gelu", batch_first=True
        )

    def forward(self, queries: Tensor, context: Tensor, groups: Groups) -> Tensor:
        """Guidance a [..., Q, d].

        :param queries: class text features, and task tokens, [Q, d].
        :param context: image features [..., K, d]; leading dimensions are separate contexts.
        :param groups: who sees whom among the queries.
        """
        return self.answer(self.ask(queries, groups), context)

    def ask(self, queries: Tensor, groups: Groups) -> Tensor:
        """The half that no image enters: self-attention, [Q, d]."""
        with self._precision(queries):
            return self._ask(queries, groups).to(queries.dtype)

    def _ask(self, queries: Tensor, groups: Groups) -> Tensor:
        layer, block = self.layer, self.layer.self_attn
        q, k, v = F.linear(queries, block.in_proj_weight, block.in_proj_bias).chunk(3, -1)
        mixed = block.out_proj(groups.attend(q, k, v, self.heads, self._dropout))
        return layer.norm1(queries + drop(mixed, self._dropout))

    def answer(self, asked: Tensor, context: Tensor) -> Tensor:
        """The half that images enter: cross-attention and feed-forward, [..., Q, d]."""
        with self._precision(asked):
            return self._answer(asked, context).to(asked.dtype)

    def _answer(self, asked: Tensor, context: Tensor) -> Tensor:
        layer, p = self.layer, self._dropout
        x = layer.norm2(asked + drop(self._look(asked, context), p))
        hidden = drop(F.gelu(layer.linear1(x)), p)
        return layer.norm3(x + drop(layer.linear2(hidden), p))

    def _look(self, asked: Tensor, context: Tensor) -> Tensor:
        """Cross-attention of queries [Q, d] to images [..., K, d]: [..., Q, d].

        With ``q = W_q x + b_q``, ``k = W_k y + b_k`` a score is ``q·k = x·(W_qᵀ k) + b_q·k``, and what an
        image answers goes through ``W_o`` before the sum over images as well as after it. So where images
        are fewer than queries, as in training, both projections are made of the images.
        """
        block, (n, d), k = self.layer.multihead_attn, asked.shape, context.shape[-2]
        contexts, extra = math.prod(context.shape[:-2]), 2 * n * k * (self.heads - 1)
        w_q, w_kv = block.in_proj_weight.split([d, 2 * d])
        b_q, b_kv = block.in_proj_bias.split([d, 2 * d])
        keys, values = (_split(part, self.heads) for part in F.linear(context, w_kv, b_kv).chunk(2, -1))
        if contexts * (2 * k * d + extra) < (1 + contexts) * n * d:
            keys = keys / math.sqrt(d / self.heads)
            offset = keys @ b_q.view(self.heads, -1, 1)  # [..., heads, K, 1]
            scores = asked @ (keys @ w_q.view(self.heads, -1, d)).mT + offset.mT
            sure = drop(scores.softmax(-1), self._dropout)
            answers = values @ block.out_proj.weight.view(d, self.heads, -1).permute(1, 2, 0)
            return (sure @ answers).sum(-3) + block.out_proj.bias
        q = _split(F.linear(asked, w_q, b_q), self.heads)
        q = q.expand(*keys.shape[:-2], *q.shape[-2:])
        mixed = F.scaled_dot_product_attention(q, keys, values, dropout_p=self._dropout)
        return block.out_proj(_merge(mixed))

    def _precision(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, torch.bfloat16, enabled=self._rounds)

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


def _split(rows: Tensor, heads: int) -> Tensor:
    """[..., n, d] to [..., heads, n, d / heads]."""
    return rows.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _merge(rows: Tensor) -> Tensor:
    """[..., heads, n, d / heads] to [..., n, d]."""
    return rows.transpose(-3, -2).flatten(-2)
