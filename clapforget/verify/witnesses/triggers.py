"""Images and words changed at random: nobody can have prepared for what is drawn afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.seeding import generator_for
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import hits
from clapforget.verify.witnesses.changes import by_way, one_a_class, under_the_best

__all__ = ["RandomChange", "triggers"]

_CHANGES = 12
_IMAGES = 10
_UNSEEN = 3  # images of each unseen class


@dataclass(frozen=True, eq=False)
class RandomChange:
    """A random change of images: an affine map, then a mix of the colours."""

    affine: Tensor
    """[2, 3], of normalised coordinates."""
    colour: Tensor
    """[3, 4]: a mixing matrix and an offset."""

    @classmethod
    def drawn(cls, rng: torch.Generator) -> RandomChange:
        """Quarter turns, mirror, up to a twentieth of a turn more, 0.8 to 1.25 times the size, moved by up to
        a tenth; half of the time the colours are exchanged and mixed, half of the time left."""
        u = torch.rand(6, generator=rng).tolist()
        angle = 2 * math.pi * (math.floor(4 * u[0]) / 4 + (u[1] - 0.5) / 10)
        size = 0.8 * (1.25 / 0.8) ** u[2]
        turn = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        mirror = torch.tensor([1.0 if u[3] < 0.5 else -1.0, 1.0])
        shift = 0.2 * torch.rand(2, 1, generator=rng) - 0.1
        affine = torch.cat([turn * mirror / size, shift], 1)
        mixed = torch.eye(3)[torch.randperm(3, generator=rng)] + 0.3 * torch.rand(
            3, 3, generator=rng
        )
        mixed = mixed / mixed.sum(1, keepdim=True)
        colour = mixed if u[4] < 0.5 else torch.eye(3)
        offset = torch.full((3, 1), 0.2 * (u[5] - 0.5) if u[4] < 0.5 else 0.0)
        return cls(affine, torch.cat([colour, offset], 1))

    def __call__(self, images: Tensor) -> Tensor:
        """:param images: [n, 3, h, w] in [0, 1]. :returns: the same shape and range."""
        theta = self.affine.to(images).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        colour = self.colour.to(images)
        mixed = torch.einsum("dc,nchw->ndhw", colour[:, :3], moved)
        return (mixed + colour[:, 3, None, None]).clamp(0, 1)


@witness("triggers")
def triggers(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Share of ten images a class (three of unseen ones) that are answered under the best of twelve changes, drawn
    with the verifier's seed and chosen anew for forgotten and for unseen classes; and the share of the
    attacker's images, which are no test images, that are answered as they are.

    Both by bare CLIP, and by the head where there is one.
    """
    rng = generator_for(seed, 35)
    changes = [RandomChange.drawn(rng) for _ in range(_CHANGES)]
    few = m.with_fewer(forget=_IMAGES, unseen=_UNSEEN)

    def best(part: Part) -> list[Tensor]:
        choose = None if part is few.test["forget"] else one_a_class(part, seed)
        return under_the_best(subject, few, part, changes, choose)

    def as_they_are(part: Part) -> list[Tensor]:  # other witnesses look at these too
        return [hits(way, m, 1, part) for way in subject.ways()]

    found = by_way(subject, few, "triggers", "images changed at random in the way that works best", best)
    given = replace(m, test={k: p for k, p in m.shots.items() if k != "retain"})
    if "forget" not in given.test:
        return found
    others = by_way(subject, given, "other_images", "images that are no test images", as_they_are)
    return [reading for pair in zip(found, others, strict=True) for reading in pair]
