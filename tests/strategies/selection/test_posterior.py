"""Scores of the posterior: one image's own, and the most uncertain first."""

from __future__ import annotations

import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from clapforget import UserError
from clapforget.posterior import ClapSettings, VariationalHead
from clapforget.strategies.selection import SELECTORS, Candidates, find_selector
from tests.strategies.selection.conftest import LABELS, MakeCandidates

NAMES = [
    "energy", "entropy", "expected_energy", "expected_entropy", "mutual_information", "variance",
    "variance_entropy", "variance_of_entropy",
]  # fmt: skip


def test_scores_are_those_of_a_loop_over_images_and_draws(
    make_candidates: MakeCandidates, head: VariationalHead
) -> None:
    candidates = make_candidates()
    v, weights = candidates.features.float(), head.weights()
    mean, std = weights.mean_logits(v, head.scale), weights.std_logits(v, head.scale)
    noise = torch.randn(6, 1, len(LABELS), generator=torch.Generator().manual_seed(1))
    for i in range(len(v)):
        draws = [(mean[i] + std[i] * noise[m, 0]).double().numpy() for m in range(6)]
        probs = [scipy.special.softmax(draw) for draw in draws]
        entropies = torch.tensor([scipy.stats.entropy(p) for p in probs])
        whole = float(scipy.stats.entropy(sum(probs) / 6))
        wanted = {
            "energy": -scipy.special.logsumexp(mean[i].double().numpy()),
            "expected_energy": -sum(scipy.special.logsumexp(draw) for draw in draws) / 6,
            "entropy": whole,
            "expected_entropy": float(entropies.mean()),
            "mutual_information": whole - float(entropies.mean()),
            "variance": sum(((p - sum(probs) / 6) ** 2).sum() for p in probs) / 6,
            "variance_entropy": float(
                scipy.stats.gmean(
                    [sum(((p - sum(probs) / 6) ** 2).sum() for p in probs) / 6, whole]
                )
            ),
            "variance_of_entropy": float(((entropies - entropies.mean()) ** 2).mean()),
        }
        for name, value in wanted.items():
            own = float(find_selector(name)(candidates)[i])
            assert own == pytest.approx(value, abs=2e-3, rel=1e-4), (name, i)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_images_own_and_knows_nothing_of_its_batch(
    make_candidates: MakeCandidates, head: VariationalHead, name: str
) -> None:
    """The released program mixes images with Monte Carlo draws in variance and energy."""
    candidates = make_candidates()
    scores = find_selector(name)(candidates)
    for i in (0, 17, 43):
        candidates.predictive = head.predict(candidates.features[i : i + 1].float())
        torch.testing.assert_close(
            find_selector(name)(candidates)[0], scores[i], rtol=1e-3, atol=1e-4
        )


def test_images_that_differ_under_draws_that_agree_have_no_variance(
    head: VariationalHead, features: Tensor
) -> None:
    sure = VariationalHead(head.width, head.scale, ClapSettings(samples=6))
    sure.grow(LABELS, head.templates)
    sure.requires_grad_(False)
    sure.context = head.context
    for name in ("weight", "open_weight"):
        getattr(sure.adapters, name)[:, head.width :] = 0
    for name in ("bias", "open_bias"):
        getattr(sure.adapters, name)[:, head.width :] = -100  # σ at its floor of 0.001
    predictive = sure.predict(features[::5].float())
    assert predictive.logits is not None and predictive.logits.std(0).min() > 0.1
    candidates = Candidates(torch.zeros(9).long(), predictive, torch.Generator())
    for name in ("variance", "variance_of_entropy", "mutual_information"):
        assert find_selector(name)(candidates).max() < 1e-2, name


def test_a_posterior_without_draws_is_told_so(make_candidates: MakeCandidates) -> None:
    candidates = make_candidates()
    candidates.predictive.variance_of_entropy = None
    with pytest.raises(UserError, match="'variance_of_entropy' needs draws"):
        find_selector("variance_of_entropy")(candidates)


def test_every_uncertainty_has_a_selector() -> None:
    assert set(NAMES) <= set(SELECTORS.names())
