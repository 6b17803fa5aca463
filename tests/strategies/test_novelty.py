"""Detection of novel data, against hand-made cases and independent statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from clapforget.posterior import HEADS, VariationalHead
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget, TrainSettings
from clapforget.strategies.novelty import (
    SCORES,
    average_novelty,
    detection,
    familiarity,
    novelty,
)


def found(learned: list[float], novel: list[float]) -> tuple[float, float, float]:
    return tuple(detection(torch.tensor(learned), torch.tensor(novel)))


@pytest.mark.parametrize(
    ("learned", "novel", "wanted"),
    [
        ([2, 3, 4], [0, 1], (1, 1, 0)),
        ([0, 1], [2, 3, 4], (0, (1 / 4 + 2 / 5) / 2, 1)),
        # all equal: nothing is told apart, precision is the share of the learned
        ([1, 1, 1], [1, 1], (0.5, 3 / 5, 1)),
        # pairs: 3>2, 3>1, 1<2, 1=1 half; precision 1 at the first, 2/4 at the tie
        ([3, 1], [2, 1], (2.5 / 4, (1 + 2 / 4) / 2, 1)),
        # twenty learned, the lowest below every novel one: 95 % of the learned come before it
        ([*range(10, 29), 0], [5, 6], (19 / 20, (19 + 20 / 22) / 20, 0)),
        # two of twenty below the upper novel one: now it must be let in
        ([*range(10, 28), 0, 0], [5, -1], (1 - 2 / 40, (18 + 2 * 20 / 21) / 20, 0.5)),
    ],
)
def test_by_hand(learned: list[float], novel: list[float], wanted: tuple[float, ...]) -> None:
    assert found(learned, novel) == pytest.approx(wanted)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), levels=st.integers(1, 400), shift=st.floats(-2, 2))
def test_area_is_the_mann_whitney_statistic_with_ties(seed: int, levels: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    learned = np.round(levels * (rng.standard_normal(50) + shift)) * 1e3
    novel = np.round(levels * rng.standard_normal(80)) * 1e3
    auroc, aupr, fpr95 = found(learned.tolist(), novel.tolist())
    statistic = scipy.stats.mannwhitneyu(learned, novel).statistic
    assert auroc == pytest.approx(statistic / (50 * 80))
    # torchmetrics wants scores in [0, 1]: their ranks are, and rank the same
    ranks = torch.from_numpy(scipy.stats.rankdata([*learned, *novel], "dense"))
    target = (torch.arange(130) < 50).long()
    assert auroc == pytest.approx(float(binary_auroc(ranks / 200, target)))
    assert aupr == pytest.approx(float(binary_average_precision(ranks / 200, target)), abs=1e-6)
    threshold = max(t for t in learned if (learned >= t).mean() >= 0.95)
    assert fpr95 == pytest.approx((novel >= threshold).mean())


def test_scores_that_differ_in_single_precision_only_are_not_made_equal() -> None:
    high = torch.tensor([3000.0, 3001.0])  # a sigmoid would call all of these 1
    assert detection(high + 1, high - 1).auroc > detection(high, high).auroc


@pytest.fixture(scope="module")
def learned(data: ImageData, make_strategy: Callable[..., ClapForget]) -> ClapForget:
    strategy = make_strategy(forgetter="nothing", certify=False, training=TrainSettings(epochs=3))
    strategy.train(stream(data, "L0-5").train_stream)
    return strategy


def test_every_score_is_higher_for_what_was_learned(learned: ClapForget, data: ImageData) -> None:
    result = novelty(learned, data, range(6), range(10, 40))
    assert result is not None
    assert (result["learned"], result["novel"]) == (6 * 25, 30 * 25)
    assert tuple(result["scores"]) == SCORES
    for name, values in result["scores"].items():
        assert values["auroc"] > 0.6, name
        assert values["aupr"] > 1 / 6, name


def test_scores_are_what_the_posterior_says(learned: ClapForget, data: ImageData) -> None:
    head, v = learned.model.head, learned.cache(data.test, torch.arange(60))
    scores, out = familiarity(head, v), head.predict(v)
    assert isinstance(head, VariationalHead)
    torch.testing.assert_close(scores["max_softmax"], out.probs.amax(1))
    for name, doubt in (("entropy", out.entropy), ("softmax_variance", out.variance),
                        ("mutual_information", out.mutual_information)):  # fmt: skip
        torch.testing.assert_close(scores[name], -doubt)
    # draws of the class weights themselves, whose logits' variance is what was given in closed form
    with torch.no_grad():
        w = head.eval().weights()
    eps = torch.randn(4000, *w.sigma.shape, generator=torch.Generator().manual_seed(0))
    logits = head.scale * torch.einsum("bd,mcd->mbc", v[:8], w.x + w.mu + w.sigma * eps)
    drawn = logits.var(0).sum(1)
    torch.testing.assert_close(-scores["logit_variance"][:8], drawn, rtol=0.05, atol=0)
    torch.testing.assert_close(scores["energy"][:8], logits.mean(0).logsumexp(1), rtol=0.02, atol=0)


def test_batches_that_guide_themselves_are_those_of_the_prediction(
    make_strategy: Callable[..., ClapForget], data: ImageData, learned: ClapForget
) -> None:
    head = learned.model.head
    v = learned.cache(data.test, torch.arange(40))
    shared = familiarity(head, v)["logit_variance"]
    torch.testing.assert_close(familiarity(head, v[:7])["logit_variance"], shared[:7])
    before = head.settings
    try:
        head.settings = type(before)(context="batch")
        alone = familiarity(head, v[:7])["logit_variance"]
        assert (alone - familiarity(head, v)["logit_variance"][:7]).abs().max() > 1e-3
    finally:
        head.settings = before


def test_variance_of_logits_is_told_only_where_the_head_says_it(
    learned: ClapForget, data: ImageData
) -> None:
    v = learned.cache(data.test, torch.arange(9))
    assert set(familiarity(learned.model.head, v)) == {*SCORES}
    head = HEADS.get("zero-shot")(learned.model.head.width, 10.0)
    head.grow([0, 1], learned.model.head.templates[:2])
    assert set(familiarity(head, v)) == {*SCORES} - {"logit_variance"}


def test_what_was_met_before_is_neither_learned_nor_new(
    learned: ClapForget, data: ImageData
) -> None:
    kept = [0, 1, 2, 3, 4]  # 5 was forgotten and is taught again later, beside 6
    result = novelty(learned, data, kept, [5, 6])
    assert result == novelty(learned, data, kept, [6])
    assert result is not None and result["novel"] == 25
    assert novelty(learned, data, kept, [5]) is None
    assert novelty(learned, data, kept, []) is None
    assert novelty(learned, data, [], [6]) is None


def test_nothing_is_encoded_twice(learned: ClapForget, data: ImageData) -> None:
    novelty(learned, data, range(6), [6, 7])
    encoded = learned.cache.encoded
    novelty(learned, data, range(6), [6, 7])
    assert learned.cache.encoded == encoded


def test_the_stream_is_averaged_by_event() -> None:
    def event(value: float) -> dict:
        return {"scores": {"energy": {"auroc": value, "aupr": value / 2, "fpr95": 1 - value}}}

    wanted = {"auroc": 0.7, "aupr": 0.35, "fpr95": 0.3}
    result = average_novelty([event(0.6), None, event(0.8)])
    assert result is not None
    assert result["events"] == 2
    assert result["scores"]["energy"] == pytest.approx(wanted)
    assert average_novelty([None]) is None
    other = {"scores": {"entropy": event(0.1)["scores"]["energy"], **event(0.2)["scores"]}}
    result = average_novelty([other, event(0.4)])  # what only some moments have has no mean
    assert result is not None and list(result["scores"]) == ["energy"]
