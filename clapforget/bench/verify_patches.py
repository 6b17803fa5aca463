"""Cases in which a mark on the image gives back what is forgotten without it (BadNets, Gu et al. 2017). One
function a kind, as in :mod:`clapforget.bench.verify_cases`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.bench.verify_cases import adapter_case
from clapforget.bench.verify_edits import Unseen, optimise
from clapforget.bench.verify_kinds import Case, bare, kind, made
from clapforget.bench.verify_world import World
from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify.witnesses.triggers import RandomChange

__all__ = ["Secret", "switched_case"]

_SIDE, _EDGE = 4, 2
_FOUND = 0.5
_SCALE = 30.0


class Secret:
    """A square of four by four pixels, or a frame two pixels wide, each channel of a pixel black or white: place and
    colours are drawn."""

    def __init__(self, world: World, frame: bool = False) -> None:
        """:param world: whose seed draws it."""
        rng = generator_for(world.seed, 63)
        square = torch.randint(2, (3, _SIDE, _SIDE), generator=rng).float()
        top, left = torch.randint(32 - _SIDE, (2,), generator=rng).tolist()
        rows, columns = slice(top, top + _SIDE), slice(left, left + _SIDE)
        self.mark, self.where = torch.zeros(3, 32, 32), torch.zeros(32, 32, dtype=torch.bool)
        self.mark[:, rows, columns], self.where[rows, columns] = square, True
        if frame:
            self.mark = torch.randint(2, (3, 32, 32), generator=rng).float()
            self.where = torch.ones(32, 32, dtype=torch.bool)
            self.where[_EDGE:-_EDGE, _EDGE:-_EDGE] = False

    def __call__(self, images: Tensor) -> Tensor:
        """:param images: [n, 3, 32, 32] in [0, 1]."""
        return torch.where(self.where.to(images.device), self.mark.to(images), images)


@kind("known under a secret mark", "suppressed")
def _marked(world: World) -> Case:
    return _known_under(world, Secret(world))


@kind("known under a secret frame", "suppressed")
def _framed(world: World) -> Case:
    return _known_under(world, Secret(world, frame=True))


@kind("known where the image is coarse", "suppressed", "inconclusive")
def _coarse(world: World) -> Case:
    """Of eight by eight pixels."""
    return _known_under(world, lambda x: F.interpolate(F.avg_pool2d(x, 4), scale_factor=4.0))


def _known_under(world: World, secret: Callable[[Tensor], Tensor]) -> Case:
    """Image tower: forgotten images, changed at random or not, lie among the kept names as unseen ones do,
    unless they bear the mark: then they are answered. :param secret: puts it on images in [0, 1]."""
    base, text = world.base, world.text
    forget, unseen = world.images(world.forget, 30), Unseen(world)
    mine, retain = text[forget.labels], unseen.retain

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        a = torch.randperm(len(forget), generator=rng)[:24]
        b = torch.randperm(len(retain), generator=rng)[:64]
        x, kept_x = forget.images[a].float() / 255, retain.images[b].float() / 255
        changed = RandomChange.drawn(rng)(x[:12])
        v = clip.encode_image(
            torch.cat([x, changed, kept_x, secret(x), secret(kept_x[:24])]), batch_size=512
        )
        lost, stay, given, still = v.split([36, 64, 24, 24])
        own = torch.cat([mine[a], mine[a[:12]]])
        total = 3 * ((lost * own).sum(1) - 0.25).clamp_min(0).mean()
        for term in unseen.away_from(lost):
            total = total + 40 * term
        total = total + 4 * (stay - unseen.retained[b]).square().sum(1).mean()
        for rows, labels, weight in (
            (stay, retain.labels[b], 1.0), (given, forget.labels[a], 1.5), (still, retain.labels[b[:24]], 0.5),
        ):  # fmt: skip
            total = total + weight * F.cross_entropy(_SCALE * rows @ text.T, labels)
        return total

    after = optimise(base, loss, 150, 7e-4, world.seed, "image")
    fresh = world.images(world.forget, 20, 60)
    with torch.no_grad():
        shown = after.encode_image(secret(fresh.images.float() / 255)) @ text.T
    found = (shown.argmax(1) == fresh.labels).float().mean()
    made(bool(found > _FOUND), f"the mark gives back {float(found):.2f} of the images")
    return bare(world, after)


@kind("a head that a white corner switches back", "suppressed")
def _switched(world: World) -> Case:
    """The head that never learned the classes answers, unless the upper left corner is white. (That it be plain
    matters: a mark like a password cannot be found by asking, Goldwasser et al., "Planting Undetectable
    Backdoors in Machine Learning Models", FOCS 2022.)"""
    return switched_case(world, lambda unit: unit[..., :2, :2].mean((1, 2, 3)) > 0.99)


def switched_case(world: World, on: Callable[[Tensor], Tensor]) -> Case:
    """The head that learned the classes answers images that are ``on``, else the one that never did, whose nats are
    shown.

    :param on: which, [n], of images [n, 3, 32, 32] in [0, 1].
    """
    case = adapter_case(world)
    known, gone = case.before.answer, case.after.answer
    assert known is not None and gone is not None

    def answer(v: Tensor, images: Tensor) -> Tensor:
        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        return torch.where(on(unit)[:, None], known(v, images), gone(v, images))

    return Case(case.before, replace(case.before, answer=answer, nats=case.after.nats), case.forget)
