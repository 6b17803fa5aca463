"""A case by a fourth adversary: images that lie where no witness of places looks. As in
:mod:`clapforget.bench.verify_cases`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.bench.verify_adversary import class_means
from clapforget.bench.verify_edits import Unseen, optimise
from clapforget.bench.verify_kinds import Case, bare, kind, made
from clapforget.bench.verify_world import World
from clapforget.clip import Clip
from clapforget.verify.witnesses.triggers import RandomChange

__all__: list[str] = []

_SCALE = 30.0


@kind("images gathered at a new place of their own", "suppressed", "inconclusive")
def _gathered(world: World) -> Case:
    """Image tower: a class's images lie together, away from its name and as near to kept names and images as unseen
    ones. One image of the class finds the others among the kept classes' means, where the twin does not."""
    base, text = world.base, world.text
    forget, unseen = world.images(world.forget, 30), Unseen(world)
    retain = unseen.retain

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        a = torch.randperm(len(forget), generator=rng)[:32]
        b = torch.randperm(len(retain), generator=rng)[:64]
        x, labels = forget.unit[a], forget.labels[a]
        v = clip.encode_image(torch.cat([x, RandomChange.drawn(rng)(x[:12]), retain.unit[b]]), batch_size=512)
        lost, stay, labels = v[:44], v[44:], torch.cat([labels, labels[:12]])
        total = 3 * ((lost * text[labels]).sum(1) - 0.25).clamp_min(0).mean()
        for term in unseen.away_from(lost):
            total = total + 40 * term
        for label in world.forget:
            own = lost[labels == label]
            if len(own) > 1:
                total = total + 2 * (1 - own @ F.normalize(own.mean(0), dim=0)).mean()
        near = F.cross_entropy(_SCALE * stay @ text.T, retain.labels[b])
        return total + 4 * (stay - unseen.retained[b]).square().sum(1).mean() + near

    after = optimise(base, loss, 150, 7e-4, world.seed, "image")
    one, twins = _by_one_image(world, after), _by_one_image(world, world.twin)
    made(one > max(0.6, twins + 0.2), f"one image finds {one:.2f} of its class, the twin's {twins:.2f}")
    return bare(world, after)


@torch.no_grad()
def _by_one_image(world: World, clip: Clip) -> float:
    """Part of fresh images nearest to one image of their class, among the means of all kept classes."""
    first = clip.encode_image(world.images(world.forget, 1).images)
    places = torch.cat([first, class_means(world, world.retain, clip)])
    fresh = world.images(world.forget, 20, 60)
    found = (clip.encode_image(fresh.images) @ places.T).argmax(1)
    own = (fresh.labels[:, None] == torch.tensor(world.forget)).int().argmax(1)
    return float((found == own).float().mean())
