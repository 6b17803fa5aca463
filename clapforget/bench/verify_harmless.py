"""Cases that differ by what means nothing: a model that forgot, or one that did not, with an innocent change."""

from __future__ import annotations

import torch

from clapforget.bench.verify_attack_edits import permuted, turned
from clapforget.bench.verify_edits import fit_classes
from clapforget.bench.verify_kinds import Case, bare, kind
from clapforget.bench.verify_world import EXCLUDED, REQUESTS, World
from clapforget.clip import Clip
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.rounding import round_weights

__all__: list[str] = []


# ---- nothing that matters ------------------------------------------------------------------
@kind("scale of the logits lowered", "retained")
def _scale(world: World) -> Case:
    return bare(world, _scaled(world.base, 0.3))


@kind("weights rounded to 8 bits", "retained")
def _rounded(world: World) -> Case:
    return bare(world, round_weights(world.base, 8, "row"))


@kind("smallest weights of the image tower pruned", "retained")
def _pruned(world: World) -> Case:
    after = world.base.trainable_copy([])
    for name in after.parameter_names("image"):
        p = after.model.get_parameter(name)
        if p.ndim > 1:
            p[p.abs() < p.abs().flatten().quantile(0.2)] = 0
    return bare(world, after)


@kind("another class taught", "retained")
def _another(world: World) -> Case:
    return bare(world, fit_classes(world, world.strangers(1), steps=40))


@kind("before and after exchanged", "inconclusive", "retained")
def _exchanged(world: World) -> Case:
    return Case(Subject(world.twin), world.before, world.forget)


# ---- forgotten, and a change that means nothing ----------------------------------------------
@kind("twin in half precision", "forgotten")
def _half_twin(world: World) -> Case:
    after = world.twin.trainable_copy([])
    for p in after.model.parameters():
        p.copy_(p.half().float())
    return bare(world, after)


@kind("twin with another scale of the logits", "forgotten")
def _scaled_twin(world: World) -> Case:
    return bare(world, _scaled(world.twin, 0.5))


@kind("twin with hidden units permuted, its embedding turned", "forgotten")
def _permuted_twin(world: World) -> Case:
    return bare(world, turned(permuted(world.twin, world.seed), world.seed))


@kind("twin of a wider request", "damaged")
def _wider_twin(world: World) -> Case:
    """The twin lacks classes that nobody asked it to."""
    gone = EXCLUDED[REQUESTS[world.seed % len(REQUESTS)][0]]
    rest = tuple(c for c in gone if c != world.forget[0])
    return Case(world.before, Subject(world.twin), world.forget[:1], rest)


def _scaled(clip: Clip, factor: float) -> Clip:
    after = clip.trainable_copy([])
    after.model.get_parameter("logit_scale").add_(torch.tensor(factor).log())
    return after
