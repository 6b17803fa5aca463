from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clapforget import uncertainty


def predictive(seed: int, sharpness: float, samples: int = 7, batch: int = 5, classes: int = 4):
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((samples, batch, classes))
    return torch.from_numpy(scipy.special.softmax(logits, -1))


draws = given(seed=st.integers(0, 2**31), sharpness=st.floats(0, 300))


@settings(max_examples=40)
@draws
def test_entropies_are_those_of_scipy(seed: int, sharpness: float) -> None:
    p = predictive(seed, sharpness)
    of_mean = scipy.stats.entropy(p.numpy().mean(0), axis=-1)
    mean_of = scipy.stats.entropy(p.numpy(), axis=-1).mean(0)
    np.testing.assert_allclose(uncertainty.predictive_entropy(p), of_mean, atol=1e-10)
    np.testing.assert_allclose(uncertainty.expected_entropy(p), mean_of, atol=1e-10)
    np.testing.assert_allclose(uncertainty.mutual_information(p), of_mean - mean_of, atol=1e-10)


@settings(max_examples=40)
@draws
def test_doubt_splits_into_two_parts_within_its_bounds(seed: int, sharpness: float) -> None:
    p = predictive(seed, sharpness)
    whole, inner = uncertainty.predictive_entropy(p), uncertainty.expected_entropy(p)
    between = uncertainty.mutual_information(p)
    assert (between >= 0).all()
    torch.testing.assert_close(inner + between, whole, atol=1e-10, rtol=0)
    assert (whole <= math.log(p.shape[-1]) + 1e-12).all()


def test_mutual_information_is_never_below_zero_in_single_precision() -> None:
    p = predictive(0, 1e-3, samples=3, batch=4000, classes=50).float()
    raw = uncertainty.predictive_entropy(p) - uncertainty.expected_entropy(p)
    assert (raw < 0).any(), "the case does not bite"
    assert (uncertainty.mutual_information(p) >= 0).all()


@pytest.mark.parametrize("name", uncertainty.SCORES)
def test_scores_depend_on_neither_sample_nor_class_order(name: str) -> None:
    p, score = predictive(1, 3.0), uncertainty.SCORES[name]
    torch.testing.assert_close(score(p.flip(0)), score(p))
    torch.testing.assert_close(score(p.flip(2)), score(p))
    torch.testing.assert_close(score(p.flip(1)), score(p).flip(0))


def test_agreement_has_no_epistemic_part_and_disagreement_has_nothing_else() -> None:
    same = predictive(2, 1.0)[:1].expand(6, -1, -1)
    assert uncertainty.mutual_information(same).abs().max() < 1e-12
    assert uncertainty.variance(same).abs().max() < 1e-12
    apart = torch.eye(4)[:, None]  # four samples, each certain of another class
    log4 = torch.tensor([math.log(4)])
    torch.testing.assert_close(uncertainty.mutual_information(apart), log4)
    torch.testing.assert_close(uncertainty.predictive_entropy(apart), log4)
    assert uncertainty.expected_entropy(apart) == 0
    torch.testing.assert_close(uncertainty.variance(apart), torch.tensor([4 * 3 / 16]))


def test_variance_is_numpys_summed_over_classes() -> None:
    p = predictive(3, 2.0)
    np.testing.assert_allclose(uncertainty.variance(p), p.numpy().var(0).sum(-1))


def test_energy_is_logsumexp_and_takes_a_hidden_class() -> None:
    logits = torch.randn(6, 3, dtype=torch.double)
    np.testing.assert_allclose(
        uncertainty.energy(logits), scipy.special.logsumexp(logits.numpy(), axis=1)
    )
    logits[:, 1] = -torch.inf
    np.testing.assert_allclose(
        uncertainty.energy(logits), scipy.special.logsumexp(logits[:, [0, 2]].numpy(), axis=1)
    )


def test_variance_of_entropy_tells_draws_that_disagree_on_how_sure_they_are() -> None:
    sure, unsure = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.full((4,), 0.25)
    both = torch.stack([sure, unsure])[:, None]
    wanted = torch.tensor([(math.log(4) / 2) ** 2])
    torch.testing.assert_close(uncertainty.variance_of_entropy(both), wanted)
    apart = torch.eye(4)[:, None]  # they disagree on the class, and agree on how sure they are
    assert uncertainty.variance_of_entropy(apart) == 0


@settings(max_examples=20)
@draws
def test_variance_of_entropy_is_numpys(seed: int, sharpness: float) -> None:
    p = predictive(seed, sharpness)
    wanted = scipy.stats.entropy(p.numpy(), axis=-1).var(0)
    np.testing.assert_allclose(uncertainty.variance_of_entropy(p), wanted, atol=1e-10)


def test_expected_energy_is_scipys_and_at_least_the_energy_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 9 * torch.randn(5, 6, 3, dtype=torch.double, generator=generator)
    expected = uncertainty.expected_energy(logits)
    np.testing.assert_allclose(expected, scipy.special.logsumexp(logits.numpy(), axis=-1).mean(0))
    assert (expected >= uncertainty.energy(logits.mean(0))).all()
