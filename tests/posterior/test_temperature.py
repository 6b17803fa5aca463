"""Temperature and pools against scipy's minimisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from clapforget.posterior.temperature import best_rates, best_temperature, pooled


def problem(seed: int, sharp: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, answers drawn from their softmax made sharper, weights."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(80, 6, generator=rng, dtype=torch.double)
    y = torch.multinomial((sharp * logits).softmax(1), 1, generator=rng)[:, 0]
    return logits, y, torch.rand(80, generator=rng, dtype=torch.double)


def loss(temperature: float, logits: Tensor, y: Tensor, weight: Tensor) -> float:
    return float((weight * F.cross_entropy(logits / temperature, y, reduction="none")).sum())


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.3, 1.0, 2.0]))
@settings(max_examples=25)
def test_it_minimises_the_weighted_log_loss(seed: int, sharp: float) -> None:
    logits, y, weight = problem(seed, sharp)
    found = best_temperature(logits, y, weight)
    beta = minimize_scalar(
        lambda b: loss(1 / b, logits, y, weight), bounds=(1e-3, 30), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert loss(found, logits, y, weight) <= beta.fun * (1 + 1e-12) + 1e-12
    if beta.x > 2e-3:
        assert found == pytest.approx(1 / beta.x, rel=1e-5)


def test_without_weights_all_count_alike() -> None:
    logits, y, _ = problem(1)
    assert best_temperature(logits, y) == best_temperature(logits, y, torch.ones(80))


def test_columns_that_take_no_part_are_as_if_cut_out() -> None:
    logits, y, weight = problem(2)
    wider = torch.cat([logits, torch.full((80, 2), -torch.inf)], 1)
    found = best_temperature(wider, y, weight)
    # the spread that brackets T counts masked entries as zeros: the minimum is the same
    assert found == pytest.approx(best_temperature(logits, y, weight), rel=1e-10)


def test_it_follows_the_unit_of_the_logits_and_not_their_level() -> None:
    logits, y, weight = problem(3)
    plain = best_temperature(logits, y, weight)
    level = torch.linspace(-50, 50, 80)[:, None]
    assert best_temperature(7 * logits + level, y, weight) == pytest.approx(7 * plain, rel=1e-9)


def test_at_its_bounds_it_stays_finite() -> None:
    logits, _, weight = problem(4)
    sharpest = best_temperature(logits, logits.argmax(1), weight)
    flattest = best_temperature(logits, logits.argmin(1), weight)
    assert 0 < sharpest < 0.1
    assert 100 < flattest < math.inf


def test_rows_that_are_all_right_do_not_make_certain_with_doubt() -> None:
    """Two classes a gap g apart, n rows all right, one row of doubt: the target of the winner is
    1 − ε/2, so ``sigmoid(g/T) = 1 − ε/2`` at the best T."""
    n, gap = 50, 4.0
    logits, y = torch.tensor([[gap, 0.0]]).repeat(n, 1), torch.zeros(n, dtype=torch.long)
    epsilon = 1 / (n + 1)
    found = best_temperature(logits, y, doubt=1.0)
    wanted = 1 - epsilon / 2
    assert gap / found == pytest.approx(math.log(wanted / (1 - wanted)), rel=1e-6)
    assert best_temperature(logits, y) < found / 10
    third = torch.cat([logits, torch.full((n, 1), -torch.inf)], 1)
    assert best_temperature(third, y, doubt=1.0) == pytest.approx(found), "it takes no part"


# ---- pools ---------------------------------------------------------------------------------
def pool_loss(
    rates: np.ndarray, logits: Tensor, y: Tensor, weight: Tensor, epsilon: float = 0.0
) -> float:
    scores = torch.einsum("k,knc->nc", torch.tensor(rates), logits)
    each = F.cross_entropy(scores, y, reduction="none", label_smoothing=epsilon)
    return float((weight * each).sum() / weight.sum())


def models(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three models: of the answers' own logits, of others that help, and of noise."""
    logits, y, weight = problem(seed, 0.6)
    rng = torch.Generator().manual_seed(seed + 1)
    clue = F.one_hot(y, 6) + torch.randn(80, 6, generator=rng, dtype=torch.double)
    noise = 20 * torch.randn(80, 6, generator=rng, dtype=torch.double)
    return torch.stack([logits, 100 * clue, noise]), y, weight


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 20.0]))
@settings(max_examples=25)
def test_a_pool_has_the_rates_that_scipy_finds(seed: int, doubt: float) -> None:
    logits, y, weight = models(seed)
    epsilon = doubt / (80 + doubt)
    found = best_rates(logits, y, weight, doubt)
    unit = logits / torch.tensor([1.0, 100.0, 20.0])[:, None, None]
    other = minimize(
        pool_loss, np.full(3, 0.3), (unit, y, weight, epsilon), method="L-BFGS-B",
        bounds=[(0, None)] * 3, options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    mine = found.numpy() * np.array([1.0, 100.0, 20.0])
    assert pool_loss(mine, unit, y, weight, epsilon) <= other.fun + 1e-12
    np.testing.assert_allclose(mine, other.x, atol=2e-4)


def test_a_model_that_misleads_gets_no_rate_at_all() -> None:
    logits, y, weight = problem(5)
    found = best_rates(torch.stack([logits, -F.one_hot(y, 6).double()]), y, weight)
    assert found[1] == 0 and found[0] > 0.5


def test_the_same_model_twice_is_as_good_as_once() -> None:
    logits, y, weight = problem(6)
    assert float(best_rates(logits[None].repeat(2, 1, 1), y, weight).sum()) == pytest.approx(
        1 / best_temperature(logits, y, weight), rel=1e-6
    )


def test_a_pool_leaves_absent_columns_absent_whatever_the_rates() -> None:
    logits, y, weight = models(7)
    wider = torch.cat([logits, torch.full((3, 80, 2), -torch.inf)], 2)
    rates = best_rates(wider, y, weight)
    torch.testing.assert_close(rates, best_rates(logits, y, weight), atol=1e-9, rtol=1e-6)
    said = pooled(torch.tensor([0.0, 1.0, 0.0]), wider)
    assert said[:, 6:].isneginf().all() and torch.equal(said[:, :6], logits[1])
