"""The discriminant against naive updates, scipy's Student-t, and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from clapforget.posterior.discriminant import Discriminant, fit_discriminant, prior_means
from clapforget.posterior.sums import FeatureSums
from tests.posterior.worlds import World, make_sums, make_world

KAPPA0, PSI = 0.7, 0.2


def fit(world: World, sums: FeatureSums | None = None, prior: Tensor | None = None) -> Discriminant:
    sums = sums or make_sums(world)
    prior = prior_means(sums, world.text[:, 0]) if prior is None else prior
    return fit_discriminant(sums, prior, KAPPA0, PSI, sums.size)


def psi_of(posterior: Discriminant) -> Tensor:
    return posterior.factor @ posterior.factor.T


# ---- posterior and predictive --------------------------------------------------------------
def test_it_is_the_normal_inverse_wishart_posterior_updated_one_sample_at_a_time() -> None:
    world = make_world()
    found = fit(world)
    size = found.size
    kappa, mean = torch.full((5,), KAPPA0, dtype=torch.double), found.prior.clone()
    nu, psi = size + 2.0, PSI * torch.eye(size).double()
    for x, c in zip(world.v[:, 0], world.labels):  # Murphy 2007, eqs. 251-254 with n = 1
        away = (x - mean[c])[:, None]
        psi = psi + kappa[c] / (kappa[c] + 1) * away @ away.T
        mean[c] = (kappa[c] * mean[c] + x) / (kappa[c] + 1)
        kappa[c], nu = kappa[c] + 1, nu + 1
    assert found.nu == nu
    for own, naive in ((found.kappa, kappa), (found.mean, mean), (psi_of(found), psi)):
        torch.testing.assert_close(own, naive, atol=1e-11, rtol=1e-11)


def test_a_spherical_covariance_answers_by_the_nearest_mean() -> None:
    world = make_world(each=30)
    sums = make_sums(world)
    prior = prior_means(sums, world.text[:, 0])
    found = fit_discriminant(sums, prior, 1e-9, 1e-9, sums.size, spherical=True)
    psi = psi_of(found)
    assert (psi / psi.diagonal().mean() - torch.eye(sums.size)).abs().max() < 0.05
    naive = fit_discriminant(sums, prior, 1e-9, 1e-9, sums.size)
    own = float(psi_of(naive).diagonal().mean()) / naive.precision
    assert float(psi.diagonal().mean()) / found.precision == pytest.approx(own, rel=0.05)
    at = world.v[:, 0]
    means = torch.stack([at[world.labels == c].mean(0) for c in range(5)])
    near = torch.cdist(at, means).topk(2, 1, largest=False)
    clear = near.values[:, 1] - near.values[:, 0] > 0.05 * near.values[:, 0]
    assert clear.float().mean() > 0.7
    assert torch.equal(found.scores(found.whiten(at))[0].argmax(1)[clear], near.indices[clear, 0])
    assert not torch.equal(
        naive.scores(naive.whiten(at))[0].argmax(1)[clear], near.indices[clear, 0]
    )


@pytest.mark.parametrize("empty", [False, True])
def test_scores_are_student_t_log_densities(empty: bool) -> None:
    world = make_world()
    sums = make_sums(world)
    if empty:
        sums = FeatureSums(6, False)
        sums.resize(torch.zeros(0, dtype=torch.bool), 5)
    found = fit(world, sums)
    freedom = found.nu - found.size + 1
    expected = np.stack([
        stats.multivariate_t.logpdf(
            world.v[:, 0].numpy(), found.mean[c].numpy(),
            (psi_of(found) * (found.kappa[c] + 1) / (found.kappa[c] * freedom)).numpy(), freedom,
        ) for c in range(5)
    ], 1)  # fmt: skip
    np.testing.assert_allclose(
        found.scores(found.whiten(world.v[:, 0]))[0].numpy(), expected, atol=1e-9
    )


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("each", [1, 8])
def test_left_out_scores_are_those_of_a_posterior_without_the_sample(views: int, each: int) -> None:
    world = make_world(views=views, each=each)
    found = fit(world)
    left = found.left_out(found.whiten(world.v), world.labels)
    for i in range(0, len(world.v), 3):
        sums = make_sums(world)
        sums.add(world.v[i : i + 1], world.labels[i : i + 1], -1.0)
        twin = fit(world, sums, found.prior)
        expected = twin.scores(twin.whiten(world.v[i, :1]))[0][0]
        torch.testing.assert_close(left[i], expected, atol=1e-8, rtol=1e-9)


# ---- uncertainty ---------------------------------------------------------------------------
def test_spread_is_that_of_log_densities_under_draws_of_the_mean() -> None:
    world = make_world(each=4)
    found = fit(world)
    covariance = psi_of(found) / (found.nu - found.size - 1)  # Σ at its expectation
    noise = torch.randn(100_000, found.size, generator=torch.Generator().manual_seed(0)).double()
    drawn = found.mean[2] + noise @ torch.linalg.cholesky(covariance / found.kappa[2]).T
    phi = torch.cat([world.v[:7, 0], found.mean[[2]]])  # where the distance is 0, too
    logs = torch.stack([MultivariateNormal(x, covariance).log_prob(drawn) for x in phi])
    torch.testing.assert_close(
        found.scores(found.whiten(phi))[1][:, 2], logs.std(1), rtol=0.02, atol=0
    )


def test_along_a_ray_away_from_the_data_density_falls_and_spread_rises() -> None:
    found = fit(make_world())
    away = torch.linspace(1, 50, 30).double()[:, None] * found.mean[0]
    density, spread = found.scores(found.whiten(away))
    assert (density.logsumexp(1).diff() < 0).all()
    assert (spread.diff(dim=0) > 0).all()
    counted = torch.ones(5, dtype=torch.bool)
    assert (found.likeness(found.whiten(away[1:]), counted).diff() < 0).all()


def test_likeness_is_the_relative_mahalanobis_distance() -> None:
    world = make_world()
    found = fit(world)
    counted = torch.tensor([True, True, False, True, True])
    n, x = (found.kappa - KAPPA0)[counted], world.v[:20, 0]
    centre = (n @ found.mean[counted]) / n.sum()
    apart = found.mean[counted] - centre
    within = psi_of(found)
    total = within + apart.T @ (n[:, None] * apart)
    scale = found.nu - found.size - 1

    def distance(mean: Tensor, shape: Tensor) -> Tensor:
        return ((x - mean) @ torch.linalg.inv(shape) * (x - mean)).sum(1) * scale

    nearest = torch.stack([distance(m, within) for m in found.mean[counted]]).min(0).values
    expected = distance(centre, total) - nearest
    torch.testing.assert_close(
        found.likeness(found.whiten(x), counted), expected, rtol=1e-8, atol=1e-8
    )
    assert not found.likeness(found.whiten(x), torch.zeros(5, dtype=torch.bool)).any()


def test_nats_are_the_divergence_of_the_means_posterior_from_its_prior() -> None:
    world = make_world()
    world.labels = world.labels.clamp_max(3)  # the last class has no data
    found = fit(world)
    covariance = psi_of(found) / (found.nu - found.size - 1)
    expected = torch.stack([
        kl_divergence(
            MultivariateNormal(found.mean[c], covariance / found.kappa[c]),
            MultivariateNormal(found.prior[c], covariance / KAPPA0),
        ) for c in range(5)
    ])  # fmt: skip
    torch.testing.assert_close(found.nats(), expected, rtol=1e-9, atol=1e-12)
    assert found.nats()[4].abs() < 1e-12 and (found.nats()[:4] > 1).all()


# ---- prior means ---------------------------------------------------------------------------
def test_without_data_the_prior_is_the_text() -> None:
    world = make_world()
    sums = FeatureSums(9, False)
    sums.resize(torch.zeros(0, dtype=torch.bool), 5)
    prior = prior_means(sums, world.text[:, 0])
    torch.testing.assert_close(prior[:, :6], world.text[:, 0])
    assert not prior[:, 6:].any()


def test_the_text_is_carried_over_by_a_line_fitted_with_one_pseudo_class_of_slope_one() -> None:
    world = make_world()
    sums = make_sums(world)
    sums.clear(1)
    seen = [0, 2, 3, 4]
    text = world.text[:, 0]
    means = torch.stack([world.v[world.labels == c, 0].mean(0) for c in seen])
    away, images = text[seen] - text[seen].mean(0), means - means.mean(0)
    slope = optimize.minimize_scalar(
        lambda a: float((images - a * away).square().sum() + (a - 1) ** 2)
    ).x
    expected = means.mean(0) + slope * (text - text[seen].mean(0))
    torch.testing.assert_close(prior_means(sums, text), expected, atol=1e-7, rtol=1e-7)
