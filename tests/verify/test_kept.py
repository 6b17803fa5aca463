"""What was to be kept: retrieval from text to image beside the other direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from clapforget.verify import Reading, Subject
from clapforget.verify.kept import (
    LOSS,
    _loss,
    _together,
    by_most_wordings,
    found_by_name,
    kept_evidence,
)
from clapforget.verify.witnesses.association import association, precision_by_column
from clapforget.verify.witnesses.wordings import PARAPHRASES
from tests.verify.worlds import FORGET, material, scrambled, subject


def test_retrieval_by_name_is_r_precision_in_the_own_column() -> None:
    m = material()
    for name in ("retain", "unseen"):  # what is known, and what is not
        part = m.test[name]
        scores = subject().zero_shot(part, m.names, m.templates)
        nothing = scores.new_zeros(0, scores.shape[1])
        hits = precision_by_column(scores, nothing, part.labels)
        want = hits.gather(1, part.labels[:, None])[:, 0]
        assert torch.equal(found_by_name(subject(), part, m).to(want), want)
    assert 0 < want.mean() < 0.8


def test_names_that_all_say_the_same_find_nothing() -> None:
    constant = Subject(subject().clip)
    m = material()
    key = (tuple(m.names), tuple(m.templates))
    constant._wordings[key] = torch.zeros_like(subject().wordings(*key))
    assert not found_by_name(constant, m.test["retain"], m).any()


def test_both_directions_are_shown_of_what_was_kept() -> None:
    found = {p.name: p for p in kept_evidence(subject(), subject(), material())}
    piece = found["clip_retain_retrieval"]
    assert piece.role == "shown"
    assert piece.drop == 0
    assert found["clip_retain_accuracy"].role == "kept"


def test_a_name_finds_an_image_of_its_class_until_it_means_nothing() -> None:
    def read(who: Subject) -> Reading:
        return next(r for r in association(who, material(), 0) if r.name == "found_by_name")

    knows, lost = read(subject()), read(Subject(scrambled()))
    assert len(knows.forget) == len(FORGET) * len(material().templates)
    assert knows.forget.mean() > 0.8
    assert lost.forget.mean() < 0.4
    assert knows.unseen is not None
    assert knows.unseen.mean() < 0.4
    assert knows.role == "shown"


def test_a_kept_name_is_kept_in_other_wordings_too() -> None:
    """In the data's own wordings all is as before; in the others each name means the next one."""
    m, part = material(), material().test["retain"]
    assert by_most_wordings(subject(), part, m).float().mean() > 0.9
    moved, own = Subject(subject().clip), len(m.templates)
    key = (tuple(m.names), (*m.templates, *PARAPHRASES))
    text = subject().wordings(*key).clone()
    text[:, own:] = text[:, own:].roll(1, 0)
    moved._wordings[key] = text
    found = {p.name: p for p in kept_evidence(subject(), moved, m)}
    assert found["clip_retain_accuracy"].drop == 0
    piece = found["clip_retain_wordings"]
    assert piece.role == "kept" and piece.drop is not None and piece.drop > 0.8
    same = {p.name: p for p in kept_evidence(subject(), subject(), m)}["clip_retain_wordings"]
    assert same.drop == 0


def outcomes(lost: int, gained: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    place = torch.arange(n)
    return place >= gained, (place < gained) | (place >= gained + lost)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "shown", "damaged"),
    [
        (0, 0, 10, False, False),  # nothing lost, by ten images
        (3, 0, 10, False, False),
        (5, 0, 10, False, True),
        (4, 1, 10, False, False),  # 30 points lost, and no more is known
        (0, 0, 60, True, False),
        (6, 0, 600, True, False),
        (21, 0, 600, True, False),
        (26, 9, 600, True, False),  # more outcomes changed: less is known
        (30, 9, 600, False, False),
        (25, 0, 600, False, False),
        (50, 0, 600, False, True),
    ],
)
def test_a_loss_is_shown_to_be_small_or_large_or_neither(
    lost: int, gained: int, n: int, shown: bool, damaged: bool
) -> None:
    piece = _loss("retain_accuracy", "", *outcomes(lost, gained, n), "")
    assert piece.drop == pytest.approx((lost - gained) / n)
    assert piece.p_below is not None and piece.p_beyond is not None
    assert (piece.p_below < 0.05, piece.p_beyond < 0.05) == (shown, damaged)
    assert (piece.images_needed is None) == shown
    if (
        piece.images_needed is not None
    ):  # the same shares of as many images settle it, of fewer do not
        for factor, settled in ((1.1, True), (0.9, False)):
            times = factor * piece.images_needed / n
            score = (times**0.5) * stats.norm.ppf(piece.p_below)
            assert (abs(score) > stats.norm.ppf(0.95)) == settled
    assert piece.margin == LOSS


@pytest.mark.parametrize(
    ("lost", "holds"),
    [
        ([0] * 50, True),
        ([1] * 20 + [0] * 30, True),  # 3 % in all, spread
        ([6] * 5 + [0] * 45, False),  # 5 % in all, in five classes of fifty
        ([5] * 5 + [0] * 45, False),
        ([2] * 50, True),  # a sixth of every class
        ([3] * 2 + [0] * 48, True),  # a quarter of two classes: may be chance at 20 %
    ],
)
def test_a_loss_that_stands_in_few_classes_is_told_from_one_that_all_share(
    lost: list[int], holds: bool
) -> None:
    labels = torch.arange(50).repeat_interleave(12)
    then = torch.ones(600, dtype=torch.bool)
    place = torch.arange(12).repeat(50)
    now = place >= torch.tensor(lost)[labels]
    piece = _together("", "by whom", then, now, labels)
    assert piece.holds is holds, piece.note
    assert piece.drop == pytest.approx(sum(lost) / 600)
    gained = _together("", "by whom", now, then, labels)
    assert gained.holds  # what was gained is no loss


def test_at_a_fifth_of_every_class_few_classes_are_accused_as_seldom_as_stated() -> None:
    rng, labels = np.random.default_rng(0), torch.arange(30).repeat_interleave(12)
    then = torch.ones(360, dtype=torch.bool)
    accused = [
        not _together("", "", then, torch.from_numpy(rng.random(360) >= 0.2), labels).holds
        for _ in range(100)
    ]
    assert np.mean(accused) <= 0.1
