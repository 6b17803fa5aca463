"""Reliability bins and proper scores, against torchmetrics, sklearn and numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from clapforget.calibration import FLOOR, Reliability, bins, brier, nll, per_batch_error


def calibrated(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A prediction that is exactly as sure as it is right: labels drawn from it."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(10, 0.3), n)
    target = (probs.cumsum(1) > rng.random((n, 1))).argmax(1)
    return torch.from_numpy(probs), torch.from_numpy(target)


def test_the_full_set_sees_calibration_where_the_batches_do_not() -> None:
    probs, target = calibrated(40_000)
    assert bins(probs, target).error < 0.01
    assert per_batch_error(probs, target, batch_size=32) > 0.1


def test_one_batch_of_everything_is_the_full_set() -> None:
    probs, target = calibrated(500)
    whole = per_batch_error(probs, target, batch_size=500)
    torch.testing.assert_close(whole, bins(probs, target).error)
    halves = [bins(probs[a:b], target[a:b]).error for a, b in ((0, 300), (300, 500))]
    torch.testing.assert_close(per_batch_error(probs, target, 300), sum(halves) / 2)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), n_bins=st.integers(1, 30), sharpness=st.floats(0.1, 20))
def test_error_is_that_of_torchmetrics(seed: int, n_bins: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(sharpness * rng.standard_normal((200, 4)))
    probs = logits.softmax(1).clamp(max=1 - 1e-9)
    target = torch.from_numpy(rng.integers(0, 4, 200))
    wanted = multiclass_calibration_error(probs, target, 4, n_bins=n_bins, norm="l1")
    assert float(bins(probs, target, n_bins).error) == pytest.approx(float(wanted), abs=1e-6)


def test_error_is_the_sum_over_numpys_bins() -> None:
    probs, target = calibrated(3000, seed=1)
    target = (target + (torch.arange(3000) % 3 == 0)) % 10  # a third is wrong: no longer calibrated
    confidence, right = probs.numpy().max(1), (probs.argmax(1) == target).numpy()
    found = bins(probs, target)
    count, edges = np.histogram(confidence, 15, (0, 1))
    np.testing.assert_array_equal(found.counts, count)
    index = np.digitize(confidence, edges[1:-1])
    error = 0.0
    for b in np.unique(index):
        inside = index == b
        assert found.confidence[b] == pytest.approx(confidence[inside].mean())
        assert found.accuracy[b] == pytest.approx(right[inside].mean())
        error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert error > 0.1
    assert float(found.error) == pytest.approx(error)


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_confidence_of_exactly_one_belongs_to_the_last_bin(dtype: torch.dtype) -> None:
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.96, 0.04], [0.5, 0.5]], dtype=dtype)
    target = torch.tensor([0, 1, 0, 0])
    found = bins(probs, target)
    assert found.counts.tolist() == [0.0] * 7 + [1.0] + [0.0] * 6 + [3.0]
    assert float(found.accuracy[-1]) == pytest.approx(2 / 3)
    assert float(found.confidence[-1]) == pytest.approx(2.96 / 3)
    # one bin: 3/4 |2/3 - 2.96/3| + 1/4 |1 - 1/2|; with a bin for 1 alone it would be more
    assert float(found.error) == pytest.approx(0.75 * 0.96 / 3 + 0.125)
    assert multiclass_calibration_error(probs, target, 2, n_bins=15) > found.error + 0.01


def test_a_confidence_on_an_edge_belongs_to_the_upper_bin() -> None:
    found = bins(torch.full((1, 5), 0.2), torch.tensor([0]))  # 0.2 = 3/15
    assert found.counts.nonzero().item() == 3


def test_no_sample_has_no_error() -> None:
    found = bins(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert not found.counts.any()
    assert found.error.isnan()


def test_batches_add_up() -> None:
    probs, target = calibrated(1000)
    reliability = Reliability()
    for part in torch.arange(1000).split(77):
        reliability.update(probs[part], target[part])
    for left, right in zip(reliability.compute(), bins(probs, target)):
        torch.testing.assert_close(left, right)
    reliability.reset()
    reliability.update(probs[:10], target[:10])
    assert reliability.compute().counts.sum() == 10


def test_scores_are_those_of_sklearn() -> None:
    probs, target = calibrated(400)
    probs = probs.clamp_min(1e-9)
    probs /= probs.sum(1, keepdim=True)
    wanted = log_loss(target, probs, labels=range(10))
    assert float(nll(probs.log(), target).mean()) == pytest.approx(wanted)
    two = torch.stack([probs[:, 0], 1 - probs[:, 0]], 1)
    binary = (target != 0).long()
    # sklearn's binary score counts one of the two classes
    wanted = 2 * brier_score_loss(binary, two[:, 1])
    assert float(brier(two, binary).mean()) == pytest.approx(wanted)


def test_scores_by_hand() -> None:
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    target = torch.tensor([0, 1, 0])
    # 0; 0.5² + 0.75² + 0.25²; the worst there is
    torch.testing.assert_close(brier(probs, target), torch.tensor([0.0, 0.875, 2.0]))
    worst = -math.log(FLOOR)
    torch.testing.assert_close(nll(probs.log(), target), torch.tensor([0.0, math.log(4), worst]))
