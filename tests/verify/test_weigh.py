"""Equivalence against a reference: two one-sided tests, what counts as a lead, who accuses."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from clapforget.verify import Evidence, Reading
from clapforget.verify.weigh import tost, weigh
from tests.verify.worlds import reading


def one(before: Reading, after: Reading, twin: Reading | None = None) -> Evidence:
    return weigh([before], [after], [] if twin is None else [twin])[0]


@pytest.mark.parametrize("difference", [-0.3, 0.0, 0.08, 0.2])
def test_two_one_sided_tests_are_those_of_two_z_tests(difference: float) -> None:
    above, below = tost(difference, 0.1, 0.05)
    assert above == pytest.approx(stats.norm.cdf((difference - 0.1) / 0.05))
    assert below == pytest.approx(1 - stats.norm.cdf((difference + 0.1) / 0.05))
    assert (max(above, below) < 0.05) == (abs(difference) + 1.645 * 0.05 < 0.1)


def test_a_large_error_shows_neither_difference_nor_equivalence() -> None:
    above, below = tost(0.0, 0.1, 1.0)
    assert min(above, below) > 0.4


def test_as_the_reference_holds_and_as_before_does_not() -> None:
    before = reading(1.0, 0.0)
    gone, there = one(before, reading(0.0, 0.0)), one(before, reading(1.0, 0.0))
    assert gone.holds
    assert gone.residue == pytest.approx(0)
    assert gone.p_inside is not None
    assert gone.p_inside > 0.95
    assert not there.holds
    assert there.residue == pytest.approx(1)
    assert there.p_inside is not None
    assert there.p_inside < 1e-6


def test_few_images_leave_it_open_and_say_how_many_would_do() -> None:
    open_ = one(reading(1.0, 0.0), reading(0.125, 0.0, n=8))
    assert not open_.holds
    assert open_.p_inside is not None
    assert open_.p_inside > 0.05
    assert open_.images_needed is not None
    enough = one(reading(1.0, 0.0), reading(0.125, 0.0, n=int(1.1 * open_.images_needed)))
    assert enough.holds


def test_just_above_the_margin_it_says_how_many_would_accuse() -> None:
    """Neither cleared nor accused: more images of the same shares would accuse, corrected for all readings."""
    before, others = reading(1.0, 0.0), [replace(reading(0.0, 0.0), name=f"{i}") for i in range(19)]

    def of(n: int) -> Evidence:
        return weigh([before, *others], [reading(0.3, 0.0, n=n), *others])[0]

    open_ = of(60)
    assert not open_.holds and open_.p_inside is not None and open_.p_inside > 0.05
    assert open_.images_needed is not None and open_.images_needed > 60
    for factor, accused in ((1.1, True), (0.9, False)):
        piece = of(10 * round(factor * open_.images_needed / 10))
        assert piece.p_inside is not None and (piece.p_inside < 0.05 / 20) == accused


def test_images_put_too_far_away_for_their_number_say_how_many_would_do() -> None:
    """Of the images' place the far side is asked as well."""

    def of(n: int, group: str = "visual") -> Evidence:
        return one(reading(1.0, 0.5, group=group), reading(0.45, 0.5, n=n, group=group))

    open_ = of(20)
    assert open_.p_below is not None and open_.p_below > 0.05
    assert open_.images_needed is not None
    for factor, settled in ((1.1, True), (0.9, False)):
        piece = of(20 * round(factor * open_.images_needed / 20))
        assert piece.p_below is not None and (piece.p_below < 0.05) == settled
    wording = of(60, "attack")
    assert wording.holds and wording.images_needed is None  # of a wording it is not


def test_without_a_lead_before_nothing_is_judged() -> None:
    piece = one(reading(0.1, 0.1), reading(0.5, 0.1))
    assert piece.role == "shown"
    assert piece.holds is None
    assert "no witness" in piece.note


def test_a_lead_to_the_wrong_side_is_none() -> None:
    piece = one(
        replace(reading(1.0, 0.0), known_is="low"), replace(reading(1.0, 0.0), known_is="low")
    )
    assert piece.role == "shown"


def test_an_absolute_margin_needs_no_lead() -> None:
    piece = one(
        reading(0.0, 0.0, absolute=True, margin=0.1), reading(0.0, 0.0, absolute=True, margin=0.1)
    )
    assert piece.role == "both"
    assert piece.holds


def test_classes_that_differ_keep_an_unlucky_one_from_being_accused() -> None:
    """The same means: unseen classes alike, or half of them known by chance."""
    alike = reading(0.7, 0.4)
    apart = replace(alike, unseen=np.repeat(np.arange(10) % 5 < 2, 10).astype(float))
    before = reading(1.0, 0.0)
    accused, spared = (
        one(before, replace(alike, margin=0.1)),
        one(before, replace(apart, margin=0.1)),
    )
    assert accused.p_inside is not None
    assert spared.p_inside is not None
    assert accused.p_inside < 0.05 < spared.p_inside
    assert spared.p_above is not None
    assert spared.p_inside > 1 - spared.p_above + 0.02  # what clears has the smaller error


def test_no_image_right_out_of_three_clears_nothing() -> None:
    piece = one(reading(1.0, 0.0), reading(0.0, 0.0, n=3))
    assert piece.value == 0
    assert piece.holds is False


def test_beyond_the_reference_is_told() -> None:
    piece = one(reading(1.0, 0.5, role="accuses"), reading(0.0, 0.5, role="accuses"))
    assert piece.scar
    assert piece.p_beyond is not None
    assert piece.p_beyond < 1e-6


def test_a_twin_takes_the_place_of_unseen_classes() -> None:
    before, after = reading(1.0, 0.0, n=600), reading(0.6, 0.0, n=600)
    alone, beside = one(before, after), one(before, after, reading(0.6, 0.0, n=600))
    assert alone.reference_name == "unseen classes"
    assert not alone.holds
    assert beside.reference_name == "the twin"
    assert beside.reference == pytest.approx(0.6)
    assert beside.holds


def test_a_probe_is_judged_only_beside_a_twin() -> None:
    probe = reading(0.9, 0.2, role="twin")
    assert one(reading(1.0, 0.2, role="twin"), probe).role == "shown"
    assert one(reading(1.0, 0.2, role="twin"), probe, reading(0.4, 0.2)).role == "both"


def test_a_score_is_scaled_by_the_model_after() -> None:
    """All scores of the model after ten times as wide: the residue stays."""
    rng = np.random.default_rng(0)

    def scores(forget: float, width: float) -> Reading:
        noise = rng.normal(0, 0.02, 60)
        r = reading(0, 0, share=False, margin=0.5)
        return replace(r, forget=width * (forget + noise), unseen=width * rng.normal(0, 0.02, 100),
                       retain=width * (1 + noise))  # fmt: skip

    narrow, wide = (one(scores(1, 1), scores(0.3, width)) for width in (1.0, 10.0))
    assert narrow.residue == pytest.approx(0.3, abs=0.03)
    assert wide.residue == pytest.approx(0.3, abs=0.03)


def test_a_score_that_hardly_saw_the_class_before_has_little_to_lose() -> None:
    """Before, the forgotten classes stood apart from unseen ones by a part of what retained ones do: only
    that part can be gone, and with none of it the score is no witness."""
    rng = np.random.default_rng(0)

    def scores(forget: float) -> Reading:
        r = reading(0, 0, share=False, margin=0.6)
        return replace(r, forget=forget + rng.normal(0, 0.02, 60), unseen=rng.normal(0, 0.02, 100),
                       retain=1 + rng.normal(0, 0.02, 60))  # fmt: skip

    whole, part, none = (one(scores(before), scores(0.35)) for before in (1.3, 0.4, 0.0))
    assert whole.residue == pytest.approx(0.35, abs=0.02) and whole.holds
    assert part.residue == pytest.approx(0.35 / 0.4, abs=0.04) and not part.holds
    assert none.role == "shown" and none.residue is None


def test_a_witness_that_all_must_pass_is_not_silenced_by_the_model_after() -> None:
    """Kept images drawn to where unseen ones lie leave no scale after; that of before stays."""
    rng = np.random.default_rng(0)

    def scores(forget: float, retain: float, role: str) -> Reading:
        r = reading(0, 0, share=False, margin=0.6, role=role)
        return replace(r, forget=forget + rng.normal(0, 0.02, 60), unseen=rng.normal(0, 0.02, 100),
                       retain=retain + rng.normal(0, 0.02, 60))  # fmt: skip

    there, gone = (one(scores(1.0, 1.0, "both"), scores(x, 0.0, "both")) for x in (0.9, 0.0))
    assert there.residue == pytest.approx(0.9, abs=0.03) and not there.holds
    assert gone.residue == pytest.approx(0.0, abs=0.03) and gone.holds
    never = one(scores(0.0, 1.0, "both"), scores(0.0, 0.0, "both"))
    accuser = one(scores(1.0, 1.0, "accuses"), scores(0.9, 0.0, "accuses"))
    assert never.role == accuser.role == "shown", "neither one that never saw the class nor one that only accuses"


def test_who_is_as_the_reference_is_accused_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(1)
    accused = cleared = 0
    for _ in range(300):
        p = rng.beta(2, 8, 12)  # classes differ
        images = rng.random((12, 30)) < p[:, None]
        r = Reading("thing", "a thing", "clip", images[:2].ravel().astype(float), np.repeat([0, 1], 30),
                    images[2:].ravel().astype(float), np.repeat(np.arange(10), 30), margin=0.1)  # fmt: skip
        piece = one(reading(1.0, 0.2), r)
        assert piece.p_inside is not None
        accused += piece.p_inside < 0.05
        cleared += bool(piece.holds)
    assert accused / 300 <= 0.06
    assert cleared > 0


def test_the_nearer_to_before_the_less_it_holds() -> None:
    values = [one(reading(1.0, 0.0), reading(x, 0.0)).p_above for x in (0.0, 0.1, 0.2, 0.3, 0.5)]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(values))
    assert all(v is not None and math.isfinite(v) for v in values)


def by_class(shares: list[float], n: int = 30, **more: object) -> Reading:
    """So much of n images of each forgotten class right; ten unseen classes at 0 to 10 %."""
    mine = np.concatenate([(np.arange(n) < round(s * n)).astype(float) for s in shares])
    theirs = np.concatenate([(np.arange(10) < k % 2).astype(float) for k in range(10)])
    return Reading("thing", "a thing", "clip", mine, np.repeat(np.arange(len(shares)) + 50, n), theirs,
                   np.repeat(np.arange(10), 10), **more)  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("classes", [3, 10, 30])
def test_one_class_that_is_left_is_accused_however_many_are_gone(classes: int) -> None:
    before = by_class([1.0] * classes)
    gone = one(before, by_class([0.0] * classes))
    left = one(before, by_class([0.0] * (classes - 1) + [1.0]))
    assert gone.p_inside is not None
    assert gone.p_inside > 0.5
    assert left.p_inside is not None
    assert left.p_inside < 1e-3
    assert f"class {49 + classes} alone: 1.000" in left.note


def test_where_all_classes_are_left_the_mean_accuses() -> None:
    piece = one(by_class([1.0] * 10), by_class([0.5] * 10))
    assert piece.p_inside is not None
    assert piece.p_inside < 1e-6
    assert "alone" not in piece.note


def test_a_class_that_did_not_stand_out_before_has_nothing_to_lose() -> None:
    """Two of three forgotten classes stood out; what becomes of the third one's images is chance."""
    before = by_class([1.0, 1.0, 0.0])
    gone, chance = one(before, by_class([0.0, 0.0, 0.0])), one(before, by_class([0.0, 0.0, 1.0]))
    for name in ("value", "before", "p_inside", "p_above", "residue", "n"):
        assert getattr(chance, name) == getattr(gone, name), name
    assert chance.before == 1.0
    assert "of the 2 of 3 classes" in chance.note
    left = one(before, by_class([0.0, 1.0, 0.0]))
    assert left.p_inside is not None and left.p_inside < 1e-3
    assert "classes" not in one(by_class([1.0] * 3), by_class([0.0] * 3)).note


def test_of_a_twin_the_same_classes_are_read() -> None:
    before, twin = by_class([1.0, 1.0, 0.0]), by_class([0.0, 0.1, 0.8])
    piece = one(before, by_class([0.0, 0.1, 0.0]), twin)
    assert piece.reference == pytest.approx(0.05)
    assert piece.value == pytest.approx(0.05)


def test_one_class_that_stood_out_by_chance_makes_no_witness() -> None:
    before = by_class([0.2, 0.0])
    piece = one(before, by_class([0.2, 0.0]))
    assert piece.role == "shown"
