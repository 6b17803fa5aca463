"""The slow side of the benchmark computes the same: else its ratios would say nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clapforget.attention import block_mask
from clapforget.bench.naive_clap import NaiveClap
from clapforget.posterior import ClapSettings, LogitNoise, VariationalHead


def normals(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.fixture
def head() -> VariationalHead:
    head = VariationalHead(12, 7.0, ClapSettings(samples=5, feedforward=16, dropout=0.0)).double()
    for number, labels in enumerate(([0, 1, 2], [3], [4, 5])):
        head.grow(labels, F.normalize(normals(number, len(labels), 3, 12), dim=-1))
    return head


@pytest.mark.parametrize("stage", ["newest", "all"])
def test_loss_and_gradients_are_the_fast_paths(head: VariationalHead, stage: str) -> None:
    naive = NaiveClap(head)
    naive.train_only(stage)
    head.train_only(stage)
    v, y = F.normalize(normals(8, 6, 12), dim=-1), torch.arange(6)
    eps = normals(9, 5, 6, 12)
    weights = head.weights(v)
    ours = head.loss(weights, v, y, stage, LogitNoise.from_latent(eps, v, weights.sigma, head.mean_columns(stage)))
    theirs = naive.loss(v, y, stage, eps=eps)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    weight = head.adapters.open_weight if stage == "newest" else head.adapters.weight
    for t in range(3):
        gradient = naive.mu_adapters[t].weight.grad
        if stage == "newest" and t < 2:
            assert gradient is None
        else:
            torch.testing.assert_close(weight.grad[0 if stage == "newest" else t, :12], gradient)
    theirs_attention = naive.vga.layers[0].linear1.weight.grad
    ours_attention = head.attention.layer.linear1.weight.grad
    assert (theirs_attention is None) == (ours_attention is None) == (stage == "all")
    if stage == "newest":
        torch.testing.assert_close(ours_attention, theirs_attention)
    given = naive.loss(v, y, stage, guidance=(weights.x - head.text).detach(), eps=eps)
    torch.testing.assert_close(given, ours)


def test_its_mask_is_ours(head: VariationalHead) -> None:
    assert torch.equal(NaiveClap(head).mask(), block_mask(head.task))


def test_without_attention_they_are_one_too() -> None:
    settings = ClapSettings(samples=5, guidance="none")
    head = VariationalHead(12, 7.0, settings).double()
    for number, labels in enumerate(([0, 1, 2], [3], [4, 5])):
        head.grow(labels, F.normalize(normals(number, len(labels), 3, 12), dim=-1))
    naive = NaiveClap(head)
    naive.train_only("newest")
    head.train_only("newest")
    head.train_stage("newest")
    v, y = F.normalize(normals(8, 6, 12), dim=-1), torch.arange(6)
    eps = normals(9, 5, 6, 12)
    weights = head.weights(v)
    noise = LogitNoise.from_latent(eps, v, weights.sigma, head.mean_columns("newest"))
    ours = head.loss(weights, v, y, "newest", noise)
    theirs = naive.loss(v, y, "newest", eps=eps)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(
        head.adapters.open_weight.grad[0, :12], naive.mu_adapters[2].weight.grad
    )
