"""The parts of ``clapforget bench learn`` that need a strategy: encoding, overhead, selection."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin

from clapforget.bench.learn import images as random_features
from clapforget.bench.learn import make_head
from clapforget.bench.timing import flushing, in_turn
from clapforget.loading import load_clip
from clapforget.posterior import Stage, VariationalHead
from clapforget.scenarios import lab, stream
from clapforget.seeding import generator_for
from clapforget.strategies import ClapForget, UncertaintyBuffer
from clapforget.strategies.batches import say
from clapforget.strategies.buffer import experience_samples
from clapforget.strategies.loader import FeatureLoader
from clapforget.strategies.selection import SELECTORS
from clapforget.strategies.training import TrainSettings, warm_up_and_cosine

__all__ = ["encodes_per_image", "plain_learning", "selection_seconds", "strategy_overhead"]


def _strategy(training: TrainSettings | None = None, memory: int = 200) -> ClapForget:
    return ClapForget(
        model=load_clip("lab-tiny"), memory=UncertaintyBuffer(memory), training=training,
        certify=False, evaluator=EvaluationPlugin(),
    )  # fmt: skip


def encodes_per_image() -> float:
    """Images encoded in two learn experiences of the lab, over the images in them."""
    experiences = list(stream(lab(10, 2), "L0-4 L5-9").train_stream)
    strategy = _strategy(TrainSettings(epochs=2))
    strategy.train(experiences)
    return strategy.cache.encoded / sum(len(e.dataset) for e in experiences)


def strategy_overhead(rounds: int, tasks: int = 10, each: int = 10) -> dict[str, Any]:
    """The last of some learn experiences, by the strategy and by a plain loop, features cached."""
    data = lab(40, 2)
    sequence = " ".join(f"L{t * each}-{t * each + each - 1}" for t in range(tasks))
    *first, last = stream(data, sequence).train_stream
    strategy = _strategy(TrainSettings(epochs=1, consolidation_epochs=0))
    strategy.train(first)
    strategy.training_settings = TrainSettings()
    strategy.train_epochs = strategy.training_settings.epochs
    strategy.views(last)

    def by_strategy() -> None:
        copy.deepcopy(strategy).train(last)

    def by_loop() -> None:
        plain_learning(copy.deepcopy(strategy), last)

    def copying() -> None:
        copy.deepcopy(strategy)

    sides = {"strategy": by_strategy, "loop": by_loop, "copy": copying}
    timing = in_turn(sides, rounds, {"loop": flushing})
    seconds = {name: timing[name] - timing["copy"] for name in ("strategy", "loop")}
    return {
        "strategy_overhead": round(seconds["strategy"] / seconds["loop"], 3),
        "learn_experience_seconds": {name: round(s, 3) for name, s in seconds.items()},
    }


def plain_learning(strategy: ClapForget, experience: Any) -> VariationalHead:
    """What the strategy does in a learn experience, as a loop over cached tensors: two stages with
    selection between, without plugins, metrics and outputs. With the same random numbers.

    :param strategy: gives head, memory, features and seeds; changed in place.
    """
    head, memory, s = strategy.model.head, strategy.memory, strategy.training_settings
    samples, new, held = experience_samples(experience), strategy.views(experience), strategy.memory_views  # fmt: skip
    labels = list(dict.fromkeys(samples[1].tolist()))

    def generator(purpose: int) -> torch.Generator:
        return generator_for(strategy.seed, strategy.clock.train_exp_counter, purpose)

    def run(stage: Stage, loader: FeatureLoader, epochs: int, lr: float, warm_up: float) -> None:
        head.train_only(stage)
        head.train_stage(stage)
        optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=lr)
        schedule = warm_up_and_cosine(optimizer, epochs * len(loader), warm_up, s.final_lr)
        rng = generator(2 if stage == "newest" else 3)
        for _ in range(epochs):
            for v, y, _ in loader:
                optimizer.zero_grad()
                noise_above = head.top_noise(rng)
                weights, top = head.posterior(head.inputs(v), noise_above)
                head.loss(weights, v, head.columns(y), stage, head.draw(v, stage, rng), top).backward()
                optimizer.step()
                schedule.step()

    torch.manual_seed(strategy.seed * 1_000_003 + strategy.clock.train_exp_counter)
    head.grow(labels, strategy.model.template_features(labels))
    everything = torch.cat([held, new]), torch.cat([memory.labels, samples[1]])
    run("newest", FeatureLoader(*everything, s.batch_size, generator(1)), s.epochs, s.lr, s.warm_up)
    strategy._select(experience, experience_samples(experience))
    head.close()
    head.requires_grad_(False)
    exemplars = FeatureLoader(strategy.memory_views, memory.labels, s.batch_size, generator(4))
    run("all", exemplars, s.consolidation_epochs, s.consolidation_lr, 0.0)
    head.requires_grad_(False)
    head.settle()
    return head


def selection_seconds(classes: int = 100, images: int = 50_000, keep: int = 20) -> dict[str, Any]:
    """Seconds of every exemplar score over one large experience, and of the slowest: the scores and the
    choice, what the posterior says of the images being at hand; and with that too, as much as the score
    reads of it (CLAP's head as by default, ten classes a task, 20 draws). Features are at hand in both."""
    labels, features = torch.arange(images) % classes, random_features(images)
    head = make_head(classes, max(1, classes // 10)).requires_grad_(False)
    pixels = torch.zeros(images, 3, 1, 1, dtype=torch.uint8)
    seconds: dict[str, float] = {}
    whole: dict[str, float] = {}
    for name in SELECTORS.names():
        memory = UncertaintyBuffer(classes * keep, name)
        with flushing():
            began = time.perf_counter()
            said = say(head, features, memory.reads)
            told = time.perf_counter()
            memory.add(pixels, labels, torch.arange(images), said, features, labels)
            ended = time.perf_counter()
        seconds[name], whole[name] = round(ended - told, 3), round(ended - began, 3)
    slowest = max(seconds, key=seconds.__getitem__)
    return {
        "selection_seconds": seconds[slowest],
        "selection_slowest": slowest,
        "selection_seconds_by_score": seconds,
        "selection_seconds_with_posterior": max(whole.values()),
        "selection_seconds_with_posterior_by_score": whole,
    }
