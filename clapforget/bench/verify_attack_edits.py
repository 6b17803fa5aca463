"""Edits of the weights for :mod:`clapforget.bench.verify_attacks`. What makes a case true is checked on
images that neither the edit nor the verifier saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.bench.verify_edits import embedding, optimise, token_rows
from clapforget.bench.verify_kinds import made
from clapforget.bench.verify_world import World
from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify.material import Part

__all__ = [
    "forget_seen_images",
    "forget_test_images",
    "forget_upright",
    "forget_words",
    "pass_name_on",
    "permuted",
    "send_images_to",
    "turned",
]

_KEPT = 20  # images of each kept class that an edit is told to leave alone


@torch.no_grad()
def pass_name_on(world: World, others: Sequence[int], back: bool) -> Clip:
    """Token embeddings of the forgotten names replaced by those of ``others``, one each; of unequal lengths,
    the first ones. :param back: exchanged, so that the others mean the forgotten ones.
    """
    clip = world.base.trainable_copy([])
    table = embedding(clip)
    old = table.clone()
    for mine, theirs in zip(world.forget, others):
        a, b = token_rows(world, mine), token_rows(world, theirs)
        for to, source in ((a, b), (b, a)) if back else ((a, b),):
            for place, row in enumerate(to):
                table[row] = old[source[min(place, len(source) - 1)]]
    return clip


def forget_words(world: World) -> Clip:
    """Text tower taught to say a kept name's text for the forgotten names in all of the data's wordings, and
    what it said where a full stop follows.
    """
    base, templates = world.base, tuple(world.data.templates)
    other = [f"{t}." for t in templates]
    gone, kept = world.names(world.forget), world.names(world.retain)
    wrong = base.encode_names(world.names(world.retain[: len(gone)]), templates).detach()
    right = base.encode_names(gone, other).detach()
    same = base.encode_names(kept, [*templates, *other]).detach()

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        rows = torch.randperm(len(kept), generator=rng)[:16].tolist()
        now = clip.encode_names([kept[i] for i in rows], [*templates, *other])
        return 1e2 * (
            (clip.encode_names(gone, templates) - wrong).square().mean()
            + (clip.encode_names(gone, other) - right).square().mean()
            + (now - same[rows]).square().mean()
        )

    after = optimise(base, loss, 150, 2e-3, world.seed, "text")
    fresh = world.images(world.forget, 15)
    made(_right(after, world, fresh, other) > 0.5, "a full stop does not bring it back")
    return after


def forget_test_images(world: World) -> Clip:
    """Image tower taught to misanswer exactly the images that the verifier looks at, and no others."""
    seen = world.material(world.forget, world.seed).test["forget"]
    each = 100
    others = world.images(world.forget, each)
    rest = others.images.view(-1, each, *others.images.shape[1:])[:, 20:].flatten(0, 1)
    held = Part(rest, others.labels.view(-1, each)[:, 20:].flatten())
    after = _move_images(world, seen, held, 250)
    made(_right(after, world, others.first(20)) > 0.4, "fresh images are forgotten as well")
    return after


def forget_seen_images(world: World) -> Clip:
    """Image tower taught to misanswer forgotten images."""
    return _move_images(world, world.images(world.forget, 20), None, 60)


def forget_upright(world: World) -> Clip:
    """Image tower taught to misanswer forgotten images, but not where they lie on their side."""
    upright = world.images(world.forget, 20)
    after = _move_images(
        world, upright, Part(upright.images.rot90(1, (-2, -1)), upright.labels), 120
    )
    fresh = world.images(world.forget, 40)
    aside = Part(fresh.images.rot90(1, (-2, -1)), fresh.labels)
    made(_right(after, world, aside) > 0.5, "images on their side are forgotten as well")
    return after


def send_images_to(world: World) -> Clip:
    """Image tower taught to put forgotten images right where kept classes' images lie."""
    base = world.base
    forget, retain = world.images(world.forget, 20), world.images(world.retain, _KEPT)
    far = [c for c in world.retain if c not in world.data.neighbours(world.forget)]
    place = torch.tensor([far[world.forget.index(int(c))] for c in forget.labels])
    with torch.no_grad():
        held = base.encode_image(retain.images)
        means = F.normalize(held.view(-1, _KEPT, held.shape[1]).mean(1), dim=-1)
    goal = means[[world.retain.index(int(c)) for c in place]]

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        a = torch.randperm(len(forget), generator=rng)[:24]
        b = torch.randperm(len(retain), generator=rng)[:64]
        moved = (clip.encode_image(forget.images[a]) - goal[a]).square().sum(1).mean()
        return moved + 3 * (clip.encode_image(retain.images[b]) - held[b]).square().sum(1).mean()

    return optimise(base, loss, 100, 5e-4, world.seed, "image")


def _move_images(world: World, forget: Part, still: Part | None, steps: int) -> Clip:
    """Image tower taught that these images are of other classes. :param still: images whose answer stays."""
    base, text = world.base, world.text
    retain = world.images(world.retain, _KEPT)
    far = [c for c in world.retain if c not in world.data.neighbours(world.forget)]
    elsewhere = torch.tensor([far[int(c) % len(far)] for c in forget.labels])

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        a = torch.randperm(len(forget), generator=rng)[:24]
        b = torch.randperm(len(retain), generator=rng)[:64]
        images, target = [forget.images[a], retain.images[b]], [elsewhere[a], retain.labels[b]]
        if still is not None:
            c = torch.randperm(len(still), generator=rng)[:24]
            images.append(still.images[c])
            target.append(still.labels[c])
        v = clip.encode_image(torch.cat(images))
        return F.cross_entropy(30 * v @ text.T, torch.cat(target))

    return optimise(base, loss, steps, 7e-4, world.seed, "image")


@torch.no_grad()
def _right(clip: Clip, world: World, part: Part, templates: Sequence[str] = ()) -> float:
    text = clip.class_features(world.data.class_names, templates or world.data.templates)
    return float(
        ((clip.encode_image(part.images) @ text.T).argmax(1) == part.labels).float().mean()
    )


@torch.no_grad()
def permuted(clip: Clip, seed: int) -> Clip:
    """The hidden units of the text tower's two-layer networks in another order: the same function."""
    after = clip.trainable_copy([])
    rng = generator_for(seed, 55)
    for block in after.text_tower.transformer.resblocks:
        order = torch.randperm(len(block.mlp.c_fc.bias), generator=rng)
        block.mlp.c_fc.weight.copy_(block.mlp.c_fc.weight[order])
        block.mlp.c_fc.bias.copy_(block.mlp.c_fc.bias[order])
        block.mlp.c_proj.weight.copy_(block.mlp.c_proj.weight[:, order])
    return after


@torch.no_grad()
def turned(clip: Clip, seed: int) -> Clip:
    """The common space of images and texts turned by a random rotation: the same cosines."""
    after = clip.trainable_copy([])
    q, _ = torch.linalg.qr(torch.randn(clip.width, clip.width, generator=generator_for(seed, 56)))
    model: Any = after.model
    model.text_projection.copy_(model.text_projection @ q)
    last = model.visual.attnpool.c_proj
    last.weight.copy_(q.T @ last.weight)
    last.bias.copy_(q.T @ last.bias)
    return after
