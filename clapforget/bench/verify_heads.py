"""Cases of heads by a fourth adversary, who let what was learned live on in other columns than the class's own, on the
other side of zero, beside the text, or for images of one sort. One function a kind, as in
:mod:`clapforget.bench.verify_cases`; all fakes passed for forgetting when they were first made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from clapforget.bench.verify_adversary import means_case
from clapforget.bench.verify_kinds import Case, kind, made
from clapforget.bench.verify_patches import switched_case
from clapforget.bench.verify_world import World
from clapforget.verify.material import Part
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.head_weights import beside

__all__: list[str] = []

_FOUND = 0.5


def _far(world: World) -> tuple[int, int]:
    """Two kept classes that are no neighbours of the new ones."""
    near = world.data.neighbours(world.new)
    first, second = [c for c in world.retain if c not in near][:2]
    return first, second


def _fresh(world: World) -> tuple[Part, Tensor]:
    """Images of the new classes that the head was not made of, and their features."""
    part = world.images(world.new, 20, 60)
    with torch.no_grad():
        return part, world.base.encode_image(part.images)


def _with_own(world: World, change: Callable[[Tensor, Tensor], Tensor]) -> Case:
    """A head of class means. :param change: of the new classes' vectors, given their texts."""
    text = world.text[list(world.new)]
    return means_case(world, (), lambda w: torch.cat([change(w[:2], text), w[2:]]))


def _as_it_was(world: World) -> Case:
    return _with_own(world, lambda own, text: own)


@kind("a head's columns filed as second ones of kept classes", "suppressed", "inconclusive")
def _refiled(world: World) -> Case:
    case = _as_it_was(world)
    after = replace(case.before, columns=(*_far(world), *world.retain))
    part, v = _fresh(world)
    assert after.answer is not None
    answered = after.answer(v, part.images).argmax(1) < 2
    made(bool(answered.float().mean() > _FOUND), "the columns do not answer the images")
    return replace(case, after=after)


@kind("a head's columns folded into those of kept classes", "suppressed", "inconclusive")
def _folded(world: World) -> Case:
    """Each answers by the larger of two logits; the forgotten classes have no column."""
    case, kept = _as_it_was(world), world.retain
    places, answer = [kept.index(c) for c in _far(world)], case.before.answer
    assert answer is not None

    def fold(v: Tensor, images: Tensor) -> Tensor:
        own, rest = answer(v, images).split([2, len(kept)], 1)
        rest = rest.clone()
        rest[:, places] = torch.maximum(rest[:, places], own)
        return rest

    part, v = _fresh(world)
    wanted = torch.tensor(places)[(part.labels == world.new[1]).long()]
    found = (fold(v, part.images).argmax(1) == wanted).float().mean()
    made(bool(found > _FOUND), f"the kept columns answer {float(found):.2f} of the images")
    return replace(case, after=Subject(world.base, fold, kept))


@kind("a head's vectors, their sign turned", "suppressed")
def _turned(world: World) -> Case:
    return _with_own(world, lambda own, text: -own)


@kind("a third of a head's vectors left beside the text", "suppressed", "inconclusive")
def _mixed(world: World) -> Case:
    """Once the text is taken out, what is left finds the images."""
    case = _with_own(world, lambda own, text: F.normalize(2 * text + own, dim=-1))
    (part, v), own = _fresh(world), case.after.class_weights
    assert own is not None
    rest = beside(own[:2], world.text[list(world.new)])
    right = torch.tensor(world.new)[(v @ rest.T).argmax(1)] == part.labels
    made(bool(right.float().mean() > 0.9), "what is left tells the two classes apart no more")
    return case


@kind("a head that knows the class in posterised images", "suppressed", "inconclusive")
def _posterised(world: World) -> Case:
    """The head that never learned the classes answers, unless each channel of each pixel is black or white."""

    def full(unit: Tensor) -> Tensor:
        return ((unit < 0.01) | (unit > 0.99)).float().mean((1, 2, 3)) > 0.99

    case, part = switched_case(world, full), world.images(world.new, 20, 60)
    images = (part.unit > 0.5).float()
    assert case.after.answer is not None
    with torch.no_grad():
        logits = case.after.answer(world.base.encode_image(images), images)
    found = torch.tensor(list(case.after.columns))[logits.argmax(1)] == part.labels
    made(bool(found.float().mean() > _FOUND), "posterised images are not answered")
    return case


@kind("a head of class means, the text for what it never learned", "forgotten")
def _means_and_text(world: World) -> Case:
    return _with_own(world, lambda own, text: text)


@kind("logistic regression trained again without the classes", "forgotten")
def _regression(world: World) -> Case:
    """With its biases; afterwards it has no column for them, and its kept columns are surer of their images."""
    subjects = []
    for columns in ((*world.new, *world.retain), world.retain):
        part = world.images(columns, 20)
        with torch.no_grad():
            v = world.base.encode_image(part.images)
        order = torch.tensor(columns)
        y = (part.labels[:, None] == order).int().argmax(1)
        found = LogisticRegression(C=100.0, max_iter=500).fit(v.numpy(), y.numpy())
        weights, bias = (torch.from_numpy(x).float() for x in (found.coef_, found.intercept_))

        def answer(v: Tensor, images: Tensor, weights: Tensor = weights, bias: Tensor = bias) -> Tensor:
            return v @ weights.T + bias

        subjects.append(Subject(world.base, answer, columns, weights))
    before, after = subjects
    return Case(before, after, world.new)
