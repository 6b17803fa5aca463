"""The plug-in metrics, against accuracies counted by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget, unlearning_metrics

FORGET, RETAIN = "Top1_ForgetAcc_Stream", "Top1_RetainAcc_Stream"


def accuracy(strategy: ClapForget, data: ImageData, classes: Sequence[int]) -> float:
    rows = data.rows("test", classes)
    answers = strategy.model.eval()(data.test.images(rows)).argmax(1)
    return float((answers == data.test.targets[rows]).float().mean())


def value(results: dict[str, float], metric: str) -> float:
    found = [v for k, v in results.items() if k.startswith(f"{metric}/eval_phase/test_stream")]
    assert len(found) == 1
    return found[0]


def test_both_parts_are_what_one_counts_by_hand(
    data: ImageData, make_strategy: Callable[..., ClapForget]
) -> None:
    # 'nothing' forgets nothing, so the accuracy on what should be forgotten is above zero.
    strategy = make_strategy(
        forgetter="nothing", evaluator=EvaluationPlugin(unlearning_metrics()), certify=False,
        eval_mb_size=7,
    )  # fmt: skip
    benchmark = stream(data, "L0-3 F1 L4,5 F3 L1")
    forgotten = [(), (1,), (1,), (1, 3), (3,)]
    for index, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
        gone = set(forgotten[index])
        shown = range(6)  # the last Learn's probe shows label 1 a second time: it counts once
        for metric, classes in (
            (FORGET, [c for c in shown if c in gone]), (RETAIN, [c for c in shown if c not in gone]),
        ):  # fmt: skip
            expected = [accuracy(strategy, data, [c]) for c in classes]
            wanted = sum(expected) / len(expected) if expected else 0.0
            assert value(results, metric) == pytest.approx(wanted, abs=1e-6)
    assert value(results, FORGET) > 0.5  # so the test above compared something


def test_metrics_start_anew_with_each_evaluation(
    data: ImageData, make_strategy: Callable[..., ClapForget]
) -> None:
    strategy = make_strategy(
        forgetter="nothing", evaluator=EvaluationPlugin(unlearning_metrics()), certify=False
    )
    benchmark = stream(data, "L0-3 F1")
    strategy.train(benchmark.train_stream)
    first = strategy.eval(benchmark.test_stream)
    again = strategy.eval(benchmark.test_stream)
    assert value(first, RETAIN) == value(again, RETAIN)
    assert value(first, FORGET) == value(again, FORGET)
    assert torch.isfinite(torch.tensor([value(first, RETAIN), value(first, FORGET)])).all()
