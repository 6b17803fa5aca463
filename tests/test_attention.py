from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.adapter import StackedGaussianAdapters
from clapforget.attention import Groups, VisualGuidedAttention, block_mask

WIDTH = 12


def texts(classes: int, templates: int = 4, width: int = WIDTH, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(classes, templates, width, generator=generator), dim=-1)


def test_the_mask_lets_a_class_see_its_own_group_only() -> None:
    mask = block_mask(torch.tensor([0, 0, 1, 2, 1]))
    seen = {(i, j) for i in range(5) for j in range(5) if not mask[i, j]}
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 4), (4, 2), (4, 4), (3, 3)}


def by_hand(layer: nn.TransformerDecoderLayer, text: Tensor, context: Tensor) -> Tensor:
    """A post-norm decoder layer with one head, from its weights, without a mask."""

    def attend(block: nn.MultiheadAttention, query: Tensor, memory: Tensor) -> Tensor:
        w_q, w_k, w_v = block.in_proj_weight.chunk(3)
        b_q, b_k, b_v = block.in_proj_bias.chunk(3)
        q, k, v = query @ w_q.T + b_q, memory @ w_k.T + b_k, memory @ w_v.T + b_v
        weight = (q @ k.T / math.sqrt(q.shape[1])).softmax(1)
        return block.out_proj(weight @ v)

    x = layer.norm1(text + attend(layer.self_attn, text, text))
    x = layer.norm2(x + attend(layer.multihead_attn, x, context))
    return layer.norm3(x + layer.linear2(F.gelu(layer.linear1(x))))


def test_attention_is_the_decoder_layer_taken_group_by_group() -> None:
    torch.manual_seed(0)
    attention = VisualGuidedAttention(WIDTH, feedforward=32).eval()
    text, context = texts(6).mean(1), torch.randn(5, WIDTH)
    group = torch.tensor([0, 1, 0, 2, 1, 0])
    out = attention(text, context, Groups.of(group))
    for g in range(3):
        rows = group == g
        torch.testing.assert_close(out[rows], by_hand(attention.layer, text[rows], context))


def test_attention_is_deaf_to_other_groups_and_to_the_order_of_images() -> None:
    torch.manual_seed(0)
    attention = VisualGuidedAttention(WIDTH, feedforward=32).eval()
    text, context, group = texts(4).mean(1), torch.randn(5, WIDTH), torch.tensor([0, 0, 1, 1])
    out = attention(text, context, Groups.of(group))
    moved = text.clone()
    moved[3] += 1
    again = attention(moved, context.flip(0), Groups.of(group))
    torch.testing.assert_close(again[:2], out[:2])
    assert (again[2] - out[2]).abs().max() > 1e-3
    assert (attention(text, context + 1, Groups.of(group)) - out).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("width", [32, 128])
def test_guidance_is_about_sqrt_d_long_at_the_start(width: int) -> None:
    torch.manual_seed(0)
    attention = VisualGuidedAttention(width).eval()
    text, context = texts(9, width=width).mean(1), texts(20, width=width, seed=1)[:, 0]
    out = attention(text, context, Groups.of(torch.zeros(9)))
    torch.testing.assert_close(out.norm(dim=1), torch.full((9,), width**0.5), atol=0, rtol=1e-2)


def test_attention_has_the_released_size() -> None:
    attention = VisualGuidedAttention(512)
    assert sum(p.numel() for p in attention.parameters()) == 4_204_032
    adapters = StackedGaussianAdapters(512)
    adapters.open(texts(2, width=512), torch.Generator())
    assert sum(p.numel() for p in adapters.parameters()) == 525_312


GROUPINGS = {
    "equal": [0, 0, 1, 1, 2, 2],
    "equal, mixed up": [2, 0, 1, 0, 2, 1],
    "unequal": [0, 1, 0, 2, 1, 0, 3, 3, 1],
    "one group": [4, 4, 4, 4, 4, 4],
    "all alone": [5, 3, 1, 0, 2, 4],
    "one large, mostly padding": [0] * 9 + [1, 1, 2, 2, 3, 3, 4],
}


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("grouping", list(GROUPINGS))
def test_groups_equal_torchs_masked_decoder_layer(grouping: str, heads: int) -> None:
    torch.manual_seed(0)
    attention = VisualGuidedAttention(WIDTH, heads, feedforward=32).eval().double()
    group = torch.tensor(GROUPINGS[grouping])
    text, context = torch.randn(len(group), WIDTH).double(), torch.randn(5, WIDTH).double()
    leaves = [text.requires_grad_(), context.requires_grad_(), *attention.parameters()]
    ours = attention(text, context, Groups.of(group))
    torchs = attention.layer(text[None], context[None], tgt_mask=block_mask(group))[0]
    torch.testing.assert_close(ours, torchs)
    toward = torch.randn_like(ours)
    gradients = [
        torch.autograd.grad((out * toward).sum(), leaves, materialize_grads=True)
        for out in (ours, torchs)
    ]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-9)


def test_every_way_to_group_is_taken() -> None:
    ways = {name: Groups.of(torch.tensor(group)) for name, group in GROUPINGS.items()}
    assert ways["equal"].blocks is not None and ways["equal"].blocks.in_order
    assert ways["equal"].seen is None
    assert ways["unequal"].blocks is not None and ways["unequal"].seen is not None
    assert ways["one large, mostly padding"].blocks is None
    assert len(ways["all alone"].alone) == 6 and not len(ways["all alone"].together)
    assert len(ways["unequal"].alone) == 1


def test_several_contexts_are_answered_as_one_by_one() -> None:
    torch.manual_seed(0)
    attention = VisualGuidedAttention(WIDTH, feedforward=32).eval()
    text, contexts = texts(6).mean(1), torch.randn(3, 5, WIDTH)
    groups = Groups.of(torch.tensor([0, 1, 0, 2, 1, 0]))
    together = attention(text, contexts, groups)
    for out, context in zip(together, contexts, strict=True):
        torch.testing.assert_close(out, attention(text, context, groups))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("images", [1, 3, 40])
@pytest.mark.parametrize("contexts", [(), (2,), (2, 3)])
def test_it_is_torchs_layer_whichever_side_the_projections_are_made_on(
    heads: int, images: int, contexts: tuple[int, ...]
) -> None:
    """Values and all gradients, with images fewer than the classes and more of them."""
    torch.manual_seed(0)
    attention = VisualGuidedAttention(WIDTH, heads, feedforward=32, dropout=0.0).double()
    for bias in (attention.layer.multihead_attn.in_proj_bias, attention.layer.multihead_attn.out_proj.bias):
        torch.nn.init.normal_(bias)  # zero as they are made
    group = torch.tensor([0, 1, 0, 2, 1, 0, 2])
    text = texts(7).mean(1).double()
    context = torch.randn(*contexts, images, WIDTH, dtype=torch.double)
    flat = context.reshape(-1, images, WIDTH)
    found = []
    for way in (
        lambda: attention(text, context, Groups.of(group)),
        lambda: attention.layer(
            text.expand(len(flat), -1, -1), flat, tgt_mask=block_mask(group)
        ).reshape(*contexts, 7, WIDTH),
    ):
        attention.zero_grad(set_to_none=True)
        out = way()
        out.pow(3).sum().backward()
        found.append((out, {name: p.grad for name, p in attention.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0])
    for name, grad in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], grad, msg=lambda text, name=name: f"{name}: {text}")


def test_dropout_is_where_torch_has_it() -> None:
    """With every unit dropped, what is left is the residual path: the same in both."""
    torch.manual_seed(0)
    attention = VisualGuidedAttention(WIDTH, feedforward=32, dropout=0.999999).train()
    text, context = texts(4).mean(1), torch.randn(5, WIDTH)
    group = torch.tensor([0, 0, 1, 2])
    torchs = attention.layer(text[None], context[None], tgt_mask=block_mask(group))[0]
    torch.testing.assert_close(attention(text, context, Groups.of(group)), torchs)


def test_dropout_has_the_moments_of_torchs() -> None:
    torch.manual_seed(0)
    attention = VisualGuidedAttention(WIDTH, feedforward=32, dropout=0.3).train()
    group = torch.tensor([0, 0, 1, 2, 0])
    text, context, groups = texts(5).mean(1), torch.randn(5, WIDTH), Groups.of(group)
    mask, n = block_mask(group), 600
    ours = torch.stack([attention(text, context, groups).detach() for _ in range(n)])
    torchs = torch.stack([
        attention.layer(text[None], context[None], tgt_mask=mask)[0].detach() for _ in range(n)
    ])  # fmt: skip
    error = (ours.var(0) + torchs.var(0)).div(n).sqrt()
    assert ((ours.mean(0) - torchs.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(ours.var(0), torchs.var(0), rtol=0.4, atol=1e-3)


def test_bfloat16_rounds_products_and_nothing_else() -> None:
    torch.manual_seed(0)
    exact = VisualGuidedAttention(64, feedforward=128, dropout=0.0)
    rounded = VisualGuidedAttention(64, feedforward=128, dropout=0.0, bfloat16=True)
    rounded.load_state_dict(exact.state_dict())
    text, context = torch.randn(2, 6, 64)
    groups = Groups.of(torch.tensor([0, 0, 1, 1, 2, 3]))
    outs = [attention(text, context, groups) for attention in (exact, rounded)]
    assert outs[1].dtype == torch.float32
    error = (outs[1] - outs[0]).norm() / outs[0].norm()
    assert 1e-4 < error < 1e-2
    for out in outs:
        out.square().sum().backward()
    for one, other in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert other.dtype == other.grad.dtype == torch.float32
        assert (one.grad - other.grad).norm() < 0.05 * one.grad.norm().clamp_min(1e-3)
