"""The truth bench: that its cases are what they are said to be, and that its numbers are counted right."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from clapforget.bench import verify as bench
from clapforget.bench.verify_edits import exchange_names, scramble_names
from clapforget.bench.verify_kinds import KINDS
from clapforget.bench.verify_world import EXCLUDED, REQUESTS, World
from clapforget.clip import Clip
from clapforget.lab import known_classes
from clapforget.verify.kept import right
from clapforget.verify.material import Material
from clapforget.verify.subject import Subject


@cache
def world() -> World:
    return World.of(0)


@cache
def material() -> Material:
    return world().material(world().forget, 0)


def accuracy(clip: Clip, part: str) -> float:
    return float(right(Subject(clip), material().test[part].first(5), material()).float().mean())


def test_there_are_kinds_enough_of_every_truth() -> None:
    assert len(KINDS) >= 14
    assert len({k.name for k in KINDS}) == len(KINDS)
    counts = {
        t: sum(k.truth == t for k in KINDS)
        for t in ("forgotten", "retained", "suppressed", "damaged")
    }
    assert min(counts.values()) >= 2


def test_requests_ask_for_what_their_twin_never_saw() -> None:
    for twin, forget in REQUESTS:
        assert set(forget) <= set(EXCLUDED[twin]) <= set(known_classes())


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_both_kept_and_excluded(seed: int) -> None:
    here = World(seed, world().data, world().base)
    assert not set(here.retain) & set(EXCLUDED[REQUESTS[seed][0]])
    assert not set(here.new) & set(known_classes())


def test_who_makes_a_case_shows_no_image_that_the_verifier_sees() -> None:
    pixels = {
        i.numpy().tobytes()
        for p in (*material().test.values(), *material().shots.values())
        for i in p.images
    }
    made = world().images((*world().forget, *world().retain[:4]), 20)
    assert not pixels & {i.numpy().tobytes() for i in made.images}


def test_a_scrambled_name_is_lost_and_no_other() -> None:
    after = scramble_names(world(), world().forget)
    assert accuracy(after, "forget") < 0.2
    assert accuracy(after, "retain") > 0.95


def test_exchanged_names_answer_for_each_other() -> None:
    after = exchange_names(world())
    part = material().test["forget"].first(5)
    logits = Subject(after).logits(part, material().names, material().templates)
    swapped = torch.tensor([world().forget[1 - world().forget.index(int(c))] for c in part.labels])
    assert (logits.argmax(1) == swapped).float().mean() > 0.9


def outcome(truth: str, verdict: str, again: str, residue: float, seed: int = 1) -> bench._Outcome:
    return bench._Outcome("k" + truth, truth, seed, verdict, again, "1: x", "y", {"a": residue, "answers": 0.0},
                          {"a": "posterior", "answers": "behaviour"}, 1.0)  # fmt: skip


def test_numbers_are_counted_right() -> None:
    outcomes = [
        outcome("forgotten", "forgotten", "forgotten", 0.0),
        outcome("forgotten", "inconclusive", "forgotten", 0.1),
        outcome("suppressed", "forgotten", "forgotten", 0.9),
        outcome("suppressed", "suppressed", "suppressed", 0.8, seed=0),
        outcome("retained", "retained", "retained", 1.0),
    ]
    found = bench._summary(outcomes, [2.0, 3.0, 10.0], [5.0, 9.0], "full")
    assert found["false_forgotten"] == pytest.approx(1 / 3)
    assert found["right_verdict"] == pytest.approx(3 / 5)
    assert found["right_verdict_held_out"] == pytest.approx(2 / 4)
    assert found["verdict_flips"] == pytest.approx(1 / 5)
    assert found["confusion"]["suppressed"] == {"forgotten": 1, "suppressed": 1}
    assert found["posterior_auroc"] == 1.0
    assert found["behaviour_auroc"] == 0.5
    assert found["auroc"]["a"] == 1.0
    assert found["quick_seconds"] == 3.0
    assert found["certificate_seconds"] == 9.0
    assert len(found["wrong"]) == 2
