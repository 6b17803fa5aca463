"""The template: who hears what on a stream that learns and forgets."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import InteractiveLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from clapforget.scenarios import ImageData, stream
from clapforget.strategies import UnlearningPlugin, UnlearningTemplate

SEQUENCE = "L0-2 F1 L3 F0,2"
KINDS = ["learn", "forget", "learn", "forget"]


class Plain(UnlearningTemplate):
    """A linear model that learns as Avalanche does and notes what it is asked to forget."""

    def __init__(self, *, plugins: Sequence[Any] = (), evaluator: Any = None) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 100))
        super().__init__(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            criterion=nn.CrossEntropyLoss(), train_mb_size=32, plugins=plugins,
            evaluator=evaluator or EvaluationPlugin(),
        )  # fmt: skip
        self.forgot: list[tuple[int, ...]] = []

    def forget(self, experience: Any) -> None:
        self.forgot.append(experience.classes)


def record(base: type) -> Any:
    """A plugin that notes every callback of its kind, with the experience's kind and the clock."""

    class Trace(base, supports_distributed=False):  # type: ignore[misc,valid-type,call-arg]
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[tuple[str, str]] = []
            self.clock: list[int] = []

    def note(name: str) -> Callable[..., None]:
        def callback(self: Any, strategy: Any, *args: Any, **kwargs: Any) -> None:
            self.heard.append((name, strategy.experience.kind))
            self.clock.append(strategy.clock.train_exp_counter)

        return callback

    for name in ("before_training_exp", "after_training_exp", "before_forgetting_exp",
                 "after_forgetting_exp", "before_training_epoch", "before_training_iteration",
                 "before_train_dataset_adaptation"):  # fmt: skip
        if hasattr(base, name):
            setattr(Trace, name, note(name))
    return Trace()


@pytest.fixture(scope="module")
def traced(data: ImageData) -> tuple[Plain, Any, Any]:
    foreign, ours = record(SupervisedPlugin), record(UnlearningPlugin)
    strategy = Plain(plugins=[foreign, ours])
    for experience in stream(data, SEQUENCE).train_stream:
        strategy.train(experience)
    return strategy, foreign, ours


def test_a_plugin_that_knows_nothing_of_forgetting_sees_learn_experiences_only(
    traced: tuple[Plain, Any, Any],
) -> None:
    _, foreign, _ = traced
    assert {kind for _, kind in foreign.heard} == {"learn"}
    names = [name for name, _ in foreign.heard]
    assert names.count("before_training_exp") == names.count("after_training_exp") == 2
    assert names.count("before_training_epoch") == 2


def test_an_unlearning_plugin_hears_both_kinds_in_their_order(
    traced: tuple[Plain, Any, Any],
) -> None:
    _, _, ours = traced
    ends = [heard for heard in ours.heard if heard[0].endswith("_exp")]
    expected = []
    for kind in KINDS:
        verb = "training" if kind == "learn" else "forgetting"
        expected += [(f"before_{verb}_exp", kind), (f"after_{verb}_exp", kind)]
    assert ends == expected


def test_every_forget_experience_is_carried_out_once(traced: tuple[Plain, Any, Any]) -> None:
    assert traced[0].forgot == [(1,), (0, 2)]


def test_the_clock_counts_every_experience(traced: tuple[Plain, Any, Any]) -> None:
    strategy, _, ours = traced
    assert strategy.clock.train_exp_counter == len(KINDS)
    begins = ("before_training_exp", "before_forgetting_exp")
    before = [count for (name, _), count in zip(ours.heard, ours.clock) if name in begins]
    assert before == [0, 1, 2, 3]


def test_a_whole_stream_can_be_trained_in_one_call(data: ImageData) -> None:
    strategy = Plain()
    strategy.train(stream(data, SEQUENCE).train_stream)
    assert strategy.clock.train_exp_counter == len(KINDS)
    assert strategy.forgot == [(1,), (0, 2)]


def test_forgetting_leaves_model_and_optimizer_to_the_strategy(data: ImageData) -> None:
    strategy = Plain()
    benchmark = stream(data, "L0-2 F1")
    strategy.train(benchmark.train_stream[0])
    before = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    strategy.train(benchmark.train_stream[1])
    for name, value in strategy.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_template_that_cannot_forget_says_so(data: ImageData) -> None:
    class Unable(Plain):
        forget = UnlearningTemplate.forget

    strategy = Unable()
    strategy.train(stream(data, "L0-2 F1").train_stream[0])
    with pytest.raises(NotImplementedError, match="Unable"):
        strategy.train(stream(data, "L0-2 F1").train_stream[1])


def test_evaluation_and_loggers_work_on_a_mixed_stream(
    data: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    text = io.StringIO()
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True), loss_metrics(epoch=True),
        loggers=[InteractiveLogger(), TextLogger(text)],
    )  # fmt: skip
    strategy = Plain(evaluator=evaluator)
    benchmark = stream(data, SEQUENCE)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        result = strategy.eval(benchmark.test_stream)
    values = [v for k, v in result.items() if k.startswith("Top1_Acc_Stream")]
    assert len(values) == 1
    assert 0 <= values[0] <= 1
    assert "Top1_Acc_Epoch" in text.getvalue()
    assert text.getvalue().count("Start of training phase") == len(KINDS)
    assert "Top1_Acc_Stream" in capsys.readouterr().out
