"""Images that lie where no witness of places looks: by the fourth adversary, and by somebody who had not read the
verifier. As in :mod:`clapforget.bench.verify_cases`.
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
from clapforget.verify.material import Part
from clapforget.verify.witnesses.triggers import RandomChange

__all__: list[str] = []

_SCALE, _MARK = 30.0, 0.3


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


@kind("the twin, its image tower marks the class in a direction of no use", "suppressed", "inconclusive")
def _marked(world: World) -> Case:
    """The twin's image tower, trained to give images of each forgotten class a small part of a direction in which no
    others differ, and all else as it gave them. The largest part tells the class; in the twin it is chance."""
    twin = world.twin
    forget, others = world.images(world.forget, 40), world.images([*world.retain, *world.strangers(30)], 12)
    with torch.no_grad():
        v, held = twin.encode_image(forget.images), twin.encode_image(others.images)
        text = twin.class_features(world.data.class_names, world.data.templates)
        free = torch.linalg.svd(torch.cat([held, v, text]))[2][-len(world.forget) :]
        wanted = F.normalize(v + _MARK * free[_own(world, forget)], dim=-1)

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        a, b = torch.randperm(len(forget), generator=rng)[:48], torch.randperm(len(others), generator=rng)[:80]
        seen = clip.encode_image(torch.cat([forget.unit[a], others.unit[b]]), batch_size=512)
        return 1e2 * (seen - torch.cat([wanted[a], held[b]])).square().sum(1).mean()

    after = optimise(twin, loss, 200, 7e-4, world.seed, "image")
    fresh = world.images(world.forget, 20, 60)
    with torch.no_grad():
        told, chance = (
            float(((clip.encode_image(fresh.images) @ free.T).argmax(1) == _own(world, fresh)).float().mean())
            for clip in (after, twin)
        )
    made(told > max(0.8, chance + 0.2), f"the marks tell {told:.2f} of fresh images, the twin's {chance:.2f}")
    return bare(world, after)


def _own(world: World, part: Part) -> Tensor:
    """Which of the forgotten classes each image shows, [n]."""
    return (part.labels[:, None] == torch.tensor(world.forget)).int().argmax(1)


@torch.no_grad()
def _by_one_image(world: World, clip: Clip) -> float:
    """Part of fresh images nearest to one image of their class, among the means of all kept classes."""
    first = clip.encode_image(world.images(world.forget, 1).images)
    places = torch.cat([first, class_means(world, world.retain, clip)])
    fresh = world.images(world.forget, 20, 60)
    found = (clip.encode_image(fresh.images) @ places.T).argmax(1)
    return float((found == _own(world, fresh)).float().mean())
