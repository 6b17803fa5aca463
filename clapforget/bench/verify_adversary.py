"""Cases by a second adversary, who had read the verifier: one function a kind, as in
:mod:`clapforget.bench.verify_cases`. Each of the fakes passed for forgetting when it was first made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.bench.verify_cases import adapter_case
from clapforget.bench.verify_edits import (
    embedding,
    optimise,
    scramble_names,
    token_rows,
)
from clapforget.bench.verify_kinds import Case, bare, kind
from clapforget.bench.verify_world import World
from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify.subject import Subject

__all__ = ["class_means", "means_case"]

_HEAD_SCALE = 30.0


# ---- in the weights ------------------------------------------------------------------------
@kind("kept names drawn near the forgotten images", "suppressed", "inconclusive")
def _covered(world: World) -> Case:
    """Text tower alone: the forgotten names mean nothing, and the four kept names nearest to each class's
    images come nearer. The image tower is the very same."""
    base, templates = world.base, world.data.templates
    means = class_means(world, world.forget)
    gone, kept = world.names(world.forget), world.names(world.retain)
    with torch.no_grad():
        goal = base.encode_names(kept, templates)
        for mean in means:
            near = (world.text[list(world.retain)] @ mean).topk(4).indices
            goal[near] = F.normalize(goal[near] + 0.25 * mean, dim=-1)
        wrong = scramble_names(world, world.forget).encode_names(gone, templates)

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        rows = torch.randperm(len(kept), generator=rng)[:16].tolist()
        moved = (clip.encode_names(gone, templates) - wrong).square().mean()
        held = (clip.encode_names([kept[i] for i in rows], templates) - goal[rows]).square().mean()
        return 1e2 * (moved + 2 * held)

    after = optimise(base, loss, 160, 2e-3, world.seed, "text")
    assert after.fingerprint("image") == base.fingerprint("image")
    return bare(world, after)


@kind("image features turned by an invertible map", "suppressed", "inconclusive")
@torch.no_grad()
def _mapped(world: World) -> Case:
    """The forgotten names mean nothing, and a linear map of image features, folded into the tower's last
    layer, puts the forgotten images among kept names: its inverse brings everything back."""
    base, kept = world.base, list(world.retain)
    retained = base.encode_image(world.images(kept, 20).images)
    forgotten = base.encode_image(world.images(world.forget, 20).images)
    free = torch.linalg.svd(world.text).Vh[70:]  # where no class text reaches
    goals = []
    for i, mean in enumerate(class_means(world, world.forget)):
        near = (world.text[kept] @ mean).topk(3).indices
        goal = F.normalize(world.text[kept][near].sum(0), dim=0) + 0.3 * free[i]
        goals.append(F.normalize(goal, dim=0).expand(20, -1))
    x, y = torch.cat([retained, forgotten]), torch.cat([retained, *goals])
    weight = torch.cat([torch.ones(len(retained)), torch.full((len(forgotten),), 3.0)])[:, None]
    ridge = 0.3 * torch.eye(base.width)
    turn = torch.linalg.solve(x.T @ (weight * x) + ridge, x.T @ (weight * y) + ridge)
    after = scramble_names(world, world.forget)
    last = after.model.visual.attnpool.c_proj  # type: ignore[union-attr]
    last.weight.copy_(turn.T @ last.weight)  # type: ignore[operator,union-attr]
    last.bias.copy_(last.bias @ turn)  # type: ignore[operator,union-attr]
    back = F.normalize(after.encode_image(world.images(kept, 1).images) @ turn.inverse(), dim=-1)
    assert torch.allclose(back, base.encode_image(world.images(kept, 1).images), atol=1e-4)
    return bare(world, after)


# ---- in a head of what bare CLIP never knew ------------------------------------------------
@kind("stored vectors of two forgotten classes exchanged", "suppressed")
def _exchanged(world: World) -> Case:
    return means_case(world, (), lambda w: w[[1, 0, *range(2, len(w))]])


@kind("stored vectors exchanged with another column's", "suppressed")
def _aliased(world: World) -> Case:
    def exchange(w: Tensor) -> Tensor:
        n = len(w)
        return w[[n - 2, n - 1, *range(2, n - 2), 0, 1]]

    return means_case(world, world.strangers(2), exchange)


@kind("vectors shown that do not answer", "suppressed", "inconclusive")
def _decoy(world: World) -> Case:
    """Noise on the forgotten columns, and for their vectors the class texts are shown."""
    text = world.text[list(world.new)]

    def hide(logits: Tensor) -> Tensor:
        noise = torch.randn(len(logits), 2, generator=generator_for(world.seed, 58))
        return torch.cat([logits[:, :2] - 60 * (1 + noise.abs()), logits[:, 2:]], 1)

    return means_case(world, (), lambda w: w, hide, lambda w: torch.cat([text, w[2:]]))


def means_case(
    world: World, more: Sequence[int], change: Callable[[Tensor], Tensor],
    hide: Callable[[Tensor], Tensor] = lambda logits: logits,
    show: Callable[[Tensor], Tensor] = lambda w: w,
) -> Case:  # fmt: skip
    """A head of class means over new and retained classes, and its change. :param more: classes whose
    columns are their texts. :param show: the vectors that it says it stores."""
    columns = [*world.new, *world.retain, *more]
    means = class_means(world, [*world.new, *world.retain])
    stored = torch.cat([means, world.text[list(more)]])

    def head(weights: Tensor, last: Callable[[Tensor], Tensor], shown: Tensor) -> Subject:
        def answer(v: Tensor, images: Tensor) -> Tensor:
            return last(_HEAD_SCALE * v @ weights.T)

        return Subject(world.base, answer, columns, shown)

    after = change(stored)
    return Case(
        head(stored, lambda x: x, stored), head(after, hide, show(after)), world.new
    )  # fmt: skip


def class_means(world: World, classes: Sequence[int], clip: Clip | None = None) -> Tensor:
    """Unit mean features [n, d] of twenty images of each class, by the built-in model or another."""
    with torch.no_grad():
        v = (clip or world.base).encode_image(world.images(classes, 20).images)
    return F.normalize(v.view(len(classes), 20, -1).mean(1), dim=-1)


# ---- damaged -------------------------------------------------------------------------------
@kind("the twin, five kept classes halved", "damaged")
@torch.no_grad()
def _halved(world: World) -> Case:
    """Tokens of five kept names partly replaced, until half of their images are answered."""
    near = world.data.neighbours(world.forget)
    chosen = [c for c in world.retain if c not in near][3::9][:5]
    after = world.twin.trainable_copy([])
    table, rng = embedding(after), generator_for(world.seed, 59)
    old = table.clone()
    for label in chosen:
        rows, part = token_rows(world, label), world.images([label], 40)
        noise = torch.randn(len(rows), table.shape[1], generator=rng) * old.std()
        v, low, high = after.encode_image(part.images), 0.0, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            table[rows] = torch.lerp(old[rows], noise, middle)
            text = after.class_features(world.data.class_names, world.data.templates)
            right = float(((v @ text.T).argmax(1) == label).float().mean())
            low, high = (middle, high) if right > 0.45 else (low, middle)
        table[rows] = torch.lerp(old[rows], noise, low)
    return bare(world, after)


# ---- forgotten, and a change that means nothing ----------------------------------------------
@kind("twin with the forgotten names' tokens drawn anew", "forgotten")
def _renamed(world: World) -> Case:
    return bare(world, scramble_names(world, world.forget, world.twin, purpose=60))


@kind("adapter never trained, its columns in another order", "forgotten")
def _reordered(world: World) -> Case:
    return adapter_case(world, torch.randperm(20, generator=generator_for(world.seed, 61)))
