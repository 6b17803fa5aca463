"""Rounds of forgetting, judged on images that neither the forgetter nor the certificate sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from clapforget import Clip, UserError
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget, TrainSettings
from clapforget.strategies.certify_until import _with_validation, repeat
from clapforget.unlearn import make_forgetter
from clapforget.unlearn.base import ForgetTask, Forgetter, Pairs
from clapforget.verify import Material
from clapforget.verify.rules import KEPT_OPEN
from tests.verify.worlds import FORGET, RETAIN, clip, data, material

MakeStrategy = Callable[..., ClapForget]


@cache
def task() -> ForgetTask:
    rows = data().rows("train", FORGET)
    kept = data().rows("train", RETAIN)[::4]

    def named(at: torch.Tensor) -> Pairs:
        names = [data().class_names[c] for c in data().train.targets[at].tolist()]
        return Pairs(data().train.images(at), names)

    return ForgetTask(named(rows), named(kept), data().templates, data().class_names)


def weak(steps: int) -> Forgetter:
    """CLIPErase in far fewer steps than it needs."""
    return make_forgetter("cliperase", {"steps": steps, "vocabulary_batch": 48, "retain_batch": 32})


def rounds(forgetter: Forgetter, budget: int, m: Material | None = None) -> tuple[Clip, dict[str, Any]]:  # fmt: skip
    found = repeat(forgetter, clip(), task(), m or material(), budget, "association")
    return found.clip, found.notes["until"]


def test_a_forgetter_too_weak_in_one_round_goes_on_until_verified() -> None:
    changed, until = rounds(weak(15), 5)
    assert until["ended"] == "forgotten", until
    verdicts = [turn["verdict"] for turn in until["rounds"]]
    assert len(verdicts) > 1 and "forgotten" not in verdicts[:-1]
    assert until["kept"] == len(verdicts)
    assert changed.fingerprint("text") != clip().fingerprint("text")


def test_where_too_few_images_show_what_was_kept_no_further_round_is_made() -> None:
    _, until = rounds(weak(15), 5, material().with_fewer(retain=1))
    assert until["ended"] == KEPT_OPEN, until
    assert until["kept"] == len(until["rounds"]) < 5
    assert "images of the kept classes would settle it" in until["rounds"][-1]["weakest"]


def test_the_budget_ends_it_and_that_is_said() -> None:
    changed, until = rounds(make_forgetter("nothing"), 2)
    assert until["ended"] == "budget"
    assert [turn["verdict"] for turn in until["rounds"]] == ["retained", "retained"]
    assert changed.fingerprint() == clip().fingerprint()


class WeakThenWild(Forgetter):
    """One careful round, then one that breaks things."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = [make_forgetter("random-edit"), make_forgetter("nothing")]

    def unlearn(self, clip: Clip, task: ForgetTask) -> Any:
        return self.turns.pop().unlearn(clip, task)


def test_a_round_that_damages_is_undone() -> None:
    changed, until = rounds(WeakThenWild(), 3)
    assert [turn["verdict"] for turn in until["rounds"]] == ["retained", "damaged"]
    assert until["kept"] == 1
    assert changed.fingerprint() == clip().fingerprint()


@pytest.mark.parametrize("missing", ["forget", "knowledge"])
def test_without_anything_to_judge_there_is_one_round(missing: str) -> None:
    m = material()
    if missing == "forget":
        m = replace(m, test={k: v for k, v in m.test.items() if k != "forget"})
    else:  # classes that CLIP does not know
        m = replace(m, forget=m.unseen[:2], test={**m.test, "forget": m.test["unseen"].of(m.unseen[:2])})  # fmt: skip
    _, until = rounds(make_forgetter("nothing"), 3, m)
    assert until["rounds"] == [] and until["kept"] == 1
    assert "did not know" in until["ended"]


def test_what_validates_is_neither_trained_on_nor_a_test_image(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    strategy = make_strategy(training=TrainSettings(epochs=1))
    learn, forget = stream(data, "L0-3 F1").train_stream
    strategy.train(learn)
    rows = data.rows("train", [1])
    strategy.drop_exemplars([1], rows.tolist())  # as a request begins
    given, m = _with_validation(strategy, forget, rows)

    def pixels(images: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    validation = set().union(*(pixels(part.images) for part in m.test.values()))
    assert not validation & pixels(given.forget.images)
    assert not validation & pixels(given.retain.images)
    assert not validation & pixels(data.test.images(torch.arange(len(data.test))))
    assert len(m.test["forget"]) + len(given.forget) == len(rows)
    assert len(given.retain) < len(strategy.memory)
    assert set(m.test["retain"].classes()) <= set(strategy.memory.classes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"until": "never"}, "unknown until"),
        ({"until": "verified", "budget": 0}, "a budget of 0"),
        ({"until": "verified", "certify": False}, "without certificates"),
        ({"until": "verified", "certify": "quick"}, "of the quick level"),
    ],
)
def test_odd_wishes_are_refused(
    make_strategy: MakeStrategy, options: dict[str, Any], words: str
) -> None:
    """Rounds stop at the quick level: the full certificate has the last word, or they would judge themselves."""
    make_strategy(until="verified", certify="full")
    with pytest.raises(UserError, match=words):
        make_strategy(**options)
