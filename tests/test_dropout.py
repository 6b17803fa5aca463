"""Dropout: how much, which, and what passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from clapforget.dropout import dropout


def drawn(p: float, seed: int = 0, size: tuple[int, ...] = (200, 1001)) -> Tensor:
    torch.manual_seed(seed)
    return dropout(torch.ones(size, dtype=torch.float64), p)


@pytest.mark.parametrize("p", [0.0001, 0.1, 0.5, 0.9])
def test_so_much_is_dropped_and_the_mean_stays(p: float) -> None:
    found = drawn(p)
    dropped = int((found == 0).sum())
    assert stats.binomtest(dropped, found.numel(), p).pvalue > 1e-3
    left = found[found != 0].unique()
    assert len(left) == 1 and float(left) == pytest.approx(1 / (1 - p), rel=2e-4)
    rounded = 1 - 1 / float(left)
    assert rounded * 2**16 == pytest.approx(round(p * 2**16), abs=1e-6), "scaled by what is drawn"


def test_entries_that_share_a_draw_are_dropped_apart() -> None:
    gone = (drawn(0.3, size=(50_000, 4)) == 0).double()
    codes = (gone @ torch.tensor([1.0, 2.0, 4.0, 8.0]).double()).long()
    counts = torch.bincount(codes, minlength=16).numpy()
    chance = [0.3 ** bin(k).count("1") * 0.7 ** (4 - bin(k).count("1")) for k in range(16)]
    assert stats.chisquare(counts, 50_000 * np.array(chance)).pvalue > 1e-3


def test_the_gradient_passes_where_the_entry_did() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y != 0, 2**16 / (2**16 - round(0.4 * 2**16)), 0.0))


def test_the_seed_decides_and_nothing_is_drawn_without_need() -> None:
    assert torch.equal(drawn(0.2), drawn(0.2))
    assert not torch.equal(drawn(0.2), drawn(0.2, seed=1))
    x, before = torch.ones(3), torch.get_rng_state()
    assert dropout(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [(), (0,), (3,), (2, 3, 5)])
def test_any_shape_and_type_comes_back(size: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.ones(size, dtype=dtype)
    found = dropout(x, 1 - 1e-9)
    assert found.shape == x.shape and found.dtype == dtype
    assert math.isfinite(float(found.sum()))
