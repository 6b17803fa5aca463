from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.posterior import ClapSettings
from clapforget.posterior.exact import ExactHead
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget, UncertaintyBuffer
from clapforget.strategies.registry import StrategyOptions, find_strategy
from clapforget.strategies.training import PRESETS, TrainSettings, check_finite, warm_up_and_cosine

MakeStrategy = Callable[..., ClapForget]


def rates(steps: int, warm_up: float, final: float, lr: float = 2.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = warm_up_and_cosine(optimizer, steps, warm_up, final)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("steps", "warm_up"), [(20, 0.3), (20, 0.0), (7, 0.2), (1, 0.3), (35, 0.2)]
)
def test_rates_are_those_of_the_released_scheduler(steps: int, warm_up: float) -> None:
    rising, final = int(warm_up * steps), 1e-3
    start = np.linspace(0, 2.0, rising + 2)[1:-1]
    rest = np.arange(steps - rising)
    cosine = 2.0 * final + 0.5 * (2.0 - 2.0 * final) * (1 + np.cos(np.pi * rest / len(rest)))
    np.testing.assert_allclose(rates(steps, warm_up, final), [*start, *cosine], rtol=1e-9)


def test_the_papers_warm_up_is_one_epoch_of_five() -> None:
    part = PRESETS["paper"]["training.warm_up"]
    assert all(int(part * 5 * batches) == batches for batches in range(1, 500))


def options(name: str, **values: object) -> StrategyOptions:
    return StrategyOptions.parse(name, "cliperase", values)


def test_presets_are_what_they_are_called() -> None:
    plain, released, paper = (options(f"clapforget{name}") for name in ("", ":released", ":paper"))
    assert options("clapforget:default") == plain
    assert (plain.head.context, plain.head.predictive) == ("memory", "mean-softmax")
    assert released.training == plain.training
    assert (plain.training.batch_size, plain.training.epochs) == (32, 5)
    assert plain.training.lr == pytest.approx(1e-3 * 32 / 20)
    assert plain.training.consolidation_lr == pytest.approx(plain.training.lr / 10)
    for other in (released, paper):
        assert (other.head.context, other.head.predictive) == ("batch", "mean-logit")
    assert paper.training.batch_size == 64
    assert (paper.training.lr, paper.training.consolidation_lr) == (1e-3, 1e-4)
    assert paper.training.epochs == 5


def test_what_is_set_beats_the_preset() -> None:
    chosen = options("clapforget:paper", **{"training.lr": 0.5, "clap.tokens": True})
    assert chosen.training.lr == 0.5 and chosen.training.batch_size == 64
    assert chosen.head.tokens is True


def test_options_that_exclude_each_other_are_refused_at_the_start() -> None:
    with pytest.raises(UserError, match=r"clap.latent.*clap.prior"):
        options("clapforget", **{"clap.latent": "point", "clap.prior": "frozen"})
    with pytest.raises(UserError, match="preset"):
        options("clapforget:finest")


def test_the_recommended_preset_is_another_posterior_with_its_own_settings(lab_clip: Clip) -> None:
    options = StrategyOptions.parse("clapforget:best", "nothing", {"exact.features": 7})
    own = {"exact.model": "both", "exact.reservoir": 20}
    plain = StrategyOptions.parse("exact", "nothing", {"exact.features": 7, **own})
    assert options == plain
    strategy = find_strategy("clapforget:best")[0].build(lab_clip, options, 0)
    assert isinstance(strategy.model.head, ExactHead) and strategy.model.head.settings.features == 7
    with pytest.raises(UserError, match=r"clap\.tokens"):
        StrategyOptions.parse("clapforget:best", "nothing", {"clap.tokens": True})


@pytest.mark.parametrize("score", ["coverage", "herding"])
def test_training_that_diverges_says_so(
    data: ImageData, make_strategy: MakeStrategy, score: str
) -> None:
    strategy = make_strategy(memory=UncertaintyBuffer(20, score), training=TrainSettings(lr=10.0))
    with pytest.raises(UserError, match=r"diverged.*lower its rate"):
        strategy.train(stream(data, "L0,1 L2").train_stream)


def test_a_score_that_the_head_does_not_say_is_refused_before_training(
    make_strategy: MakeStrategy,
) -> None:
    memory = UncertaintyBuffer(20, "variance_of_entropy:low")
    with pytest.raises(UserError, match="'variance_of_entropy' needs draws"):
        make_strategy(memory=memory, head=ClapSettings(uncertainty="closed-form"))
    make_strategy(memory=memory)


@pytest.mark.parametrize(
    ("posterior", "score"),
    [("linear", "distance"), ("linear", "expected_energy"), ("nearest-mean", "distance")],
)
def test_a_point_has_what_scores_ask_for(
    data: ImageData, make_strategy: MakeStrategy, posterior: str, score: str
) -> None:
    memory = UncertaintyBuffer(12, score)
    learner = make_strategy(posterior=posterior, memory=memory, training=TrainSettings(epochs=1))
    learner.train(stream(data, "L0-3").train_stream)
    assert len(memory) == 12 and memory.scores.unique().numel() > 4


class _Answers(SupervisedPlugin):
    """Keeps what the strategy answers in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.Tensor] = []

    def after_eval_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.found.append(strategy.mb_output.detach().clone())


def test_how_many_test_images_are_asked_at_once_does_not_matter_under_batch(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    head = ClapSettings(
        context="batch", predictive="mean-logit", context_batch=5, normalise="weights"
    )
    experiences, answers = stream(data, "L0,1"), []
    for size in (1, 12):
        heard = _Answers()
        learner = make_strategy(
            head=head, eval_mb_size=size, plugins=[heard], training=TrainSettings(epochs=1)
        )
        learner.train(experiences.train_stream)
        learner.eval(experiences.test_stream)
        answers.append(torch.cat(heard.found))
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_weight_that_is_no_number_is_found_among_many(bad: float) -> None:
    good = [torch.zeros(0), torch.full((2, 3), -3e38), torch.tensor(1.0)]
    check_finite(good)
    with pytest.raises(UserError, match="diverged"):
        check_finite([*good, torch.tensor([0.0, bad, 1.0])])
