"""Cosines, ranks in columns, aliases and exchanged names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify import Subject
from clapforget.verify.weigh import weigh
from clapforget.verify.witnesses.association import precision_by_column
from tests.verify.worlds import FORGET, RETAIN, call, clip, data, head_of, material, subject


def exchanged() -> Clip:
    names = [data().class_names[c] for c in FORGET]
    other = clip().trainable_copy([])
    rows = [[t for t in other.tokenize([n])[0].tolist() if 0 < t < 49406] for n in names]
    table = other.model.token_embedding.weight
    with torch.no_grad():
        old = table.clone()
        for mine, theirs in zip(rows, rows[::-1]):
            for i, row in enumerate(mine):
                table[row] = old[theirs[min(i, len(theirs) - 1)]]
    return other


def test_the_level_of_other_names_stands_beside_the_cosine_with_the_own() -> None:
    """By hand: mean cosine with the kept names that are not the image's own."""
    m, known = material(), call("association", "unmatched_cosine")
    cosine = subject().features(m.test["retain"]) @ subject().names(m.names, m.templates).T
    row, own = 7, int(m.test["retain"].labels[7])
    assert known.retain is not None
    others = [c for c in m.retain if c != own]
    assert known.retain[row] == pytest.approx(float(cosine[row, others].mean()), abs=1e-6)
    over, matched = (
        call("association", name) for name in ("matched_over_unmatched", "matched_cosine")
    )
    assert over.forget == pytest.approx(matched.forget - known.forget, abs=1e-6)
    assert over.forget.mean() > 0.4 and "below" not in over.note
    assert over.role == known.role == "shown"
    (piece,) = weigh([over], [over])
    low, high = piece.interval
    assert low < piece.value < high and piece.p_beyond is not None


def test_a_name_pushed_below_all_others_gives_the_request_away() -> None:
    who, m = Subject(clip()), material()
    text = subject().names(m.names, m.templates).clone()
    text[list(FORGET)] *= -1
    key = (tuple(m.names), tuple(m.templates))
    who._wordings[key] = text[:, None]
    pushed = call("association", "matched_over_unmatched", who)
    assert pushed.forget.mean() < 0 and "below it" in pushed.note
    known = call("association", "matched_over_unmatched")
    assert weigh([known], [pushed])[0].scar and not weigh([known], [known])[0].scar


def test_exchanged_names_are_found_under_their_alias() -> None:
    who = Subject(exchanged())
    assert call("answers", "answers", who).forget.mean() < 0.1
    assert call("association", "alias", who).forget.mean() > 0.9
    for whoever in (who, subject()):  # as much under the alias as under the own name
        answered = call("association", "alias_answered", whoever)
        assert answered.forget.mean() > 0.9
        assert answered.unseen is not None
        assert answered.unseen.mean() < 0.6
    swapped, straight = call("association", "exchange", who), call("association", "exchange")
    assert swapped.forget.mean() > 0.9
    assert straight.forget.mean() < 0.1
    assert swapped.unseen is not None
    assert swapped.unseen.mean() < 0.3


def test_ranks_in_a_column_do_not_hear_constants_or_temperatures() -> None:
    rng = generator_for(0, 1)
    scores, negatives = torch.randn(9, 4, generator=rng), torch.randn(20, 4, generator=rng)
    labels = torch.tensor([0] * 4 + [1] * 5)
    shift, scale = torch.tensor([5.0, -60.0, 0.0, 1.0]), torch.tensor([1.0, 0.01, 30.0, 2.0])
    assert torch.equal(
        precision_by_column(scores, negatives, labels),
        precision_by_column(scores * scale + shift, negatives * scale + shift, labels),
    )


def test_precision_by_column_is_r_precision() -> None:
    rng = generator_for(0, 2)
    scores, negatives = torch.randn(9, 3, generator=rng), torch.randn(20, 3, generator=rng)
    labels = torch.tensor([0] * 4 + [1] * 5)
    got = precision_by_column(scores, negatives, labels)
    everything = torch.cat([scores, negatives])
    for label, size in ((0, 4), (1, 5)):
        for column in range(3):
            top = set(everything[:, column].topk(size).indices.tolist())
            expected = [float(i in top) for i in range(9) if int(labels[i]) == label]
            assert got[labels == label, column].tolist() == expected


@pytest.mark.parametrize("values", [9, 1000])
def test_ranks_by_sorting_are_those_by_comparing_every_pair_ties_and_masks_among_them(values: int) -> None:
    rng = generator_for(0, 3)
    drawn = torch.randint(values, (60, 4), generator=rng).float()
    drawn[torch.rand(drawn.shape, generator=rng) < 0.1] = -torch.inf
    scores, negatives, labels = drawn[:25], drawn[25:], torch.randint(3, (25,), generator=rng)
    expected = torch.zeros_like(scores)
    for i, column in torch.cartesian_prod(torch.arange(25), torch.arange(4)).tolist():
        own, x = labels == labels[i], scores[i, column]
        others = torch.cat([negatives[:, column], scores[~own, column]])
        above = (others >= x).sum() + (scores[own, column] > x).sum()
        expected[i, column] = float(above < own.sum())
    assert 0 < expected.mean() < 1
    assert torch.equal(precision_by_column(scores, negatives, labels), expected)


def test_a_constant_column_finds_nothing() -> None:
    """A masked column ties everything: ties must not count as found."""
    hits = precision_by_column(torch.full((4, 1), -9.0), torch.full((8, 1), -9.0), torch.zeros(4))
    assert hits.sum() == 0


def test_a_head_without_a_forgotten_column_finds_none_and_is_a_number() -> None:
    for columns in (RETAIN, (FORGET[0], *RETAIN)):
        for name in ("answer_rank", "alias_by_head"):
            seen = call("association", name, head_of(columns))
            assert np.isfinite(seen.forget).all(), (columns, name)
            assert seen.unseen is not None and np.isfinite(seen.unseen).all()
            assert (seen.forget[seen.labels == FORGET[1]] <= 0.5).all()
    assert not call("association", "answer_rank", head_of(RETAIN)).forget.any()


def test_another_column_that_answers_for_the_class_is_found() -> None:
    columns = [*FORGET, *RETAIN]
    straight = call("association", "alias_by_head", head_of(columns))
    swapped = call(
        "association",
        "alias_by_head",
        replace_columns(head_of(columns), [FORGET[1], FORGET[0], *RETAIN]),
    )
    assert straight.forget.mean() > 0.9
    assert swapped.forget.mean() == straight.forget.mean()
    gone = call("association", "alias_by_head", head_of(RETAIN))
    assert not gone.forget.any()


def test_a_column_whose_sign_is_turned_still_tells_the_images() -> None:
    columns = [*FORGET, *RETAIN]
    straight = head_of(columns)

    def turned(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        assert straight.answer is not None
        logits = straight.answer(v, images)
        logits[:, : len(FORGET)] *= -1
        return logits

    name, hidden = "answer_rank_turned", Subject(clip(), turned, columns)
    assert not call("answers", "answers", hidden).forget.any()
    assert call("association", "answer_rank", hidden).forget.mean() < 0.1
    assert call("association", name, hidden).forget.mean() > 0.9
    assert call("association", name, straight).forget.mean() < 0.1
    shut = Subject(clip(), lambda v, x: turned(v, x).index_fill(1, torch.tensor([0, 1]), -torch.inf), columns)
    assert not call("association", name, shut).forget.any(), "a shut column tells nothing on either side"


def replace_columns(who: Subject, columns: Sequence[int]) -> Subject:
    return Subject(who.clip, who.answer, list(columns), who.class_weights)
