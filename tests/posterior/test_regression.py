"""The regression against scikit-learn, a Kalman filter and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from clapforget.posterior.regression import Regression, fit_regression
from clapforget.posterior.sums import FeatureSums
from tests.posterior.worlds import World, make_sums, make_world

EVERY = torch.ones(5, dtype=torch.bool)


def fit(world: World, sums: FeatureSums | None = None, **changes: Any) -> Regression:
    options = {
        "awake": EVERY, "phi": world.v, "columns": world.labels,
        "row_weight": torch.ones(len(world.v)).double(), "ridge": None, **changes,
    }  # fmt: skip
    return fit_regression(sums or make_sums(world), world.text[:, 0], **options)


def prior_of(world: World, found: Regression) -> Tensor:
    return found.text * (world.text[:, 0] - world.text[:, 0].mean(0))


def test_without_a_text_it_is_ridge_regression() -> None:
    world = make_world()
    world.text[:] = world.text[0]  # centred, they are all zero
    found = fit(world, ridge=0.3)
    target = torch.nn.functional.one_hot(world.labels).numpy()
    ridge = Ridge(alpha=0.3, fit_intercept=False).fit(world.v[:, 0].numpy(), target)
    np.testing.assert_allclose(found.weight.numpy(), ridge.coef_, atol=1e-10)


def test_it_is_bayesian_linear_regression_around_the_text() -> None:
    """A Kalman filter takes the samples one at a time."""
    world = make_world()
    found = fit(world)
    size, noise = 6, found.noise**2
    mean, covariance = prior_of(world, found).T, noise / found.ridge * torch.eye(size).double()
    for x, c in zip(world.v[:, 0], world.labels):
        gain = covariance @ x / (x @ covariance @ x + noise)
        target = torch.nn.functional.one_hot(c, 5).double()
        mean = mean + torch.outer(gain, target - x @ mean)
        covariance = covariance - torch.outer(gain, x @ covariance)
    torch.testing.assert_close(found.weight, mean.T, atol=1e-10, rtol=1e-8)
    phi = world.v[:9, 0]
    scores, spread = found.scores(found.whiten(phi))
    torch.testing.assert_close(scores, phi @ mean)
    variance = ((phi @ covariance) * phi).sum(1)
    torch.testing.assert_close(spread, variance.sqrt()[:, None].expand(-1, 5), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        found.likeness(found.whiten(phi), EVERY), -variance, rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("views", [1, 2])
def test_left_out_scores_are_those_of_a_posterior_without_the_sample(views: int) -> None:
    world = make_world(views=views, each=8)
    found = fit(world)
    left = found.left_out(found.whiten(world.v), world.labels)
    for i in range(0, len(world.v), 3):
        torch.testing.assert_close(left[i], brute(world, found, i), atol=1e-9, rtol=1e-9)


def brute(world: World, found: Regression, i: int) -> Tensor:
    """Scores of sample i's first view by the posterior of all others, λ and a as they are."""
    rest = torch.arange(len(world.v)) != i
    views = world.v.shape[1]
    x = world.v[rest].flatten(0, 1)
    y = torch.nn.functional.one_hot(world.labels[rest], 5).double().repeat_interleave(views, 0)
    matrix = x.T @ x / views + found.ridge * torch.eye(6).double()
    moved = x.T @ y / views + found.ridge * prior_of(world, found).T
    return world.v[i, 0] @ torch.linalg.solve(matrix, moved)


def test_strengths_are_those_of_the_smallest_left_out_error() -> None:
    world = make_world(each=6)
    weight = torch.rand(30, generator=torch.Generator().manual_seed(1)).double()
    found = fit(world, row_weight=weight)
    target = torch.nn.functional.one_hot(world.labels, 5).double()

    def error(ridge: float, text: float) -> float:
        own = Regression(found.weight, found.first, found.factor, found.noise, ridge, text)
        wrong = torch.stack([brute(world, own, i) for i in range(30)]) - target
        return float((weight[:, None] * wrong.square()).sum() / weight.sum() / 5)

    smallest = {
        ridge: optimize.minimize_scalar(
            lambda a, r=ridge: error(r, a), bounds=(0, 20), method="bounded"
        )
        for ridge in (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    }
    best = min(smallest, key=lambda ridge: smallest[ridge].fun)
    assert found.ridge == best
    assert found.text == pytest.approx(smallest[best].x, abs=1e-4)
    assert found.noise**2 == pytest.approx(smallest[best].fun, rel=1e-7)


def test_columns_that_are_asleep_change_nothing_of_the_others() -> None:
    world = make_world()
    sums, rows = make_sums(world), world.labels != 2
    sums.add(world.v[~rows], world.labels[~rows], -1.0)
    sums.clear(2)
    asleep = torch.tensor([True, True, False, True, True])
    part = {
        "phi": world.v[rows],
        "columns": world.labels[rows],
        "row_weight": torch.ones(48).double(),
    }
    found = fit(world, sums, awake=asleep, **part)
    other = make_sums(world)
    other.resize(asleep, 0)
    other.packed = sums.packed
    world.text = world.text[asleep]
    part["columns"] = (asleep.cumsum(0) - 1)[part["columns"]]
    twin = fit(world, other, awake=torch.ones(4, dtype=torch.bool), **part)
    torch.testing.assert_close(found.weight[asleep], twin.weight, atol=1e-12, rtol=1e-10)
    for name in ("noise", "ridge", "text"):
        assert getattr(found, name) == pytest.approx(getattr(twin, name), rel=1e-10)


def test_without_data_it_is_the_text_and_unsure_of_it() -> None:
    world = make_world()
    sums = FeatureSums(6, False)
    sums.resize(torch.zeros(0, dtype=torch.bool), 5)
    nothing = {
        "phi": world.v[:0],
        "columns": world.labels[:0],
        "row_weight": torch.ones(0).double(),
    }
    found = fit(world, sums, **nothing)
    torch.testing.assert_close(found.weight, world.text[:, 0])
    # of one-hot targets drawn at random, the variance is (C - 1) / C²
    assert found.noise == pytest.approx(0.4)
    other = fit(world)
    assert (
        found.scores(found.whiten(world.v[:, 0]))[1] > other.scores(other.whiten(world.v[:, 0]))[1]
    ).all()


def test_nats_are_the_divergence_from_not_having_the_classs_own_images() -> None:
    world = make_world()
    world.labels = world.labels.clamp_max(3)
    found = fit(world)
    covariance = found.noise**2 * torch.cholesky_inverse(found.factor)
    without = found.weight - torch.cholesky_solve(found.first.T, found.factor).T
    expected = torch.stack([
        kl_divergence(*(MultivariateNormal(w[c], covariance) for w in (found.weight, without)))
        for c in range(5)
    ])  # fmt: skip
    torch.testing.assert_close(found.nats(), expected, rtol=1e-7, atol=1e-12)
    assert found.nats()[4] == 0
