"""Cases whose truth is known by construction: one function a kind, which makes before and after."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.bench.verify_edits import (
    confine_to_bins,
    exchange_names,
    fit_classes,
    forget_clean_images,
    forget_wordings,
    scramble_names,
    shallow_edit,
)
from clapforget.bench.verify_kinds import Case, bare, kind
from clapforget.bench.verify_world import World
from clapforget.clip import Clip
from clapforget.posterior.exact import ExactHead
from clapforget.seeding import generator_for
from clapforget.unlearn.base import make_forgetter
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.rounding import round_weights

__all__ = ["adapter_case", "head_case"]


# ---- truly forgotten -----------------------------------------------------------------------
@kind("backbone twin", "forgotten")
def _twin(world: World) -> Case:
    return bare(world, world.twin)


@kind("taught, then the state before", "forgotten")
def _injected(world: World) -> Case:
    taught = fit_classes(world, world.new, steps=60)
    return Case(Subject(taught), Subject(world.base), world.new)


@kind("adapter never trained", "forgotten")
def _adapter(world: World) -> Case:
    return adapter_case(world)


def adapter_case(world: World, order: Tensor | None = None) -> Case:
    """A head that learned twenty classes, and one that never learned the first two of them.

    :param order: of the latter's columns [20].
    """
    learned = (*world.new, *world.retain[:18])
    part = world.images(learned, 20)
    text = world.base.encode_names(world.names(learned), world.data.templates)
    with torch.no_grad():
        v = world.base.encode_image(part.images)[:, None]
    subjects = []
    for classes, columns in ((learned, None), (learned[2:], order)):
        head = ExactHead(world.base.width, float(world.base.scale), seed=world.seed)
        head.grow(learned, text)
        rows = torch.isin(part.labels, torch.tensor(classes))
        head.learn(
            v[rows], part.labels[rows], rows.nonzero()[:, 0], world.base.fingerprint("image")
        )
        subjects.append(_with_head(world, head, columns))
    return Case(subjects[0], subjects[1], world.new)


def _with_head(world: World, head: ExactHead, order: Tensor | None) -> Subject:
    place = torch.arange(len(head.labels)) if order is None else order

    def answer(features: Tensor, images: Tensor) -> Tensor:
        logits = head.predict(features).logits
        assert logits is not None
        return logits[:, place]

    nats = {int(c): float(n) for c, n in zip(head.labels, head.nats())}
    return Subject(world.base, answer, head.labels[place].tolist(), nats=nats)


# ---- retained ------------------------------------------------------------------------------
@kind("nothing done", "retained")
def _nothing(world: World) -> Case:
    return bare(world, world.base)


@kind("fine-tuned on retained", "retained")
def _finetuned(world: World) -> Case:
    return bare(world, fit_classes(world, (), steps=30, lr=1e-4))


@kind("random edit too small", "retained")
def _small_edit(world: World) -> Case:
    return bare(world, _forgetter(world, "random-edit", relative=0.01))


@kind("wrong class", "retained")
def _wrong(world: World) -> Case:
    return bare(world, scramble_names(world, world.retain[world.seed :: 20][:2]))


# ---- suppressed, in the head ---------------------------------------------------------------
def head_case(
    world: World, change: Callable[[Tensor, list[int]], Tensor], text: Tensor | None = None
) -> Case:
    """A head of stored text features whose logits go through ``change(logits, forgotten)``."""
    stored, forgotten = world.text, list(world.forget)
    used = stored if text is None else text

    def head(weights: Tensor, alter: bool) -> Subject:
        def answer(features: Tensor, images: Tensor) -> Tensor:
            logits = world.base.scale * features @ weights.T
            return change(logits, forgotten) if alter else logits

        return Subject(world.base, answer, list(range(len(weights))), weights)

    return Case(head(stored, False), head(used, True), world.forget)


@kind("name removed from the head", "suppressed")
def _removed(world: World) -> Case:
    def remove(logits: Tensor, gone: list[int]) -> Tensor:
        return logits.index_fill(1, torch.tensor(gone), -torch.inf)

    return head_case(world, remove)


@kind("constant subtracted", "suppressed")
def _constant(world: World) -> Case:
    def subtract(logits: Tensor, gone: list[int]) -> Tensor:
        shift = torch.zeros(logits.shape[1]).index_fill(0, torch.tensor(gone), 60.0)
        return logits - shift

    return head_case(world, subtract)


@kind("stored text embedding replaced", "suppressed")
def _replaced(world: World) -> Case:
    stored = world.text.clone()
    noise = torch.randn(len(world.forget), stored.shape[1], generator=_rng(world))
    stored[list(world.forget)] = F.normalize(noise, dim=-1)
    return head_case(world, lambda logits, gone: logits, stored)


@kind("temperature raised on forget data", "suppressed")
def _temperature(world: World) -> Case:
    def raise_it(logits: Tensor, gone: list[int]) -> Tensor:
        theirs = torch.isin(logits.argmax(1), torch.tensor(gone))
        return torch.where(theirs[:, None], logits / 60, logits)

    return head_case(world, raise_it)


@kind("names exchanged in the head", "suppressed")
def _exchanged_head(world: World) -> Case:
    stored = world.text.clone()
    gone = list(world.forget)
    stored[gone] = stored[gone[1:] + gone[:1]]
    return head_case(world, lambda logits, _: logits, stored)


# ---- suppressed, in the weights ------------------------------------------------------------
@kind("names exchanged in the tower", "suppressed")
def _exchanged(world: World) -> Case:
    return bare(world, exchange_names(world))


@kind("only some wordings fail", "suppressed")
def _wordings(world: World) -> Case:
    return bare(world, forget_wordings(world))


@kind("only clean images", "suppressed")
def _clean(world: World) -> Case:
    return bare(world, forget_clean_images(world))


@kind("undone by rounding", "suppressed")
def _rounded(world: World) -> Case:
    before = round_weights(world.base, 8, "tensor")
    return Case(Subject(before), Subject(confine_to_bins(world, before)), world.forget)


@kind("undone by fine-tuning on retained", "suppressed")
def _shallow(world: World) -> Case:
    return bare(world, shallow_edit(world))


# ---- damaged -------------------------------------------------------------------------------
@kind("gradient ascent run long", "damaged")
def _ascent(world: World) -> Case:
    return bare(world, _forgetter(world, "gradient-ascent", steps=60, lr=1e-3))


@kind("large random edit", "damaged")
def _large_edit(world: World) -> Case:
    return bare(world, _forgetter(world, "random-edit", relative=0.7))


@kind("near neighbours taken along", "damaged")
def _neighbours(world: World) -> Case:
    near = [c for c in world.data.neighbours(world.forget) if c in world.retain]
    order = torch.randperm(len(near), generator=_rng(world))[:4].tolist()
    return bare(world, scramble_names(world, (*world.forget, *(near[i] for i in order))))


def _rng(world: World) -> torch.Generator:
    return generator_for(world.seed, 42)


def _forgetter(world: World, name: str, **settings: float) -> Clip:
    return make_forgetter(name, settings).unlearn(world.base, world.task(20, 4)).clip
