"""What a run records, against numbers worked out by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget, TrainSettings
from clapforget.strategies.measure import (
    Snapshot,
    event_metrics,
    snapshot,
    stream_metrics,
    summarise,
)

Accuracies = dict[int, float]


def event(
    kind: str, classes: list[int], learned: list[int], forgotten: list[int],
    strategy: Accuracies, clip: Accuracies, average: float,
) -> dict[str, Any]:  # fmt: skip
    return {
        "kind": kind, "classes": classes, "learned": learned, "forgotten": forgotten,
        "metrics": {"average_accuracy": average, "retain_accuracy": 0.0},
        "reliability": {"counts": [len(learned)]}, "novelty": None,
        "accuracy": {
            "strategy": {str(c): a for c, a in strategy.items()},
            "clip": {str(c): a for c, a in clip.items()},
        },
    }  # fmt: skip


@pytest.fixture
def story() -> list[dict[str, Any]]:
    """Two tasks, a forget request, a third task."""
    return [
        event("learn", [0, 1], [0, 1], [], {0: 0.8, 1: 1.0}, {0: 0.5, 1: 0.7}, 0.9),
        event("learn", [2, 3], [0, 1, 2, 3], [], {0: 0.7, 1: 0.9, 2: 0.6, 3: 0.8}, {0: 0.5, 1: 0.7}, 0.75),
        event("forget", [1], [0, 2, 3], [1], {0: 0.6, 1: 0.1, 2: 0.5, 3: 0.7}, {0: 0.5, 1: 0.05}, 0.6),
        event("learn", [4], [0, 2, 3, 4], [1], {0: 0.9, 1: 0.3, 2: 0.7, 3: 0.5, 4: 1.0}, {0: 0.5, 1: 0.4}, 0.84),
    ]  # fmt: skip


def test_the_summary_of_a_made_up_stream_is_right(
    story: list[dict[str, Any]], data: ImageData
) -> None:
    start = Snapshot({}, {0: 0.5, 1: 0.7, 2: 0.1, 3: 0.2, 4: 0.3})
    summary = summarise(story, start, data)
    assert summary["average_accuracy"] == pytest.approx((0.9 + 0.75 + 0.84) / 3)
    assert summary["last_accuracy"] == pytest.approx(0.84)
    # task 0 keeps class 0 (0.8 -> 0.9); task 1 classes 2, 3 (0.7 -> 0.6); the last task is left out
    assert summary["backward_transfer"] == pytest.approx((0.1 - 0.1) / 2, abs=1e-9)
    # retained 0, 2, 3: (0.7 + 0.6 + 0.8) / 3 -> (0.6 + 0.5 + 0.7) / 3
    assert summary["spill"] == pytest.approx(0.1)
    # class 1: strategy 0.1 -> 0.3, CLIP 0.05 -> 0.4
    assert summary["relapse"] == pytest.approx(0.35)
    assert summary["before"]["zero_shot_retain_accuracy"] == pytest.approx(
        (0.5 + 0.1 + 0.2 + 0.3) / 4
    )
    assert summary["before"]["zero_shot_forget_accuracy"] == pytest.approx(0.7)


def test_backward_transfer_counts_loss_and_gain_with_their_signs(
    story: list[dict[str, Any]], data: ImageData
) -> None:
    story[-1]["accuracy"]["strategy"]["0"] = 0.2
    assert summarise(story, Snapshot(), data)["backward_transfer"] == pytest.approx(-0.35)


def test_forgetting_is_the_fall_from_the_best(story: list[dict[str, Any]], data: ImageData) -> None:
    # class 0: 0.8, 0.7, 0.6, then 0.9: no fall but a rise of 0.1; classes 2, 3: 0.7, 0.6, then 0.6
    assert summarise(story, Snapshot(), data)["forgetting"] == pytest.approx((-0.1 + 0.1) / 2)
    story[2]["accuracy"]["strategy"]["0"] = 1.0
    assert summarise(story, Snapshot(), data)["forgetting"] == pytest.approx((0.1 + 0.1) / 2)


def test_forward_transfer_is_what_happened_to_clip_before_a_task_came(
    story: list[dict[str, Any]], data: ImageData
) -> None:
    start = Snapshot({}, {0: 0.9, 1: 0.9, 2: 0.4, 3: 0.5, 4: 0.8})
    story[0]["accuracy"]["clip"] |= {"2": 0.3, "3": 0.4}
    story[2]["accuracy"]["clip"] |= {"4": 0.6}
    summary = summarise(story, start, data)
    assert summary["forward_transfer"] == pytest.approx((-0.1 - 0.2) / 2)
    # learned again: it was known, then forgotten; neither is transfer
    story[3].update(classes=[4, 1], learned=[0, 2, 3, 4, 1], forgotten=[])
    assert summarise(story, start, data)["forward_transfer"] == pytest.approx((-0.1 - 0.2) / 2)


def test_a_class_that_was_learned_again_counts_in_its_later_task(
    story: list[dict[str, Any]], data: ImageData
) -> None:
    story[3].update(classes=[4, 1], learned=[0, 2, 3, 4, 1], forgotten=[])
    story[3]["accuracy"]["strategy"]["1"] = 0.0
    # not 1.0 -> 0.0 of the first task: it was forgotten in between, on request
    summary = summarise(story, Snapshot(), data)
    assert summary["backward_transfer"] == pytest.approx(0.0, abs=1e-9)
    assert summary["forgetting"] == pytest.approx(0.0, abs=1e-9)
    seen = Snapshot({0: 0.9, 1: 0.0, 2: 0.7, 3: 0.5, 4: 1.0})
    tasks = [[0, 1], [2, 3], [4, 1]]
    metrics = event_metrics(seen, tasks, [0, 2, 3, 4, 1], [], data)
    assert metrics["average_accuracy"] == pytest.approx((0.9 + 0.6 + 0.5) / 3)


def test_the_summary_holds_the_bins_of_the_end_and_the_mean_novelty(
    story: list[dict[str, Any]], data: ImageData
) -> None:
    for event, auroc in zip(story[:2], (0.6, 0.8)):
        scores = {"energy": {"auroc": auroc, "aupr": 0.5, "fpr95": 0.5}}
        event["novelty"] = {"learned": 1, "novel": 1, "scores": scores}
    summary = summarise(story, Snapshot(), data)
    assert summary["reliability"] == {"counts": [4]}
    assert summary["novelty"]["events"] == 2
    assert summary["novelty"]["scores"]["energy"]["auroc"] == pytest.approx(0.7)


def test_a_class_that_was_learned_again_is_no_relapse(
    story: list[dict[str, Any]], data: ImageData
) -> None:
    story[-1].update(classes=[1], learned=[0, 2, 3, 1], forgotten=[])
    assert summarise(story, Snapshot(), data)["relapse"] is None


def test_the_worst_request_is_the_spill(story: list[dict[str, Any]], data: ImageData) -> None:
    last = event("forget", [4], [0, 2, 3], [1, 4], {0: 0.9, 1: 0.3, 2: 0.4, 3: 0.2},
                 {1: 0.4, 4: 0.0}, 0.5)  # fmt: skip
    assert summarise([*story, last], Snapshot(), data)["spill"] == pytest.approx(0.2)


def test_the_metrics_of_a_moment_weigh_every_class_and_every_task_alike(data: ImageData) -> None:
    known = sorted(data.known or ())
    clip = dict.fromkeys(range(100), 0.0) | {0: 0.5, 1: 1.0, 2: 0.2} | dict.fromkeys(known[5:], 1.0)
    seen = Snapshot(
        {0: 1.0, 1: 0.2, 2: 0.4, 3: 0.6}, clip, {0: 0.8, 1: 0.0, 2: 0.5, 3: 0.7},
        {"ece": 0.123, "legacy_ece": 0.3, "brier": 0.4, "nll": 0.5},
    )  # fmt: skip
    metrics = event_metrics(seen, [[0], [1, 2, 3]], [0, 2, 3], [1], data)
    assert metrics["retain_accuracy"] == pytest.approx(2.0 / 3, abs=1e-6)
    assert metrics["forget_accuracy"] == pytest.approx(0.2)
    assert metrics["average_accuracy"] == pytest.approx((1.0 + 0.5) / 2)
    assert metrics["task_aware_accuracy"] == pytest.approx((0.8 + 0.6) / 2)
    assert [metrics[k] for k in ("ece", "legacy_ece", "brier", "nll")] == [0.123, 0.3, 0.4, 0.5]
    assert metrics["zero_shot_retain_accuracy"] == pytest.approx((0.5 + 0.2 + 0.0) / 3, abs=1e-6)
    assert metrics["zero_shot_retain_known_accuracy"] == pytest.approx(0.25)  # labels 0 and 3
    assert metrics["zero_shot_forget_accuracy"] == pytest.approx(1.0)
    rest = [c for c in known if c not in (0, 1, 2, 3)]
    assert metrics["bystander_accuracy"] == pytest.approx(
        sum(clip[c] for c in rest) / len(rest), abs=1e-6
    )


@pytest.fixture(scope="module")
def learned(data: ImageData, make_strategy: Callable[..., ClapForget]) -> ClapForget:
    strategy = make_strategy(forgetter="nothing", certify=False, training=TrainSettings(epochs=2))
    strategy.train(stream(data, "L0-5 F1").train_stream)
    return strategy


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    error = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, bins + 1)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_calibration_error_is_the_fifteen_bin_sum(learned: ClapForget, data: ImageData) -> None:
    retained = [0, 2, 3, 4, 5]
    rows = data.rows("test", retained)
    head = learned.model.head
    confidence, answer = head.predict(learned.cache(data.test, rows)).probs.max(1)
    # the surest quarter is called by another name: now it is too sure where it is sure, and too
    # unsure elsewhere
    targets = data.test.targets.clone()
    surest = rows[confidence.argsort(descending=True)[: len(rows) // 4]]
    targets[surest] = targets[surest].sub(1).clamp_min(2)
    seen = snapshot(learned, replace(data, test=data.test.with_targets(targets)), retained)
    assert set(targets[rows].tolist()) <= set(retained)
    right = head.labels[answer].eq(targets[rows]).numpy()
    error, other = (calibration_error(confidence.numpy(), right, bins) for bins in (15, 10))
    assert abs(error - other) > 1e-3  # else the number of bins would not show
    assert seen.calibration["ece"] == pytest.approx(error, abs=1e-4)
    assert seen.reliability is not None
    assert sum(seen.reliability["counts"]) == len(rows)
    legacy = [calibration_error(c, r, 15) for c, r in zip(*(
        np.split(values, range(32, len(rows), 32)) for values in (confidence.numpy(), right)))]  # fmt: skip
    assert seen.calibration["legacy_ece"] == pytest.approx(np.mean(legacy), abs=1e-4)
    assert abs(np.mean(legacy) - error) > 1e-3


def test_a_snapshot_counts_each_class_among_all_names_it_met(
    learned: ClapForget, data: ImageData
) -> None:
    seen = snapshot(learned, data, [0, 2, 3, 4, 5])
    assert set(seen.strategy) == set(range(6))  # the "forgotten" one included
    assert set(seen.clip) == set(range(100))
    for label in range(6):
        rows = data.rows("test", [label])
        answer = learned.model.eval()(data.test.images(rows)).argmax(1)
        assert seen.strategy[label] == pytest.approx(float((answer == label).float().mean()))
    text = learned.model.clip.class_features(data.class_names, data.templates)
    rows = data.rows("test", [3])
    answer = (learned.model.clip.encode_image(data.test.images(rows)) @ text.T).argmax(1)
    assert seen.clip[3] == pytest.approx(float((answer == 3).float().mean()))


def test_proper_scores_are_those_of_the_prediction(learned: ClapForget, data: ImageData) -> None:
    retained, head = [0, 2, 3, 4, 5], learned.model.head
    rows = data.rows("test", retained)
    probs = head.predict(learned.cache(data.test, rows)).probs.double().numpy()
    target = head.columns(data.test.targets[rows]).numpy()
    seen = snapshot(learned, data, retained)
    true = probs[np.arange(len(rows)), target]
    assert seen.calibration["nll"] == pytest.approx(-np.log(true.clip(1e-12)).mean(), abs=1e-4)
    brier = (probs**2).sum(1) - 2 * true + 1
    assert seen.calibration["brier"] == pytest.approx(brier.mean(), abs=1e-4)
    assert seen.task_aware == seen.strategy  # one task: to tell it tells nothing


def test_a_request_by_pairs_does_not_spill_on_the_classes_it_was_aimed_at(
    story: list[dict[str, Any]], data: ImageData
) -> None:
    last = event("forget", [], [0, 2, 3, 4], [1], {0: 0.9, 1: 0.3, 2: 0.0, 3: 0.5, 4: 0.9},
                 {1: 0.4, 2: 0.0}, 0.5)  # fmt: skip
    plain = stream_metrics(story, last)["spill"]
    aimed = stream_metrics(story, last | {"aimed_at": [2]})["spill"]
    assert plain == pytest.approx((0.7 + 0.1) / 4)
    assert aimed == pytest.approx(0.1 / 3, abs=1e-6)
    found = summarise([*story, last | {"aimed_at": [2]}], Snapshot(), data)["spill"]
    assert found == pytest.approx(0.1)  # the class request before it cost more
