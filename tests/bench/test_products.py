from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from clapforget.bench.products import Products


def step() -> None:
    """A linear layer and a batched product, forward and backward."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 5, generator=rng), torch.randn(2, 3, 4, generator=rng).requires_grad_()
    weight = torch.randn(6, 5, generator=rng).requires_grad_()
    (F.linear(x, weight, torch.zeros(6)).sum() + (y @ y.mT).sum()).backward()


def test_it_counts_the_operations_that_torch_counts() -> None:
    with Products() as ours:
        step()
    with FlopCounterMode(display=False) as torchs:
        step()
    assert ours.flop == torchs.get_total_flops() > 2 * 7 * 5 * 6


def test_it_multiplies_the_same_shapes_and_layouts_again_and_nothing_else() -> None:
    with Products() as first:
        step()
    again = first.plain()
    with Products() as second:
        again()
    assert second.flop == first.flop
    layouts = [
        [(f.shape, f.stride()) for pair in each._pairs for f in pair] for each in (first, second)
    ]
    assert layouts[0] == layouts[1]


def test_what_is_no_product_is_not_recorded() -> None:
    with Products() as products:
        torch.randn(9).softmax(0).sum()
    assert products.flop == 0
    products.plain()()
