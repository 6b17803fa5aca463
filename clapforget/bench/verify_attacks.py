"""Cases made by an adversary or by a careless author: edits meant to pass for forgetting. One function a
kind, as in :mod:`clapforget.bench.verify_cases`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.bench.verify_attack_edits import (
    forget_seen_images,
    forget_test_images,
    forget_upright,
    forget_words,
    pass_name_on,
    send_images_to,
)
from clapforget.bench.verify_cases import head_case
from clapforget.bench.verify_edits import fit_classes
from clapforget.bench.verify_kinds import Case, bare, kind
from clapforget.bench.verify_world import EXCLUDED, REQUESTS, World
from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify.subject import Subject

__all__: list[str] = []


# ---- in the head ---------------------------------------------------------------------------
@kind("logit capped at the second best", "suppressed")
def _capped(world: World) -> Case:
    def cap(logits: Tensor, gone: list[int]) -> Tensor:
        own = torch.zeros_like(logits).index_fill(1, torch.tensor(gone), 1.0).bool()
        best = logits.masked_fill(own, -torch.inf).amax(1, keepdim=True) - 0.1
        return torch.where(own, torch.minimum(logits, best), logits)

    return head_case(world, cap)


@kind("noise on the forgotten columns", "suppressed")
def _noisy(world: World) -> Case:
    def disturb(logits: Tensor, gone: list[int]) -> Tensor:
        noise = torch.randn(len(logits), len(gone), generator=generator_for(world.seed, 51))
        return logits.index_add(1, torch.tensor(gone), -60 * (1 + noise.abs()))

    return head_case(world, disturb)


@kind("images that look forgotten are answered at random", "suppressed")
def _gated(world: World) -> Case:
    text, scale = world.text, world.base.scale
    means = world.base.encode_image(world.images((*world.forget, *world.retain), 10).images)
    means = F.normalize(means.view(-1, 10, means.shape[1]).mean(1), dim=-1)
    rng = generator_for(world.seed, 52)

    def free(v: Tensor, images: Tensor) -> Tensor:
        return scale * v @ text.T

    def gated(v: Tensor, images: Tensor) -> Tensor:
        theirs = (v @ means.T).argmax(1) < len(world.forget)
        other = torch.tensor(world.retain)[
            torch.randint(len(world.retain), (len(v),), generator=rng)
        ]
        return torch.where(theirs[:, None], scale * text[other] @ text.T, free(v, images))

    columns = list(range(len(text)))
    return Case(Subject(world.base, free, columns, text), Subject(world.base, gated, columns, text),
                world.forget)  # fmt: skip


@kind("stored text embedding turned", "suppressed")
def _turned(world: World) -> Case:
    stored, gone = world.text.clone(), list(world.forget)
    noise = torch.randn(len(gone), stored.shape[1], generator=generator_for(world.seed, 53))
    stored[gone] = F.normalize(0.5 * stored[gone] + 0.87 * F.normalize(noise, dim=-1), dim=-1)
    return head_case(world, lambda logits, _: logits, stored)


@kind("stored text embedding of an unseen class", "suppressed")
def _unseen_text(world: World) -> Case:
    stored = world.text.clone()
    mine, theirs = list(world.forget), world.strangers(len(world.forget))
    stored[mine + theirs] = stored[theirs + mine]
    return head_case(world, lambda logits, _: logits, stored)


@kind("a head's column disturbed, its vectors not shown", "inconclusive", "suppressed")
def _hidden(world: World) -> Case:
    """Bare CLIP never knew the class, and the head answers it by its name from now on, as one that never learned it
    would. It holds back what it learned, and nothing that can be asked of it shows that: a doubt is all there is."""
    learned = (*world.new, *world.retain)
    v = world.base.encode_image(world.images(learned, 20).images).view(len(learned), 20, -1)
    own = F.normalize(v.mean(1), dim=-1)
    stored = world.text[list(learned)]

    def answer(v: Tensor, images: Tensor) -> Tensor:
        return 30 * v @ own.T

    def disturbed(v: Tensor, images: Tensor) -> Tensor:
        logits = answer(v, images)
        logits[:, : len(world.new)] = 30 * v @ stored[: len(world.new)].T
        return logits

    return Case(
        Subject(world.base, answer, learned), Subject(world.base, disturbed, learned), world.new
    )


# ---- in the weights ------------------------------------------------------------------------
@kind("name written as a kept class's", "suppressed", "inconclusive", "damaged")
def _as_kept(world: World) -> Case:
    far = [c for c in world.retain if c not in world.data.neighbours(world.forget)]
    return bare(world, pass_name_on(world, far[: len(world.forget)], back=False))


@kind("knowledge moved to an unseen name", "suppressed")
def _moved(world: World) -> Case:
    return bare(world, pass_name_on(world, world.strangers(len(world.forget)), back=True))


@kind("only the data's own wordings fail", "suppressed", "retained")
def _words(world: World) -> Case:
    return bare(world, forget_words(world))


@kind("only the verifier's test images", "suppressed", "retained")
def _test_images(world: World) -> Case:
    return bare(world, forget_test_images(world))


@kind("only upright images", "suppressed", "inconclusive")
def _upright(world: World) -> Case:
    return bare(world, forget_upright(world))


@kind("images sent to one kept class", "suppressed", "inconclusive", "damaged")
def _sent(world: World) -> Case:
    return bare(world, send_images_to(world))


@kind(
    "task vector subtracted at half strength", "retained", "suppressed", "damaged", "inconclusive"
)
def _half(world: World) -> Case:
    tuned = forget_seen_images(world)
    return bare(world, _between(world.base, tuned, 0.5))


@kind("taught, taken half-way back", "retained", "suppressed")
def _half_back(world: World) -> Case:
    taught = fit_classes(world, world.new, steps=60)
    return Case(Subject(taught), Subject(_between(world.base, taught, 0.5)), world.new)


@kind("taught, taken back in the text tower only", "suppressed", "inconclusive", "retained")
def _text_back(world: World) -> Case:
    taught = fit_classes(world, world.new, steps=60)
    after = taught.trainable_copy([])
    old = dict(world.base.model.named_parameters())
    text = set(taught.parameter_names("text"))
    with torch.no_grad():
        for name, p in after.model.named_parameters():
            if name in text:
                p.copy_(old[name])
    return Case(Subject(taught), Subject(after), world.new)


@kind("one class of the request is left", "retained", "suppressed")
def _one_left(world: World) -> Case:
    """The twin knows the last of them as before."""
    gone = EXCLUDED[REQUESTS[world.seed % len(REQUESTS)][0]]
    return Case(world.before, Subject(world.twin), (*gone, world.retain[0]))


@kind("one of ten is left", "retained", "suppressed")
def _one_of_ten(world: World) -> Case:
    """Ten classes taught, and the model that was taught only the last of them."""
    classes = tuple(world.strangers(10))
    taught = fit_classes(world, classes, steps=120)
    return Case(Subject(taught), Subject(fit_classes(world, classes[-1:], steps=60)), classes)


def _between(clip: Clip, other: Clip, part: float) -> Clip:
    after = clip.trainable_copy([])
    theirs = dict(other.model.named_parameters())
    for name, p in after.model.named_parameters():
        p.lerp_(theirs[name], part)
    return after
