"""Names, directions, and the batch of classes."""

from __future__ import annotations

import pytest
import torch

from clapforget import UserError
from clapforget.posterior import Predictive
from clapforget.strategies import UncertaintyBuffer
from clapforget.strategies.selection import SELECTORS, Candidates, find_selector
from clapforget.strategies.selection.base import by_class
from tests.strategies.selection.conftest import MakeCandidates

NAMES = SELECTORS.names()
TWO_SIDED = [name for name in NAMES if SELECTORS.get(name).two_sided]


def test_the_literatures_scores_are_all_there() -> None:
    assert {
        "random", "herding", "entropy", "energy", "variance", "variance_of_entropy", "distance",
        "mutual_information", "coverage",
    } <= set(NAMES)  # fmt: skip
    assert {"random", "herding", "coverage"} <= set(NAMES) - set(TWO_SIDED)


@pytest.mark.parametrize("name", NAMES)
def test_every_score_is_a_number_a_sample(make_candidates: MakeCandidates, name: str) -> None:
    candidates = make_candidates()
    scores = find_selector(name)(candidates)
    assert scores.shape == candidates.labels.shape
    assert scores.isfinite().all()
    assert scores.unique().numel() > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_score_reads_no_more_of_the_posterior_than_it_says(
    make_candidates: MakeCandidates, name: str
) -> None:
    full, less, find = make_candidates(), make_candidates(), find_selector(name)
    assert full.predictive is not None
    if find.reads == "nothing":
        less.predictive = None
    elif find.reads == "probabilities":
        less.predictive = Predictive.of_point(full.predictive.probs)
    assert torch.equal(find(less), find(full))


@pytest.mark.parametrize("name", TWO_SIDED)
def test_low_is_the_opposite_order(make_candidates: MakeCandidates, name: str) -> None:
    candidates = make_candidates()
    assert torch.equal(find_selector(f"{name}:low")(candidates), -find_selector(name)(candidates))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_the_order_of_the_candidates_does_not_matter(
    make_candidates: MakeCandidates, name: str
) -> None:
    plain, order = torch.arange(44), torch.arange(43, -1, -1)
    scores = find_selector(name)(make_candidates(order=plain))
    again = find_selector(name)(make_candidates(order=order))
    torch.testing.assert_close(again, scores[order])


@pytest.mark.parametrize("name", ["random:low", "herding:low", "coverage:low", "coverage:high"])
def test_a_direction_that_means_nothing_is_refused(name: str) -> None:
    base = name.partition(":")[0]
    with pytest.raises(UserError, match=f"'{base}' has one direction only; write {base}"):
        UncertaintyBuffer(5, name)


@pytest.mark.parametrize("name", ["entropy:up", "entropy:", "energy:low:low"])
def test_an_unknown_direction_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"has no direction .* for the highest, .*:low"):
        UncertaintyBuffer(5, name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_what_a_score_lacks_is_named(name: str) -> None:
    bare = Candidates(torch.zeros(3).long(), None, torch.Generator())
    with pytest.raises(UserError, match=rf"'{name}' needs .*; use score='random'"):
        find_selector(name)(bare)


def test_classes_stand_side_by_side_in_their_own_order() -> None:
    rows, real = by_class(torch.tensor([7, 3, 7, 7, 3]))
    assert rows.tolist() == [[1, 4, 0], [0, 2, 3]]
    assert real.tolist() == [[True, True, False], [True, True, True]]
    rows, real = by_class(torch.zeros(0).long())
    assert rows.numel() == real.numel() == 0
