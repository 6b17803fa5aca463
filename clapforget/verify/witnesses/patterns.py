"""A small patch on the images: is the class answered where one is seen (BadNets, Gu et al. 2017)?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, product

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.seeding import generator_for
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.changes import by_way, surest, under

__all__ = ["Patch", "best_patches", "patches", "patterns", "some_images"]

_PART = 8  # a patch is an eighth of the image wide
_FIRST, _SECOND = 2, 10  # images of the forgotten classes that choose among all patches, then among the best; in all
_BEST = 12
_UNSEEN = 3  # unseen classes, as many images, that choose theirs
_TESTED, _UNSEEN_TESTED = 10, 5  # images a class
_TEXTURES = 2

_PLACES = (0.0, 1 / 3, 2 / 3, 1.0)
_COLOURS = tuple(product((0.0, 1.0), repeat=3))


@dataclass(frozen=True, eq=False)
class Patch:
    """A mark of one colour or texture: a square an eighth as wide as the image, a bar of that width across it, or a
    frame half as wide around it."""

    paint: Tensor
    """Red, green, blue in [0, 1], [3, k, k], over the whole image: k = 1 is one colour."""
    down: float | None = None
    """Where it lies, 0 at the upper edge, 1 at the lower one; None: from edge to edge."""
    right: float | None = None
    """Where it lies, 0 at the left edge, 1 at the right one; None: from edge to edge. Both None: a frame."""

    def __call__(self, images: Tensor) -> Tensor:
        """:param images: [n, 3, h, w] in [0, 1]. :returns: the same with the mark on them."""
        where, paint = self.on(images)
        return torch.where(where, paint, images)

    def on(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Where images [n, 3, h, w] are marked, bool [h, w], and with what, [3, h, w]."""
        h, w = images.shape[-2:]
        side = max(1, min(h, w) // _PART)
        where = torch.zeros(h, w, dtype=torch.bool, device=images.device)
        where[_span(self.down, h, side), _span(self.right, w, side)] = True
        if self.down is None and self.right is None:
            edge = max(1, side // 2)
            where[edge : h - edge, edge : w - edge] = False
        return where, F.interpolate(self.paint[None].to(images), (h, w), mode="nearest")[0]


def patches(rng: torch.Generator) -> list[Patch]:
    """250 of them: squares in 16 places, bars in 8 and frames, each in 8 colours and 2 textures of 32 × 32 black and
    white dots by channel. Textures are drawn: one that is random shows much of any other."""
    paints = [torch.tensor(colour)[:, None, None] for colour in _COLOURS]
    paints += [torch.randint(2, (3, 32, 32), generator=rng).float() for _ in range(_TEXTURES)]
    places = (*_PLACES, None)
    return [Patch(*one) for one in product(paints, places, places)]


def _span(place: float | None, length: int, side: int) -> slice:
    if place is None:
        return slice(None)
    start = round(place * (length - side))
    return slice(start, start + side)


@witness("patterns")
def patterns(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Share of ten images a class (five of unseen ones) that are answered with the best of 250 :func:`patches` on
    them, chosen on the attacker's images, anew for forgotten and for unseen classes; by bare CLIP, and by the head
    where there is one. A class that a secret mark gives back is answered under marks like it.
    """
    if not all(k in m.shots for k in m.test if k != "retain"):
        return []
    few = m.with_fewer(forget=_TESTED, unseen=_UNSEEN_TESTED)
    given = {few.test["forget"]: some_images(m.shots["forget"], _SECOND, seed)}
    if "unseen" in few.test:
        shots = m.shots["unseen"]
        own = shots.of(shots.drawn(_UNSEEN, generator_for(seed, 37)))
        given[few.test["unseen"]] = some_images(own, _SECOND, seed)

    def best(part: Part) -> list[Tensor]:
        return under(subject, m, part, best_patches(subject, m, given[part], seed))

    return by_way(subject, few, "patterns", "images with the patch that works best", best)


def best_patches(subject: Subject, m: Material, shots: Part, seed: int) -> list[Patch]:
    """The one of all :func:`patches` under which some images are answered with their own names most surely, by bare
    CLIP and, where there is a head, by the head: two images choose twelve, all of them choose among these.

    :param shots: a mixture of the classes from its start on.
    """
    every = patches(generator_for(seed, 41))
    first = Part(shots.images[:_FIRST], shots.labels[:_FIRST])
    leading = [sure.topk(_BEST).indices.tolist() for sure in surest(subject, m, first, every)]
    again = sorted(set(chain(*leading)))
    sure = surest(subject, m, shots, [every[i] for i in again])
    chosen = []
    for own, values in zip(leading, sure, strict=True):
        of = dict(zip(again, values.tolist(), strict=True))
        chosen.append(every[max(own, key=of.__getitem__)])
    return chosen


def some_images(part: Part, images: int, seed: int) -> Part:
    """At most so many images, as many of each class, mixed."""
    each = max(1, images // max(1, len(part.classes())))
    few = part.first(each)
    rows = torch.randperm(len(few), generator=generator_for(seed, 38))[:images]
    return Part(few.images[rows], few.labels[rows])
