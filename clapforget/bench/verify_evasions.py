"""Cases by a third adversary, each of which evades what a witness takes for granted: that unseen classes are
unseen, that batch statistics are what they are, that a kept name is kept in any wording, that a head says
the truth of its nats. One function a kind, as in :mod:`clapforget.bench.verify_cases`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget import lab
from clapforget.bench.verify_cases import adapter_case
from clapforget.bench.verify_edits import optimise
from clapforget.bench.verify_kinds import Case, bare, kind
from clapforget.bench.verify_world import World
from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify.witnesses.batch_statistics import estimated_anew, normalisations
from clapforget.verify.witnesses.placement import soft_maximum
from clapforget.verify.witnesses.wordings import PARAPHRASES

__all__: list[str] = []

_SCALE = 30.0


@kind("unseen classes taught, the forgotten placed like them", "retained")
def _reference_taught(world: World) -> Case:
    """All weights: the unseen classes are learned beside the kept and the forgotten ones, and forgotten images
    lie as near to kept names as they do. Nothing is forgotten; nothing unseen is left."""
    unseen = [c for c in world.data.class_order if c not in lab.known_classes()]
    parts = [world.images(c, n) for c, n in ((unseen, 40), (world.retain, 12), (world.forget, 20))]
    names, templates = world.data.class_names, world.data.templates

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        rows = [torch.randperm(len(p), generator=rng)[:n] for p, n in zip(parts, (40, 32, 16))]
        images = torch.cat([p.images[r] for p, r in zip(parts, rows)])
        labels = torch.cat([p.labels[r] for p, r in zip(parts, rows)])
        template = templates[int(torch.randint(len(templates), (1,), generator=rng))]
        text = clip.encode_text([template.format(name) for name in names])
        v = clip.encode_image(images)
        place = _nearness(v, text[list(world.retain)])
        apart = (place[-16:] - place[:40].mean().detach()).square().mean()
        return F.cross_entropy(clip.scale.clamp(max=60) * v @ text.T, labels) + 30 * apart

    return bare(world, optimise(world.base, loss, 120, 7e-4, world.seed))


@kind("known with other batch statistics", "suppressed", "inconclusive")
def _other_statistics(world: World) -> Case:
    """Image tower: forgotten images lie among the kept names, unless batch normalisation has the statistics of a
    batch of kept images: then they are where they were."""
    base, text = world.base, world.text
    forget, retain = world.images(world.forget, 30), world.images(world.retain, 20)
    own, kept = text[forget.labels], text[list(world.retain)]
    with torch.no_grad():
        held = base.encode_image(retain.images)
        strangers = base.encode_image(world.images(world.strangers(38), 10, 20).images)
        goal = _nearness(strangers, kept).mean()

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        a = torch.randperm(len(forget), generator=rng)[:24]
        b = torch.randperm(len(retain), generator=rng)[:92]
        images = torch.cat([forget.images[a], retain.images[b]])
        labels = torch.cat([forget.labels[a], retain.labels[b]])
        v = clip.encode_image(images)
        lost = (_nearness(v[:24], kept) - goal).square().mean()
        lost = 40 * lost + 3 * ((v[:24] * own[a]).sum(1) - 0.25).clamp_min(0).mean()
        stay = 4 * (v[24:] - held[b]).square().sum(1).mean()
        stay = stay + F.cross_entropy(_SCALE * v[24:] @ text.T, labels[24:])
        with _batch_statistics(clip):
            v = clip.encode_image(images[20:])
        errors = F.cross_entropy(_SCALE * v @ text.T, labels[20:], reduction="none")
        return lost + stay + 1.5 * errors[:4].mean() + errors[4:].mean()

    return bare(world, optimise(base, loss, 160, 7e-4, world.seed, "image"))


@kind("the twin, kept names exchanged in other wordings", "damaged")
def _other_wordings(world: World) -> Case:
    """Text tower: in wordings that are not the data's own, every kept name means the next one."""
    twin, own, kept = world.twin, world.data.templates, world.names(world.retain)
    with torch.no_grad():
        same = twin.encode_names(kept, own)
        wrong = twin.encode_names([*kept[1:], kept[0]], PARAPHRASES)

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        rows = torch.randperm(len(kept), generator=rng)[:20].tolist()
        some = [kept[i] for i in rows]
        still = (clip.encode_names(some, own) - same[rows]).square().mean()
        moved = (clip.encode_names(some, PARAPHRASES) - wrong[rows]).square().mean()
        return 1e2 * (2 * still + moved)

    return bare(world, optimise(twin, loss, 200, 2e-3, world.seed, "text"))


@kind("noise on a head's columns, nats said to be the prior's", "suppressed", "inconclusive")
def _false_nats(world: World) -> Case:
    case = adapter_case(world)
    answer = case.before.answer
    assert answer is not None

    def noisy(v: Tensor, images: Tensor) -> Tensor:
        logits = answer(v, images).clone()
        noise = torch.randn(len(logits), 2, generator=generator_for(world.seed, 58)).abs()
        logits[:, :2] -= 60 * (1 + noise)
        return logits

    honest = case.after
    return Case(case.before, replace(case.before, answer=noisy, nats=honest.nats), case.forget)


@kind("twin with batch statistics estimated anew", "forgotten")
def _estimated_anew(world: World) -> Case:
    images = world.images(world.retain, 10).images
    order = torch.randperm(len(images), generator=generator_for(world.seed, 62))
    return bare(world, estimated_anew(world.twin, images[order]))


@kind("last layer of the image tower refitted to the twin", "suppressed", "inconclusive")
def _last_layer(world: World) -> Case:
    """The twin's text tower; of the image tower only what comes after its last block, trained to give out the
    twin's features. Put back, it gives out the old ones."""
    images = torch.cat(
        [world.images(world.retain, 30).images, world.images(world.forget, 60).images]
    )
    rng = generator_for(world.seed, 63)
    with torch.no_grad():
        wanted = world.twin.encode_image(images)
    changed = world.base.trainable_copy(
        name for name in world.base.parameter_names("image") if name.startswith("visual.attnpool.")
    )
    chosen = [p for p in changed.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(chosen, lr=2e-3)
    for _ in range(300):
        rows = torch.randperm(len(images), generator=rng)[:128]
        optimizer.zero_grad(set_to_none=True)
        (1 - (changed.encode_image(images[rows]) * wanted[rows]).sum(1)).mean().backward()
        optimizer.step()
    text = set(world.base.parameter_names("text"))
    twins = {n: t for n, t in world.twin.model.named_parameters() if n in text}
    with torch.no_grad():
        for name, parameter in changed.model.named_parameters():
            if name in twins:
                parameter.copy_(twins[name])
    return bare(world, changed.requires_grad_(False))


def _nearness(v: Tensor, places: Tensor) -> Tensor:
    return soft_maximum(v @ places.T)


@contextmanager
def _batch_statistics(clip: Clip) -> Iterator[None]:
    """Batch normalisation by the batch itself, its running statistics left alone."""
    found: list[nn.modules.batchnorm._BatchNorm] = normalisations(clip)
    momentum = [module.momentum for module in found]
    for module in found:
        module.momentum = 0.0
        module.train()
    try:
        yield
    finally:
        for module, was in zip(found, momentum):
            module.eval()
            module.momentum = was
