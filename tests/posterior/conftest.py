"""Small heads with known classes, and one head that has really learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget import lab
from clapforget.clip import Clip
from clapforget.posterior import ClapSettings, VariationalHead

WIDTH = 16


def normals(seed: int, *shape: int, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_head(
    sizes: tuple[int, ...], retired: tuple[int, ...] = (), templates: int = 3, seed: int = 0,
    **settings,
) -> VariationalHead:  # fmt: skip
    """A head in double precision whose weights are plainly unlike their start."""
    options = ClapSettings(**{"samples": 6, "feedforward": 24, **settings})
    head = VariationalHead(WIDTH, 12.0, options, seed).double()
    label = 0
    for task, size in enumerate(sizes):
        text = F.normalize(normals(100 + task, size, templates, WIDTH), dim=-1)
        head.grow([10 * (label + k) for k in range(size)], text)
        label += size
    with torch.no_grad():
        for number, parameter in enumerate(head.parameters()):
            parameter += 0.2 * normals(200 + number, *parameter.shape)
    head.context = F.normalize(normals(7, 5, WIDTH), dim=-1)
    if retired:
        head.retire([10 * column for column in retired])
    return head.eval()


@pytest.fixture
def make() -> Callable[..., VariationalHead]:
    """``make(sizes, retired=(), **settings)``: a head of so many classes a task; label = 10 column."""
    return make_head


@pytest.fixture
def features() -> Callable[..., Tensor]:
    """``features(n, seed)``: unit vectors [n, 16] in double precision."""

    def draw(n: int, seed: int = 1) -> Tensor:
        return F.normalize(normals(seed, n, WIDTH), dim=-1)

    return draw


@dataclass
class Learned:
    """A head that learned two tasks of three lab classes each, with its data."""

    head: VariationalHead
    labels: list[int]
    v: Tensor
    y: Tensor
    test_v: Tensor
    test_y: Tensor


@pytest.fixture(scope="session")
def learned(lab_clip: Clip) -> Learned:
    """Shared by all tests: deep-copy the head before changing it."""
    labels = [2, 5, 8, 10, 13, 16]
    names = [lab.class_names()[c] for c in labels]
    text = lab_clip.encode_names(names, lab.TEMPLATES)

    def data(split: str, each: int) -> tuple[Tensor, Tensor]:
        index = np.array([c + 100 * i for c in labels for i in range(each)])
        return (
            lab_clip.encode_image(lab.draw(split, index)),
            torch.arange(len(labels)).repeat_interleave(each),
        )

    (v, y), (test_v, test_y) = data("train", 24), data("test", 15)
    head = VariationalHead(
        lab_clip.width, float(lab_clip.scale), ClapSettings(samples=8, dropout=0.0)
    )
    head.double()  # in float32 the order of a sum decides, 320 steps later, what was learned
    v, text = v.double(), text.double()
    rng = torch.Generator().manual_seed(1)
    for task in range(2):
        columns = list(range(3 * task, 3 * task + 3))
        head.grow([labels[c] for c in columns], text[columns])
        seen = (y < 3 * task + 3).nonzero().flatten()
        head.context = v[seen[::4]].clone()
        head.requires_grad_(True)
        optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
        for _ in range(160):
            rows = seen[torch.randperm(len(seen), generator=rng)[:32]]
            noise = head.draw(v[rows], "all", rng)
            loss = head.loss(head.weights(), v[rows], y[rows], "all", noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    head.requires_grad_(False)
    return Learned(head.float().eval(), labels, v.float(), y, test_v, test_y)
