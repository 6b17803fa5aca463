"""Heads that hide what they learned in other columns: what their makers claim of them, and what is said."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from clapforget.bench import verify  # noqa: F401 (files the kinds)
from clapforget.bench.verify_kinds import KINDS, Case
from clapforget.bench.verify_world import World
from clapforget.verify import Examination, Subject, examine

FOLDED = "a head's columns folded into those of kept classes"
HONEST = "a head of class means, the text for what it never learned"


@cache
def world() -> World:
    return World.of(1)


def case(name: str) -> Case:
    return next(kind for kind in KINDS if kind.name == name).make(world())


def judged(given: Case) -> Examination:
    return examine(given.before, given.after, world().material(given.forget, 1), level="quick", seed=1)


def answered(subject: Subject) -> float:
    """Part of fresh images of the forgotten classes that their own columns answer."""
    part = world().images(world().new, 20, 60)
    logits = subject.logits(part, [], [])
    return float((torch.tensor(list(subject.columns))[logits.argmax(1)] == part.labels).float().mean())


@pytest.mark.parametrize("name", [
    "a head's columns filed as second ones of kept classes", FOLDED, "a head's vectors, their sign turned",
    "a third of a head's vectors left beside the text", "a head that knows the class in posterised images", HONEST,
    "logistic regression trained again without the classes",
])  # fmt: skip
def test_before_the_classes_are_answered_and_after_they_are_not(name: str) -> None:
    given = case(name)
    assert answered(given.before) > 0.7
    assert answered(given.after) < 0.1
    assert given.before.answer is not given.after.answer or given.before.columns != given.after.columns


def test_a_head_as_sure_as_before_is_accused_and_one_almost_as_sure_is_doubted() -> None:
    given = case(FOLDED)
    found = judged(given)
    assert found.judgement.verdict == "suppressed"
    assert "as sure of its images as before" in found.judgement.rule
    fold = given.after.answer
    assert fold is not None

    def lower(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return 0.95 * fold(v, images)

    doubted = judged(replace(given, after=replace(given.after, answer=lower)))
    assert doubted.judgement.verdict == "inconclusive"
    assert "energy of forgotten images, by the head" in doubted.judgement.weakest


def test_a_head_that_only_has_the_text_has_forgotten() -> None:
    found = judged(case(HONEST))
    assert found.judgement.verdict == "forgotten", found.judgement
    energy = next(piece for piece in found.evidence if piece.name == "head_energy")
    assert energy.holds and energy.residue is not None and energy.residue < 0.25
