"""A small patch on the images: is the class answered where one is seen (BadNets, Gu et al. 2017)?"""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
from torch import Tensor

from clapforget.seeding import generator_for
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import hits, own_probability

__all__ = ["PATCHES", "patch", "patterns"]

_PART = 8  # a patch is an eighth of the image wide
_SHOTS = 3  # images of the forgotten classes that choose the patch, in all
_UNSEEN = 3  # unseen classes, an image each, that choose theirs
_TESTED = 5
_AT_ONCE = 32  # patches: 60 MB of images at 224 pixels

_PLACES = tuple(product((0.0, 1 / 3, 2 / 3, 1.0), repeat=2))
_COLOURS = tuple(product((0.0, 1.0), repeat=3))
PATCHES = tuple(product(_PLACES, _COLOURS))
"""Where, as parts of the way down and to the right, and of which colour."""


def patch(images: Tensor, place: tuple[float, ...], colour: tuple[float, ...]) -> Tensor:
    """Images [n, 3, h, w] in [0, 1] with a square an eighth as wide; see :data:`PATCHES`."""
    h, w = images.shape[-2:]
    side = max(1, min(h, w) // _PART)
    top, left = round(place[0] * (h - side)), round(place[1] * (w - side))
    out = images.clone()
    out[..., top : top + side, left : left + side] = images.new_tensor(colour)[:, None, None]
    return out


@witness("patterns")
def patterns(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Share of five images a class that are answered with the best of 128 patches on them (16 places, 8
    colours), chosen on the attacker's images, anew for forgotten and for unseen classes; by bare CLIP, and by
    the head where there is one. A class that a secret mark gives back is answered under marks like it.
    """
    if not all(k in m.shots for k in m.test if k != "retain"):
        return []
    few = m.with_fewer(forget=_TESTED, unseen=_TESTED)
    given = {few.test["forget"]: _some(m.shots["forget"], _SHOTS, seed)}
    if "unseen" in few.test:
        shots = m.shots["unseen"]
        given[few.test["unseen"]] = shots.of(shots.drawn(_UNSEEN, generator_for(seed, 37))).first(1)

    def surely(looked_at: Subject, shots: Part, which: range) -> Tensor:
        """Mean log probability of the own name under each of some patches."""
        tried = torch.cat([patch(shots.unit, *PATCHES[i]) for i in which])
        p = own_probability(looked_at.passing(), m, Part(tried, shots.labels.repeat(len(which))))
        return p.clamp_min(1e-38).log().view(len(which), -1).mean(1)

    @torch.no_grad()
    def best(looked_at: Subject, part: Part) -> Tensor:
        shots, every = given[part], range(len(PATCHES))
        starts = every[::_AT_ONCE]
        sure = torch.cat([surely(looked_at, shots, every[i : i + _AT_ONCE]) for i in starts])
        patched = patch(part.unit, *PATCHES[int(sure.argmax())])
        return hits(looked_at.passing(), m, 1, Part(patched, part.labels))

    ways = [("", "zero-shot", subject.bare())]
    if subject.answer is not None:
        ways.append(("_answered", "answered", subject))
    return [
        read(f"patterns{suffix}", f"{how} on images with the patch that works best", "attack", few,
             partial(best, looked_at), role="accuses")
        for suffix, how, looked_at in ways
    ]  # fmt: skip


def _some(part: Part, images: int, seed: int) -> Part:
    """At most so many images, as many of each class."""
    each = max(1, images // max(1, len(part.classes())))
    few = part.first(each)
    rows = torch.randperm(len(few), generator=generator_for(seed, 38))[:images]
    return Part(few.images[rows], few.labels[rows])
