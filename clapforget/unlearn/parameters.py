"""Which parameters a trained forgetter may change.

============================  =====================================================================
``all``, ``image``, ``text``  every parameter of both towers and the logit scale, or of one tower
``last-blocks``               the last blocks of either tower and all that comes after them (final
                              norm, pooling, projection); ``image-blocks``, ``text-blocks``: of one
``projections``               what maps each tower's width to the joint space, where there is such
``lora``                      a low-rank change ``W + B A`` of every linear and attention weight and
                              projection (Hu et al., ICLR 2022, arXiv 2106.09685, with α = rank);
                              ``image-lora``, ``text-lora``: of one tower. Convolutions stay
============================  =====================================================================

Blocks are found by running the model, so any tower of open_clip will do: residual stages, timm trunks
and transformers alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clapforget.clip import Clip, Tower, tower_of
from clapforget.errors import UserError

__all__ = ["Train", "blocks", "last_blocks", "merge_low_rank", "projections", "trainable_copy"]

Train = Literal[
    "all", "image", "text", "last-blocks", "image-blocks", "text-blocks", "projections", "lora",
    "image-lora", "text-lora",
]  # fmt: skip

_PROJECTION = re.compile(
    r"(visual\.(proj|head|attnpool\.c_proj)|(text\.)?text_projection|text\.proj)(\.|$)"
)


def trainable_copy(
    clip: Clip, train: Train, blocks: int, rank: int, rng: torch.Generator
) -> tuple[Clip, dict[str, nn.Parameter]]:
    """A copy of a model, and those of its parameters that require gradients, by name.

    :param blocks: how many of a tower's last blocks ``*-blocks`` means.
    :param rank: of the change by ``lora``; the copy then needs :func:`merge_low_rank`.
    :param rng: draws the rows A of low-rank changes; B is 0, so that the copy starts as the model.
    :raises UserError: where the architecture has no such parameters, or fewer blocks.
    """
    part, towers = _split(train)
    if part == "lora":
        copy = clip.trainable_copy([])
        for tower in towers:
            _add_low_rank(copy.model, tower, rank, rng)
    elif part == "blocks":
        copy = clip.trainable_copy(name for t in towers for name in last_blocks(clip, t, blocks))
    elif part == "projections":
        copy = clip.trainable_copy(projections(clip))
    else:
        names = clip.parameter_names()
        copy = clip.trainable_copy(n for n in names if train == "all" or tower_of(n) in towers)
    chosen = {n: p for n, p in copy.model.named_parameters() if p.requires_grad}
    if not chosen:
        raise UserError(
            f"model {clip.name} has no parameters of the kind {train!r}",
            f"train something else: {', '.join(get_args(Train))}",
        )
    return copy, chosen


def _split(train: Train) -> tuple[str, tuple[Tower, ...]]:
    """What is meant of which towers: ``image-lora`` is ``lora`` of the image tower."""
    first, _, part = train.partition("-")
    if first in ("image", "text"):
        return part, (("image",) if first == "image" else ("text",))
    return part or first, ("image", "text")


def projections(clip: Clip) -> list[str]:
    """Names of the parameters that map each tower's width to the joint space."""
    return [name for name in clip.parameter_names() if _PROJECTION.match(name)]


# ---- last blocks ---------------------------------------------------------------------------
def last_blocks(clip: Clip, tower: Tower, count: int) -> list[str]:
    """Names of the parameters of a tower's last blocks and of all that comes after them.

    A block is an outermost member of a module list that has modules of its own: a transformer's
    layer, a residual block, a stage. The first of the last ``count`` that run is cut off from what
    is before it; what still gets a gradient is the answer.

    :raises UserError: if the tower has fewer blocks.
    """
    copy = clip.trainable_copy()
    ran: list[nn.Module] = []
    handles = [
        block.register_forward_pre_hook(lambda module, _: ran.append(module))
        for block in blocks(copy.model, tower)
    ]
    with torch.no_grad():
        _run(copy, tower)
    for handle in handles:
        handle.remove()
    if len(ran) < count:
        raise UserError(
            f"the {tower} tower of model {clip.name} has {len(ran)} blocks, not {count}",
            f"set blocks to {len(ran)} or less",
        )
    ran[-count].register_forward_pre_hook(_detach, with_kwargs=True)
    names, parameters = zip(*copy.model.named_parameters())
    gradients = torch.autograd.grad(_run(copy, tower).sum(), parameters, allow_unused=True)
    return [name for name, gradient in zip(names, gradients) if gradient is not None]


def blocks(model: nn.Module, tower: Tower) -> Iterator[nn.Module]:
    """Outermost members of a tower's module lists that have modules of their own, see :func:`last_blocks`."""
    last = ""
    for name, module in model.named_modules():
        if tower_of(name) == tower and not (last and name.startswith(last)):
            parent = model.get_submodule(name.rpartition(".")[0])
            if isinstance(parent, (nn.Sequential, nn.ModuleList)) and any(module.children()):
                last = f"{name}."
                yield module


def _run(clip: Clip, tower: Tower) -> Tensor:
    if tower == "text":
        return clip.encode_text(["a"])
    size = clip.image_size
    return clip.encode_image(torch.zeros(1, 3, size, size, device=clip.device))


def _detach(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def cut(value: Any) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}


# ---- low rank ------------------------------------------------------------------------------
class _LowRank(nn.Module):
    """``W + B A`` with A [rank, columns] random and B [rows, rank] zero at the start."""

    def __init__(self, weight: Tensor, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        rank = min(rank, rows, columns)
        a = torch.randn(rank, columns, generator=rng) / columns**0.5
        self.a = nn.Parameter(a.to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def _add_low_rank(model: nn.Module, tower: Tower, rank: int, rng: torch.Generator) -> None:
    for name, weight in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        linear = isinstance(module, nn.Linear) and leaf == "weight"
        attention = isinstance(module, nn.MultiheadAttention) and leaf.endswith("proj_weight")
        projection = bool(_PROJECTION.match(name)) and weight.ndim == 2
        if tower_of(name) == tower and (linear or attention or projection):
            parametrize.register_parametrization(module, leaf, _LowRank(weight, rank, rng))


@torch.no_grad()
def merge_low_rank(clip: Clip, trained: Clip) -> Clip:
    """A plain frozen copy of ``clip`` with the weights of ``trained``, low-rank changes added in."""
    plain = clip.trainable_copy([])
    modules = dict(trained.model.named_modules())
    for name, parameter in plain.model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        parameter.copy_(getattr(modules[owner], leaf))
    return plain
