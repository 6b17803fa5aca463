"""Intervals, against formulas, other libraries and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from clapforget.verify import statistics


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 36), (3, 40), (20, 40), (40, 40), (977, 1000)])
def test_a_proportion_has_wilsons_interval(k: int, n: int) -> None:
    value, (low, high) = statistics.proportion(np.arange(n) < k)
    z = stats.norm.ppf(0.975)
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert value == pytest.approx(p)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-9)


@pytest.mark.parametrize(("n", "below"), [(34, False), (35, True), (40, True)])
def test_how_many_images_without_error_lie_below_ten_percent(n: int, below: bool) -> None:
    _, (_, high) = statistics.proportion(np.zeros(n, dtype=bool))
    assert (high <= 0.10) == below


def test_a_mean_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 30)
    value, interval = statistics.mean(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert value == pytest.approx(values.mean())
    assert interval == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_share_stays_within_zero_and_one() -> None:
    few, many = np.array([0.0, 0.0, 0.1]), np.array([1.0, 1.0, 0.9])
    assert statistics.mean(few)[1][0] < 0 < statistics.mean(few, share=True)[1][1]
    assert statistics.mean(few, share=True)[1][0] == 0
    assert statistics.mean(many)[1][1] > 1 == statistics.mean(many, share=True)[1][1]


def test_a_single_value_is_its_own_interval() -> None:
    assert statistics.mean(np.array([2.5])) == (2.5, (2.5, 2.5))


def test_a_paired_drop_has_the_interval_of_the_drops_that_are_not_rejected() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(2000) < 0.9, rng.random(2000) < 0.7
    value, interval = statistics.paired_drop(before, after)
    assert value == pytest.approx(before.mean() - after.mean())
    assert value > 0  # a loss is a positive drop
    for end, z in zip(interval, (1.96, -1.96)):
        assert statistics.paired_score(before, after, end) == pytest.approx(z, abs=1e-3)
    usual = stats.ttest_rel(before.astype(float), after.astype(float)).confidence_interval(0.95)
    assert interval == pytest.approx((usual.low, usual.high), abs=2e-3)
    back, turned = statistics.paired_drop(after, before)
    assert (back, *turned) == pytest.approx((-value, -interval[1], -interval[0]))


def test_the_score_of_no_drop_is_mcnemars() -> None:
    before, after = (
        np.array([1] * 9 + [0] * 4 + [1] * 20, bool),
        np.array([0] * 9 + [1] * 4 + [1] * 20, bool),
    )
    assert statistics.paired_score(before, after, 0.0) == pytest.approx((9 - 4) / np.sqrt(9 + 4))


def test_pairs_that_did_not_change_have_the_interval_of_their_number() -> None:
    """The score interval of a share of 0 of n: z² / (n + z²)."""
    for n in (3, 30, 300):
        right = np.arange(n) % 2 == 0
        drop, (low, high) = statistics.paired_drop(right, right)
        assert drop == 0
        assert high == pytest.approx(1.96**2 / (n + 1.96**2), rel=1e-3)
        assert low == pytest.approx(-high)


def test_pairs_that_all_changed_reach_the_end() -> None:
    right = np.ones(5, bool)
    assert statistics.paired_drop(right, ~right)[1][1] == 1
    assert statistics.paired_drop(~right, right)[1][0] == -1


@pytest.mark.parametrize("n", [60, 120, 600])
@pytest.mark.parametrize("gained", [0.0, 0.05])
def test_a_loss_at_the_margin_is_seldom_shown_to_be_smaller(n: int, gained: float) -> None:
    rng, shown = np.random.default_rng(0), 0
    for _ in range(1000):
        u = rng.random(n)
        before, after = u >= gained, (u < gained) | (u >= 2 * gained + 0.05)
        shown += statistics.paired_score(before, after, 0.05) < -1.645
    assert shown / 1000 < 0.075  # 5 %, of whole images


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.7])
def test_auroc_is_that_of_scikit_learn(shift: float, ties: bool) -> None:
    rng = np.random.default_rng(2)
    positive, negative = rng.normal(shift, 1, 120), rng.normal(0, 1, 150)
    if ties:
        positive, negative = positive.round(), negative.round()
    value, (low, high) = statistics.auroc(positive, negative, np.random.default_rng(3))
    labels = np.r_[np.ones(120), np.zeros(150)]
    assert value == pytest.approx(roc_auc_score(labels, np.r_[positive, negative]))
    assert low <= value <= high


def test_auroc_is_one_where_all_positives_lie_above_and_zero_where_below() -> None:
    rng = np.random.default_rng(0)
    high, low = np.arange(10, 20.0), np.arange(5.0)
    assert statistics.auroc(high, low, rng) == (1.0, (1.0, 1.0))
    assert statistics.auroc(low, high, rng) == (0.0, (0.0, 0.0))


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = float(stats.norm.cdf(1 / math.sqrt(2)))  # P(N(1,1) > N(0,1))
    covered, rounds = 0, 200
    for round_ in range(rounds):
        rng = np.random.default_rng([4, round_])
        _, (low, high) = statistics.auroc(
            rng.normal(1, 1, 60), rng.normal(0, 1, 60), rng, resamples=300
        )
        covered += low <= truth <= high
    assert 0.88 <= covered / rounds <= 0.99


def test_the_bootstrap_depends_on_its_generator_alone() -> None:
    data = np.random.default_rng(5)
    positive, negative = data.normal(0.5, 1, 700), data.normal(0, 1, 700)
    runs = [statistics.auroc(positive, negative, np.random.default_rng(s)) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_many_samples_are_thinned_without_moving_the_value_much() -> None:
    rng = np.random.default_rng(6)
    positive, negative = rng.normal(0.5, 1, 3000), rng.normal(0, 1, 3000)
    whole = roc_auc_score(np.r_[np.ones(3000), np.zeros(3000)], np.r_[positive, negative])
    value, (low, high) = statistics.auroc(positive, negative, rng)
    assert low <= whole <= high
    assert abs(value - whole) < 0.05


def test_holm_is_that_of_the_textbook() -> None:
    p = [0.01, 0.04, 0.03, 0.005]  # sorted against 0.0125, 0.0167, 0.025, 0.05: the third fails
    assert statistics.holm(p) == [True, False, False, True]
    assert statistics.holm([]) == []
    assert statistics.holm([0.05]) == [True]
    assert statistics.holm([0.2, 0.001]) == [False, True]


def test_holm_keeps_the_family_wise_error() -> None:
    rng = np.random.default_rng(7)
    wrong = sum(any(statistics.holm(list(rng.random(12)))) for _ in range(1000))
    assert wrong / 1000 < 0.07


def test_correlation_is_numpy_s_by_column_and_none_of_a_constant() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 50, 3))
    b[:, 1] = 2 - 3 * a[:, 1]
    found = statistics.correlation(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    theirs = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(found, theirs, atol=1e-10)
    constant = statistics.correlation(torch.ones(50, 1), torch.from_numpy(b[:, :1]))
    assert constant.item() == 0.0
