"""Which unseen classes stand for never learned, after someone taught some of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clapforget.verify import Reading, Subject
from clapforget.verify.examine import examine, readings
from clapforget.verify.reference import lower, taught_since, without
from clapforget.verify.weigh import weigh
from clapforget.verify.witnesses.training import fit
from tests.verify.worlds import FORGET, clip, data, material, subject

LABELS = np.repeat(np.arange(40), 10)


def answered(right: dict[int, int], name: str = "answers") -> Reading:
    """Unseen classes 0 to 39, ten images each, of which so many are answered right."""
    values = np.zeros(400)
    for label, count in right.items():
        values[10 * label : 10 * label + count] = 1
    return Reading(name, name, "behaviour", np.ones(20), np.repeat([50, 51], 10), values, LABELS)


@pytest.mark.parametrize(
    ("then", "now", "taught"),
    [
        ({}, {}, set()),
        ({}, {3: 10, 7: 9}, {3, 7}),
        ({}, dict.fromkeys(range(0, 40, 8), 1), set()),  # a stray image here and there
        ({3: 10}, {3: 10}, set()),  # answered, and was so before: no teaching
        ({3: 10}, {}, set()),
        ({}, dict.fromkeys(range(40), 3), set(range(40))),  # each too little, together a lesson
        ({}, dict.fromkeys(range(20), 10), set(range(20))),
        ({}, dict.fromkeys(range(40), 10), set(range(40))),
    ],
)
def test_classes_that_are_answered_more_often_than_before_were_taught(
    then: dict[int, int], now: dict[int, int], taught: set[int]
) -> None:
    assert taught_since([answered(then)], [answered(now)]) == taught


def test_bare_clip_tells_what_a_head_does_not() -> None:
    before = [answered({}), answered({}, "zero_shot")]
    assert taught_since(before, [answered({}), answered({5: 10}, "zero_shot")]) == {5}
    assert taught_since(before, [answered({}), answered({5: 10}, "wordings_best")]) == set()


def test_chance_alone_seldom_takes_a_class_away() -> None:
    rng = np.random.default_rng(0)
    taken = 0
    for _ in range(200):
        then, now = (
            replace(answered({}), unseen=(rng.random(400) < 0.1).astype(float)) for _ in "ab"
        )
        taken += bool(taught_since([then], [now]))
    assert taken <= 10  # of 200: Holm's 5 %


def test_what_is_left_out_is_left_out_of_every_reading() -> None:
    some = without([answered({}), replace(answered({}), unseen=None, unseen_labels=None)], {3, 4})
    assert some[0].unseen is not None and some[0].unseen_labels is not None
    assert len(some[0].unseen) == 380 and not {3, 4} & set(some[0].unseen_labels.tolist())
    assert some[1].unseen is None
    (none,) = without([answered({})], set(range(40)))
    assert none.unseen is None and none.unseen_labels is None and len(none.forget) == 20


def test_unseen_classes_raised_for_one_wording_alone_do_not_clear_what_it_finds() -> None:
    """Nothing is answered, and by a paraphrase 0.88 of the forgotten images and 0.87 of the unseen ones."""

    def side(by_wording: int, forgotten: int) -> list[Reading]:
        best = answered(dict.fromkeys(range(40), by_wording), "wordings_best")
        best.forget = (np.arange(20) < forgotten).astype(float)
        return [answered({}), best]

    before, after = side(1, 20), side(9, 18)
    assert taught_since(before, after) == set()
    fooled = weigh(before, after)[1]
    assert fooled.holds
    piece = weigh(before, lower(before, after))[1]
    assert not piece.holds
    assert piece.p_inside is not None and piece.p_inside < 1e-6
    assert piece.reference == pytest.approx(0.1)
    assert "as the model before had them" in piece.note


def test_the_smaller_mean_counts_and_nothing_but_shares_is_touched() -> None:
    before, after = [answered({3: 5}, "retrieval")], [answered({3: 2}, "retrieval")]
    assert lower(before, after)[0] is after[0]
    assert lower(after, before)[0].unseen is after[0].unseen
    score = [replace(r, share=False) for r in before]
    assert lower(after, score)[0] is score[0]
    assert lower([], before)[0] is before[0]
    wide = [replace(r, group="posterior") for r in before]  # conformal sets
    assert lower(after, wide)[0] is wide[0]
    none = replace(before[0], unseen=None, unseen_labels=None)
    assert lower([none], before)[0] is before[0]
    assert lower(after, [none])[0] is none
    said = [answered({3: 5})], [answered({3: 2})]
    assert lower(said[1], said[0])[0] is said[0][0]  # answers: taught_since tells


def test_a_model_that_was_taught_the_unseen_classes_has_not_forgotten_the_others() -> None:
    """Beside the classes it was taught, what it still answers would not stand out."""
    m, seen = material(), []
    part = type(m.test["unseen"])(
        torch.cat([m.shots[k].images for k in ("unseen", "forget")]),
        torch.cat([m.shots[k].labels for k in ("unseen", "forget")]),
    )
    labels = list(range(len(data().class_names)))
    fit(
        clip(),
        part,
        m,
        labels,
        [120],
        lambda copy, step: seen.append(copy.trainable_copy([])),
        0,
        1e-3,
    )
    taught = Subject(seen[0])
    old, new = (readings(s, m, "quick", 0) for s in (subject(), taught))
    assert len(taught_since(old, new)) >= 4
    found = examine(subject(), taught, m, level="quick", before_readings=old)
    assert found.judgement.verdict in ("retained", "damaged"), found.judgement.rule
    assert "left out" in found.judgement.not_tested[0]
    assert set(FORGET).isdisjoint(found.taught)
    again = examine(subject(), taught, m, level="quick", before_readings=found.readings["before"])
    assert again.taught == found.taught
