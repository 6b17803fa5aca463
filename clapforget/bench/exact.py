"""The part of ``clapforget bench learn`` about the exact posterior: to learn, to delete, to hold."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.training.plugins import EvaluationPlugin

from clapforget.bench.timing import flushing, in_turn
from clapforget.loading import load_clip
from clapforget.posterior.exact import ExactHead, ExactSettings
from clapforget.scenarios import lab, stream
from clapforget.seeding import generator_for
from clapforget.strategies import ClapForget, UncertaintyBuffer
from clapforget.strategies.registry import StrategyOptions
from clapforget.unlearn.base import DEFAULT_FORGETTER

__all__ = ["exact_costs", "learn_ratio"]


def learn_ratio(rounds: int, tasks: int = 5, each: int = 10, images: int = 100) -> dict[str, Any]:
    """Seconds in which a strategy learns the last of some experiences of the lab, features cached:
    CLAP at its defaults over the exact posterior at its own, and as the preset ``best`` has it (2,000 random
    features, with the regression); the exact ones are solved within the clock."""
    data = lab(images, 2)
    sequence = " ".join(f"L{t * each}-{t * each + each - 1}" for t in range(tasks))
    *first, last = stream(data, sequence).train_stream
    clip = load_clip("lab-tiny")
    strategies: dict[str, ClapForget] = {}
    best = StrategyOptions.parse("clapforget:best", DEFAULT_FORGETTER, {}).head
    heads = {"variational": None, "exact": None, "exact_2000": best}
    for name, head in heads.items():
        strategy = ClapForget(
            model=clip, posterior=name.partition("_")[0], head=head, memory=UncertaintyBuffer(1000, "coverage"),
            certify=False, evaluator=EvaluationPlugin(),
        )  # fmt: skip
        strategy.train(first)
        strategy.views(last)
        strategies[name] = strategy

    def learn(name: str) -> None:
        strategy = copy.deepcopy(strategies[name])
        strategy.train(last)
        if name != "variational":
            assert strategy.model.head.parts

    sides: dict[str, Callable[[], Any]] = {name: partial(learn, name) for name in strategies}
    sides |= {f"copy_{name}": partial(copy.deepcopy, s) for name, s in strategies.items()}
    timing = in_turn(sides, rounds)
    seconds = {name: timing[name] - timing[f"copy_{name}"] for name in strategies}
    return {
        "exact_learn_ratio": round(seconds["variational"] / seconds["exact"], 2),
        "exact_learn_ratio_2000": round(seconds["variational"] / seconds["exact_2000"], 2),
        "exact_learn_seconds": {name: round(s, 3) for name, s in seconds.items()},
    }


@torch.no_grad()
def exact_costs(
    width: int = 512, features: int = 2000, classes: int = 100, each: int = 500, many: int = 1000
) -> dict[str, Any]:
    """Seconds to delete one class of random unit features, and then to solve again; megabytes of the
    state of a head with ``many`` classes whose samples for leave-one-out are all there."""
    head, ids = _learned(width, features, classes, each)
    v = _images(width, each, 0)
    with flushing():
        began = time.perf_counter()
        head.delete(v[:, None], torch.zeros(each, dtype=torch.long), ids[:each], "tower")
        deleted = time.perf_counter()
        assert head.parts
        solved = time.perf_counter()
    large, _ = _learned(width, features, many, 2 * head.settings.reservoir)
    held = sum(value.numel() * value.element_size() for value in large.state_dict().values())
    return {
        "exact_delete_seconds": round(deleted - began, 3),
        "exact_solve_seconds": round(solved - deleted, 3),
        "exact_memory_mb": round(held / 1e6, 1),
    }


def _images(width: int, n: int, label: int) -> torch.Tensor:
    """Unit features of one class [n, d]."""
    rng = generator_for(0, 12, label)
    return F.normalize(torch.randn(width, generator=rng) + torch.randn(n, width, generator=rng), dim=-1)  # fmt: skip


def _learned(width: int, features: int, classes: int, each: int) -> tuple[ExactHead, torch.Tensor]:
    """A head that learned so many samples of each class, and their ids."""
    head = ExactHead(width, 100.0, ExactSettings(features=features))
    texts = F.normalize(torch.randn(classes, 1, width, generator=generator_for(0, 13)), dim=-1)
    head.grow(range(classes), texts)
    ids = torch.arange(classes * each)
    for label in range(classes):
        own = ids[label * each : (label + 1) * each]
        labels = torch.full((each,), label)
        head.learn(_images(width, each, label)[:, None], labels, own, "tower")
    return head, ids
