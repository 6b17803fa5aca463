"""Arithmetic written out, beside which the package's is held."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def decoder_by_hand(layer: nn.TransformerDecoderLayer, text: Tensor, context: Tensor) -> Tensor:
    def attend(block: nn.MultiheadAttention, query: Tensor, memory: Tensor) -> Tensor:
        w_q, w_k, w_v = block.in_proj_weight.chunk(3)
        b_q, b_k, b_v = block.in_proj_bias.chunk(3)
        q, k, v = query @ w_q.T + b_q, memory @ w_k.T + b_k, memory @ w_v.T + b_v
        heads = zip(*(part.chunk(block.num_heads, 1) for part in (q, k, v)))
        answers = [(a @ b.T / math.sqrt(a.shape[1])).softmax(1) @ c for a, b, c in heads]
        return block.out_proj(torch.cat(answers, 1))

    x = layer.norm1(text + attend(layer.self_attn, text, text))
    x = layer.norm2(x + attend(layer.multihead_attn, x, context))
    return layer.norm3(x + layer.linear2(F.gelu(layer.linear1(x))))
