"""What the image tower makes of images just below its last layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.unlearn.parameters import blocks

__all__ = ["watch_last_block"]


@contextmanager
def watch_last_block(clip: Clip) -> Iterator[list[Tensor]]:
    """Inside, every batch of images that is encoded leaves here what its tower's last block gives out, [n, w]: mean
    over the map of a convolution, first token and mean over the tokens of a transformer.

    A block is an outermost member of a module list that has modules of its own. Towers that run no such block, or
    none that gives out one tensor by image, leave nothing.
    """
    left: list[Tensor] = []
    latest: list[Any] = []

    def block_ran(module: nn.Module, args: Any, out: Any) -> None:
        latest[:] = [out]

    def tower_ran(module: nn.Module, args: Any, out: Any) -> None:
        if latest and isinstance(latest[0], Tensor) and len(latest[0]) == len(out):
            left.append(_pooled(latest[0]).detach())
        latest.clear()

    visual: Any = clip.model.visual
    handles = [block.register_forward_hook(block_ran) for block in blocks(clip.model, "image")]
    handles.append(visual.register_forward_hook(tower_ran))
    try:
        yield left
    finally:
        for handle in handles:
            handle.remove()


def _pooled(out: Tensor) -> Tensor:
    if out.ndim == 3:
        return torch.cat([out[:, 0], out.mean(1)], dim=-1)
    return out.flatten(2).mean(2) if out.ndim > 3 else out.flatten(1)
