from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.adapter import StackedGaussianAdapters, VisualGuidedAttention, block_mask

WIDTH = 12


def texts(classes: int, templates: int = 4, width: int = WIDTH, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(classes, templates, width, generator=generator), dim=-1)


def randomised(tasks: int, is_open: bool = True) -> StackedGaussianAdapters:
    """Adapters of some tasks whose weights are all plainly unlike each other."""
    adapters = StackedGaussianAdapters(WIDTH)
    generator = torch.Generator().manual_seed(1)
    for _ in range(tasks):
        adapters.open(texts(3), generator)
        with torch.no_grad():
            adapters.open_weight.normal_(generator=generator)
            adapters.open_bias.normal_(generator=generator)
    if not is_open:
        adapters.close()
    return adapters


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
    out = attention(text, context, group)
    for g in range(3):
        rows = group == g
        torch.testing.assert_close(out[rows], by_hand(attention.layer, text[rows], context))


def test_attention_is_deaf_to_other_groups_and_to_the_order_of_images() -> None:
    torch.manual_seed(0)
    attention = VisualGuidedAttention(WIDTH, feedforward=32).eval()
    text, context, group = texts(4).mean(1), torch.randn(5, WIDTH), torch.tensor([0, 0, 1, 1])
    out = attention(text, context, group)
    moved = text.clone()
    moved[3] += 1
    again = attention(moved, context.flip(0), group)
    torch.testing.assert_close(again[:2], out[:2])
    assert (again[2] - out[2]).abs().max() > 1e-3
    assert (attention(text, context + 1, group) - out).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("width", [32, 128])
def test_guidance_is_about_sqrt_d_long_at_the_start(width: int) -> None:
    torch.manual_seed(0)
    attention = VisualGuidedAttention(width).eval()
    out = attention(
        texts(9, width=width).mean(1), texts(20, width=width, seed=1)[:, 0], torch.zeros(9)
    )
    torch.testing.assert_close(out.norm(dim=1), torch.full((9,), width**0.5), atol=0, rtol=1e-2)


def test_attention_has_the_released_size() -> None:
    attention = VisualGuidedAttention(512)
    assert sum(p.numel() for p in attention.parameters()) == 4_204_032
    adapters = StackedGaussianAdapters(512)
    adapters.open(texts(2, width=512), torch.Generator())
    assert sum(p.numel() for p in adapters.parameters()) == 525_312


def test_a_new_adapter_starts_as_released() -> None:
    adapters, text = StackedGaussianAdapters(WIDTH), texts(7)
    adapters.open(text, torch.Generator().manual_seed(0))
    mean = torch.stack([text[:, number] for number in range(4)]).sum(0) / 4
    spread = sum((text[:, number] - mean) ** 2 for number in range(4)) / 3  # unbiased
    w_mu, w_sigma = adapters.open_weight[0].chunk(2)
    torch.testing.assert_close(w_mu, mean.T @ mean / WIDTH)
    torch.testing.assert_close(w_sigma, spread.T @ spread / WIDTH)


def test_biases_are_uniform_within_their_bounds() -> None:
    width = 256
    adapters = StackedGaussianAdapters(width)
    adapters.open(texts(2, width=width), torch.Generator().manual_seed(0))
    scaled = adapters.open_bias[0] * math.sqrt(width)
    assert scaled.min() >= -1 and scaled.max() <= 1
    assert scaled.min() < -0.9 and scaled.max() > 0.9
    assert scaled.mean().abs() < 0.15
    assert (scaled.var() - 1 / 3).abs() < 0.06


def test_one_template_gives_no_spread_and_no_nan() -> None:
    adapters = StackedGaussianAdapters(WIDTH)
    text = texts(3, templates=1)
    adapters.open(text, torch.Generator().manual_seed(0))
    assert (adapters.open_weight[0, WIDTH:] == 0).all()
    mu, sigma = adapters(text[:, 0], torch.zeros(3, dtype=torch.long))
    assert mu.isfinite().all() and sigma.isfinite().all()


def test_the_same_generator_state_gives_the_same_adapter() -> None:
    first, second, third = (StackedGaussianAdapters(WIDTH) for _ in range(3))
    for adapters, seed in ((first, 5), (second, 5), (third, 6)):
        adapters.open(texts(3), torch.Generator().manual_seed(seed))
    assert torch.equal(first.open_bias, second.open_bias)
    assert not torch.equal(first.open_bias, third.open_bias)


@pytest.mark.parametrize("task", [[0, 0, 0], [0, 1, 2], [2, 0, 1, 0, 2, 2, 2], [1], [2, 2, 2]])
@pytest.mark.parametrize("is_open", [True, False])
def test_the_stack_equals_a_loop_of_linear_layers(task: list[int], is_open: bool) -> None:
    adapters = randomised(3, is_open)
    weight = torch.cat([adapters.weight, adapters.open_weight])
    bias = torch.cat([adapters.bias, adapters.open_bias])
    x = torch.randn(len(task), WIDTH, generator=torch.Generator().manual_seed(2))
    mu, sigma = adapters(x, torch.tensor(task))
    for c, t in enumerate(task):
        mean, raw = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        state = {"weight": weight[t, :WIDTH], "bias": bias[t, :WIDTH]}
        mean.load_state_dict(state)
        raw.load_state_dict({"weight": weight[t, WIDTH:], "bias": bias[t, WIDTH:]})
        torch.testing.assert_close(mu[c], mean(x[c]))
        torch.testing.assert_close(sigma[c], 0.999 * nn.functional.softplus(raw(x[c])) + 0.001)


def test_sigma_never_falls_below_its_floor() -> None:
    adapters = randomised(1)
    with torch.no_grad():
        adapters.open_bias.fill_(-1e4)
    _, sigma = adapters(torch.zeros(2, WIDTH), torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(sigma, torch.full_like(sigma, 1e-3))


def test_closing_changes_no_output_and_opening_no_older_one() -> None:
    adapters = randomised(2)
    x, task = torch.randn(5, WIDTH), torch.tensor([0, 1, 1, 0, 1])
    before = adapters(x, task)
    adapters.close()
    assert adapters.tasks == 2 and not len(adapters.open_weight)
    closed = adapters(x, task)
    adapters.close()  # twice is once
    assert adapters.tasks == 2
    adapters.open(texts(2), torch.Generator())
    assert adapters.tasks == 3
    for now in (closed, adapters(x, task)):
        for left, right in zip(before, now, strict=True):
            torch.testing.assert_close(left, right)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_saved_state_comes_back_into_other_sizes(is_open: bool) -> None:
    adapters = randomised(3, is_open)
    state = adapters.state_dict()
    for other in (StackedGaussianAdapters(WIDTH), randomised(5), randomised(1)):
        other.resize(len(state["weight"]), len(state["open_weight"]))
        other.load_state_dict(state)
        assert other.tasks == 3
        x, task = torch.randn(4, WIDTH), torch.tensor([2, 0, 1, 2])
        for left, right in zip(adapters(x, task), other(x, task), strict=True):
            assert torch.equal(left, right)


def test_the_open_task_alone_gets_a_gradient_of_its_own() -> None:
    adapters = randomised(3)
    mu, sigma = adapters(torch.randn(2, WIDTH), torch.tensor([2, 2]))
    (mu.sum() + sigma.sum()).backward()
    assert adapters.open_weight.grad is not None and adapters.open_weight.grad.abs().sum() > 0
    assert adapters.weight.grad is None or not adapters.weight.grad.any()
