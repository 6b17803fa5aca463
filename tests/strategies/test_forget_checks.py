"""Which strategies and plugins forget requests hold in, and which are refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.benchmarks.utils import concat_datasets
from avalanche.core import SupervisedPlugin
from avalanche.training import supervised
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    FromScratchTrainingPlugin,
    LRSchedulerPlugin,
    RARPlugin,
    ReplayPlugin,
)
from avalanche.training.storage_policy import ClassBalancedBuffer, ParametricBuffer
from avalanche.training.supervised import Naive, Replay
from torch import nn

from clapforget import Clip
from clapforget.errors import UserError
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClipClassifier, ForgettingPlugin, UncertaintyBuffer

Make = Callable[..., Any]


@pytest.fixture
def make(clip: Clip, data: ImageData) -> Make:
    """``make(kind, plugins, **options)``: a strategy with a new classifier."""

    def make_one(kind: type, plugins: list[Any], **options: Any) -> Any:
        model = ClipClassifier(clip, data.class_names, data.templates)
        options.setdefault("evaluator", EvaluationPlugin())
        return kind(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
            criterion=nn.CrossEntropyLoss(), train_mb_size=32, plugins=plugins, **options,
        )  # fmt: skip

    return make_one


def forgetting(**options: Any) -> ForgettingPlugin:
    return ForgettingPlugin("stranger", certify=options.pop("certify", False), **options)


class Seen(SupervisedPlugin):
    """Which labels each experience trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[set[int]] = []

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.labels.append(set())

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.labels[-1] |= set(strategy.mb_y.tolist())


def refused(strategy: Any, data: ImageData, *said: str) -> None:
    """Training fails with one line before the model changed."""
    before = strategy.model.fingerprint()
    with pytest.raises(UserError) as error:
        strategy.train(stream(data, "L0-2 F1 L3").train_stream)
    assert all(part in str(error.value) for part in said), error.value
    assert "\n" not in str(error.value)
    assert strategy.model.fingerprint() == before
    assert strategy.clock.train_iterations == 0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Cumulative", {}, "its own train_dataset_adaptation()"),
        ("JointTraining", {}, "JointTraining may teach again"),
        ("FromScratchTraining", {}, "FromScratchTrainingPlugin may"),
        ("GDumb", {"mem_size": 20}, "GDumbPlugin keeps exemplars (storage_policy)"),
        ("DER", {"mem_size": 20}, "DER keeps exemplars (storage_policy)"),
        ("ER_ACE", {"mem_size": 20}, "ER_ACE keeps exemplars (storage_policy)"),
        ("MIR", {"mem_size": 20, "subsample": 10}, "MIRPlugin keeps exemplars (storage_policy)"),
        ("MER", {"mem_size": 20}, "MER does not train as"),
        ("GSS_greedy", {"mem_size": 20, "input_size": [3, 32, 32]}, "GSS_greedyPlugin"),
        ("GEM", {"patterns_per_exp": 5, "memory_strength": 0.5}, "GEMPlugin may"),
        ("EWC", {"ewc_lambda": 1.0}, "EWCPlugin may"),
        ("LwF", {"alpha": 1.0, "temperature": 2.0}, "LwFPlugin may"),
    ],
)  # fmt: skip
def test_strategies_that_keep_or_put_back_are_refused(
    make: Make, data: ImageData, name: str, options: dict[str, Any], said: str
) -> None:
    refused(make(getattr(supervised, name), [forgetting()], **options), data, said)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("kind", [Naive, Replay])
def test_a_forgotten_class_is_never_trained_again(
    make: Make, data: ImageData, kind: type, at_once: bool
) -> None:
    """Nor is replay deaf to what is learned after the request, in one call of train() or several."""
    seen, plugin = Seen(), forgetting(harmless=(Seen,))
    plugins = [seen, EarlyStoppingPlugin(1, "train"), plugin]
    options = {"mem_size": 20} if kind is Replay else {}
    strategy = make(kind, plugins, train_epochs=2, eval_every=1, **options)
    experiences = stream(data, "L0-2 F1 L3,4 L5").train_stream
    for part in [experiences] if at_once else experiences:
        strategy.train(part)
    assert plugin.done[0]["request"] == "F1"
    if kind is Naive:
        assert seen.labels == [{0, 1, 2}, set(), {3, 4}, {5}]
        return
    assert seen.labels == [{0, 1, 2}, set(), {0, 2, 3, 4}, {0, 2, 3, 4, 5}]
    memory = strategy.plugins[3].storage_policy
    assert set(memory.buffer.targets) == {0, 2, 3, 4, 5}


def test_a_plugin_of_ones_own_needs_a_word_for_it(make: Make, data: ImageData) -> None:
    refused(make(Naive, [Seen(), forgetting()]), data, "Seen may keep", "harmless=(Seen,)")
    make(Naive, [Seen(), forgetting(harmless=[Seen])]).train(stream(data, "L0-2").train_stream)

    class Replays(ReplayPlugin):
        """It may do anything beside what its parent does."""

    refused(make(Naive, [Replays(20), forgetting()]), data, "Replays may keep")
    refused(make(Naive, [forgetting(), forgetting()]), data, "ForgettingPlugin may keep")
    with pytest.raises(UserError, match=r"harmless.*classes"):
        ForgettingPlugin(harmless=[Seen()])  # type: ignore[list-item]


def test_the_users_other_plugins_stand_before_it(make: Make, data: ImageData) -> None:
    last = "give ForgettingPlugin last"
    stopping = EarlyStoppingPlugin(1, "train")
    refused(make(Naive, [forgetting(), stopping]), data, "EarlyStoppingPlugin stands after", last)
    strategy = make(Naive, [forgetting(harmless=[Seen])])
    strategy.plugins.append(Seen())
    refused(strategy, data, "Seen stands after ForgettingPlugin", last)


def test_learning_rates_may_be_scheduled(make: Make, data: ImageData) -> None:
    strategy = make(Naive, [])
    schedule = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(strategy.optimizer, 1))
    plugin = forgetting(harmless=[LRSchedulerPlugin])
    strategy.plugins[:0] = [schedule, plugin]
    strategy.train(stream(data, "L0-2 F1 L3").train_stream)
    assert plugin.done[0]["request"] == "F1"


class Growing(Naive):
    """Cumulative by another name."""

    dataset = None

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        old = [self.dataset] if self.dataset is not None else []
        self.dataset = concat_datasets([*old, self.experience.dataset])
        self.adapted_dataset = self.dataset


class Smoothed(Naive):
    def criterion(self) -> torch.Tensor:
        return nn.functional.cross_entropy(self.mb_output, self.mb_y, label_smoothing=0.1)


def test_a_strategy_of_ones_own_may_differ_in_what_holds_no_data(
    make: Make, data: ImageData
) -> None:
    refused(make(Growing, [forgetting()]), data, "its own train_dataset_adaptation()")
    learn = stream(data, "L0-2").train_stream
    make(Smoothed, [forgetting()]).train(learn)
    holding = make(Smoothed, [forgetting()])
    holding.past = {"one": learn[0].dataset}
    refused(holding, data, "Smoothed keeps data of its own (past)", "harmless=(Smoothed,)")
    vouched = make(Smoothed, [forgetting(harmless=[Smoothed])])
    vouched.past = {"one": learn[0].dataset}
    vouched.train(learn)
    vouched.memory = [ClassBalancedBuffer(20)]  # that no word helps against
    before = vouched.clock.train_iterations
    with pytest.raises(UserError, match=r"Smoothed keeps exemplars \(memory\)"):
        vouched.train(learn)
    assert vouched.clock.train_iterations == before


def test_exemplars_that_cannot_be_deleted_are_refused(make: Make, data: ImageData) -> None:
    replay = ReplayPlugin(20, storage_policy=ParametricBuffer(20, groupby="class"))
    refused(make(Naive, [replay, forgetting()]), data, "ParametricBuffer cannot delete samples")
    rar = RARPlugin(batch_size_mem=4, mem_size=20)
    plugins = [rar, forgetting(harmless=[RARPlugin])]
    refused(make(Naive, plugins), data, "RARPlugin keeps exemplars (storage_policy)")


@pytest.mark.parametrize(
    ("requests", "certify"),
    [("L0-2 F1", "quick"), ("L0-2 F1 L3", False), ("L0-2 F1 F1", False)],
)
def test_a_model_that_another_hand_puts_back_is_noticed(
    make: Make, data: ImageData, requests: str, certify: Any
) -> None:
    """The plugin's own list of what is harmless may be wrong, or the user's word."""

    class PutsBack(FromScratchTrainingPlugin):
        def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            strategy.model.load_state_dict(self.initial_weights)

        before_training_exp = SupervisedPlugin.before_training_exp

    plugin = forgetting(certify=certify, harmless=[PutsBack])
    replay = ReplayPlugin(20, storage_policy=UncertaintyBuffer(20, "random"))
    strategy = make(Naive, [replay, PutsBack(), plugin])
    with pytest.raises(UserError, match="something changed the model after F1 was carried out"):
        strategy.train(stream(data, requests).train_stream)
    assert plugin.certificates == []


def test_what_is_learned_after_a_request_is_no_other_hand(make: Make, data: ImageData) -> None:
    strategy = make(Naive, [forgetting()])
    strategy.train(stream(data, "L0-2 F1 L3").train_stream)
    with torch.no_grad():
        strategy.model.delta += 1  # the user's own business, between two calls of train()
    strategy.train(stream(data, "L0-2 F1 L3 L4").train_stream[3])
