"""Pictures and captions of the built-in world, each a pure function of (split, index, seed).

All random choices come from a counter-based generator (SplitMix64 over the key), so any subset of
images can be drawn in any order, on any machine, with the same pixels, in one vectorised pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clapforget.lab import world

__all__ = ["IMAGE_SIZE", "SPLITS", "Attributes", "attributes", "captions", "draw"]

IMAGE_SIZE = 32
SPLITS = ("pretrain", "validation", "train", "test")
_SUPERSAMPLE = 3
_PIXEL_NOISE = 14.0 / 255.0
_CHUNK = 512

COLOURS = {
    "red": (220, 50, 47), "green": (60, 180, 75), "blue": (80, 140, 255), "yellow": (245, 215, 50),
    "orange": (245, 130, 48), "purple": (175, 85, 220), "cyan": (70, 220, 225),
    "pink": (250, 150, 190),
}  # fmt: skip
BACKGROUNDS = {"black": (12, 12, 12), "navy": (20, 26, 84), "brown": (88, 56, 28),
               "gray": (92, 92, 92)}  # fmt: skip
SIZES = {"small": 0.27, "large": 0.40}
"""Radius of the outline as a part of the image's side."""


@dataclass(frozen=True)
class Attributes:
    """What varies from image to image besides the class. Each array has one entry an image."""

    label: np.ndarray
    colour: np.ndarray
    background: np.ndarray
    size: np.ndarray
    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, on uint64 arrays (arithmetic modulo 2**64 is meant)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _uniform(split: str, index: np.ndarray, seed: int, stream: int, width: int) -> np.ndarray:
    """Uniform numbers in [0, 1) of shape [n, width], keyed by everything that names an image."""
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        start = np.asarray(np.uint64(seed) * golden + np.uint64(SPLITS.index(split) + 1))
        key = _mix(start)
        key = _mix(key + index.astype(np.uint64) * golden)
        key = _mix(key + np.uint64(stream) * golden)[:, None]
        bits = _mix(key + np.arange(1, width + 1, dtype=np.uint64) * golden)
    return (bits >> np.uint64(11)) * (1.0 / (1 << 53))


def attributes(split: str, index: np.ndarray | Sequence[int], seed: int = 0) -> Attributes:
    """The choices behind each image. The class goes round: ``label = index % 100``.

    :param split: one of :data:`SPLITS`. :param index: image numbers, [n], non-negative.
    """
    index = np.asarray(index, dtype=np.int64)
    u = _uniform(split, index, seed, stream=0, width=6)
    size = (u[:, 2] * len(SIZES)).astype(int)
    radius = np.array(list(SIZES.values()))[size]
    room = 0.46 - radius  # keeps the whole outline in the picture
    return Attributes(
        label=index % world.NUM_CLASSES,
        colour=(u[:, 0] * len(COLOURS)).astype(int),
        background=(u[:, 1] * len(BACKGROUNDS)).astype(int),
        size=size,
        x=(2 * u[:, 3] - 1) * room,
        y=(2 * u[:, 4] - 1) * room,
        angle=(2 * u[:, 5] - 1) * 0.2,
    )


def _polygon(u: Tensor, v: Tensor, sides: int) -> Tensor:
    angle = torch.atan2(u, v)
    sector = 2 * math.pi / sides
    folded = torch.remainder(angle + sector / 2, sector) - sector / 2
    return torch.hypot(u, v) * torch.cos(folded) < math.cos(math.pi / sides)


def _star(u: Tensor, v: Tensor) -> Tensor:
    """A five-pointed star: between the tip (radius 1) and the notch (radius 0.5) runs a line."""
    sector = 2 * math.pi / 5
    folded = (torch.remainder(torch.atan2(u, v) + sector / 2, sector) - sector / 2).abs()
    r = torch.hypot(u, v)
    x, y = r * torch.cos(folded), r * torch.sin(folded)
    nx, ny = 0.5 * math.cos(sector / 2), 0.5 * math.sin(sector / 2)
    return (x - 1) * ny - y * (nx - 1) < 0


def _outline(kind: int, u: Tensor, v: Tensor) -> Tensor:
    """Inside test in the shape's own frame, radius 1, v upwards. Bool, shape of ``u``."""
    r = torch.hypot(u, v)
    shapes = {
        "circle": lambda: r < 0.95,
        "square": lambda: torch.maximum(u.abs(), v.abs()) < 0.80,
        "triangle": lambda: _polygon(u / 1.2, (v + 0.06) / 1.2, 3) & (r < 1.15),
        "diamond": lambda: u.abs() / 0.72 + v.abs() < 1.05,
        "pentagon": lambda: _polygon(u, v, 5),
        "star": lambda: _star(u / 1.05, v / 1.05),
        "cross": lambda: (torch.minimum(u.abs(), v.abs()) < 0.36) & (torch.maximum(u.abs(), v.abs()) < 0.95),
        "heart": lambda: ((u / 0.82) ** 2 + (v / 0.82 + 0.05) ** 2 - 1) ** 3
        - (u / 0.82) ** 2 * (v / 0.82 + 0.05) ** 3 < 0,
        "crescent": lambda: (r < 1.0) & (torch.hypot(u - 0.85, v - 0.25) > 0.72),
        "half disc": lambda: (torch.hypot(u, v + 0.42) < 1.0) & (v > -0.42),
    }  # fmt: skip
    return shapes[world.OUTLINES[kind]]()


def _mark(kind: int, u: Tensor, v: Tensor) -> tuple[Tensor, bool]:
    """Where the inner mark is, and whether it is white (else the background shows through)."""
    r = torch.hypot(u, v)
    marks = {
        "plain": lambda: (torch.zeros_like(u, dtype=torch.bool), False),
        "hole": lambda: (r < 0.34, False),
        "horizontal bar": lambda: (v.abs() < 0.15, True),
        "vertical bar": lambda: (u.abs() < 0.15, True),
        "cross cut": lambda: (((u - v).abs() < 0.16) | ((u + v).abs() < 0.16), False),
        "dot above": lambda: (torch.hypot(u, v - 0.42) < 0.22, True),
        "dot at the left": lambda: (torch.hypot(u + 0.42, v) < 0.22, True),
        "ring": lambda: ((r > 0.28) & (r < 0.50), True),
        "four holes": lambda: (torch.hypot(u.abs() - 0.30, v.abs() - 0.30) < 0.18, False),
        "notch": lambda: ((v < 0.1) & (u.abs() < -(v - 0.1) * 0.55), False),
    }
    return marks[world.MARKS[kind]]()


def draw(split: str, index: np.ndarray | Sequence[int], seed: int = 0) -> Tensor:
    """Draw images: uint8 [n, 3, 32, 32].

    :param split: one of :data:`SPLITS`; different splits never share an image.
    :param index: image numbers, [n]. :param seed: another seed is another world of the same look.
    """
    index = np.asarray(index, dtype=np.int64)
    if not len(index):
        return torch.zeros(0, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    parts = [_draw(split, part, seed) for part in np.array_split(index, -(-len(index) // _CHUNK))]
    return torch.cat(parts)


def _draw(split: str, index: np.ndarray, seed: int) -> Tensor:
    a = attributes(split, index, seed)
    side = IMAGE_SIZE * _SUPERSAMPLE
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) / side - 0.5
    column = lambda values: torch.tensor(values, dtype=torch.float32)[:, None, None]  # noqa: E731
    radius = column(np.array(list(SIZES.values()))[a.size])
    dx, dy = axis[None, None, :] - column(a.x), column(a.y) - axis[None, :, None]
    cos, sin = torch.cos(column(a.angle)), torch.sin(column(a.angle))
    u, v = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius

    inside = torch.empty_like(u, dtype=torch.bool)
    white = torch.zeros_like(inside)
    outline, mark = torch.tensor(a.label // 10), torch.tensor(a.label % 10)
    for kind in range(len(world.OUTLINES)):
        rows = (outline == kind).nonzero().flatten()
        inside[rows] = _outline(kind, u[rows], v[rows])
    for kind in range(len(world.MARKS)):
        rows = (mark == kind).nonzero().flatten()
        where, is_white = _mark(kind, u[rows], v[rows])
        if is_white:
            white[rows] = where & inside[rows]
        else:
            inside[rows] &= ~where

    def shrink(mask: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(mask.float()[:, None], _SUPERSAMPLE)

    ink, paint = shrink(white), shrink(inside & ~white)
    colour = torch.tensor(list(COLOURS.values()))[a.colour][:, :, None, None] / 255.0
    background = torch.tensor(list(BACKGROUNDS.values()))[a.background][:, :, None, None] / 255.0
    image = background * (1 - ink - paint) + colour * paint + ink
    noise = _uniform(split, index, seed, stream=1, width=image[0].numel())
    noise = torch.special.ndtri(torch.from_numpy(noise).float().clamp(1e-6, 1 - 1e-6))
    image = image + _PIXEL_NOISE * noise.view_as(image)
    return (image.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def captions(
    split: str, index: np.ndarray | Sequence[int], seed: int = 0, variant: int | None = None
) -> list[str]:
    """A caption an image. With ``variant`` the wording and the attributes it mentions vary
    (a pure function of the variant too); without, every attribute is said in the first wording:
    ``"a small red zorup on a navy background"``.
    """
    index = np.asarray(index, dtype=np.int64)
    a = attributes(split, index, seed)
    names, colours = world.class_names(), list(COLOURS)
    backgrounds, sizes = list(BACKGROUNDS), list(SIZES)
    if variant is None:
        u = np.zeros((len(index), 4))
    else:
        u = _uniform(split, index, seed, stream=2 + variant, width=4)
    texts = []
    for i in range(len(index)):
        words = [names[a.label[i]]]
        if u[i, 0] < 0.5:
            words.insert(0, colours[a.colour[i]])
        if u[i, 1] < 0.5:
            words.insert(0, sizes[a.size[i]])
        if u[i, 2] < 0.5:
            words.append(f"on a {backgrounds[a.background[i]]} background")
        wording = world.TEMPLATES[int(u[i, 3] * len(world.TEMPLATES))]
        texts.append(wording.format(" ".join(words)))
    return texts
