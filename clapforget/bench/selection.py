"""``clapforget bench selection``: exemplar scores on the same stream, by what their exemplars teach.

One strategy learns the stream; after each of its experiences a memory of every score and every size is
offered the samples, with the predictions and features of that moment. At the end, heads learn all
classes from the exemplars of one memory alone and are asked for the test images. All memories of a
seed saw the same stream and the same predictions, so that differences are paired.

============  ======================================================================================
nearest-mean  the mean of the exemplars' features stands for a class: what replay and prototypes need
exact         the discriminant posterior on plain features, with the text as prior
============  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clapforget.bench.cells import cell, cell_text
from clapforget.errors import UserError
from clapforget.features import FeatureCache
from clapforget.loading import load_clip
from clapforget.posterior import HEADS, Predictive
from clapforget.scenarios import Learn, Scenario, build_scenario
from clapforget.strategies.buffer import UncertaintyBuffer
from clapforget.strategies.model import ClapModel
from clapforget.strategies.registry import StrategyOptions, find_strategy
from clapforget.strategies.selection import SELECTORS, find_selector
from clapforget.unlearn import DEFAULT_FORGETTER

__all__ = ["LEARNERS", "Panel", "all_scores", "markdown", "measure"]

LEARNERS: Mapping[str, Mapping[str, Any]] = {"nearest-mean": {}, "exact": {"features": 0}}
"""Heads that learn from the exemplars, with their settings."""


def all_scores() -> list[str]:
    """Every registered score, in both directions where both mean something."""
    return [
        full
        for name in SELECTORS.names()
        for full in ([name, f"{name}:low"] if SELECTORS.get(name).two_sided else [name])
    ]


class Panel(UncertaintyBuffer):
    """A memory that offers what it is offered to further ones, which keep to their own scores.

    For streams in which no class comes twice. A score that asks for what the posterior has not
    (draws, say) is put aside and its reason kept.
    """

    def __init__(self, size: int, seed: int, others: Sequence[UncertaintyBuffer]) -> None:
        super().__init__(size, "coverage", seed)
        self.reads = "everything"  # the others' scores ask more of the posterior than its own
        self.others = list(others)
        self.refused: dict[str, str] = {}
        """Why a score was put aside."""

    def add(
        self, images: Tensor, labels: Tensor, ids: Tensor, predictive: Predictive | None = None,
        features: Tensor | None = None, columns: Tensor | None = None, with_held: bool = False,
    ) -> None:  # fmt: skip
        """Own exemplars, then everyone's. The arguments are :meth:`UncertaintyBuffer.add`'s."""
        new = torch.arange(len(labels)) + (len(self) if with_held else 0)
        super().add(images, labels, ids, predictive, features, columns, with_held)
        said = None if predictive is None else predictive.take(new)
        v = None if features is None else features[new.to(features.device)]
        own = None if columns is None else columns[new.to(columns.device)]
        for other in list(self.others):
            try:
                other.add(images, labels, ids, said, v, own)
            except UserError as error:
                self.refused[other.score] = str(error)
                self.others.remove(other)


def measure(
    scenario: str, strategy: str = "exact", each: Sequence[int] = (1, 5, 20), seeds: Sequence[int] = (0,),
    scores: Sequence[str] = (), reference: str = "coverage", data: str | None = None,
    settings: Mapping[str, Any] | None = None, say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """All figures, as plain values.

    :param strategy: whose posterior the scores ask, as on the command line. :param each: exemplars a
        class at the end of the stream. :param scores: default: :func:`all_scores`.
    :param reference: the score that differences are to.
    :raises UserError: before anything runs, for a score or a strategy that there is not.
    """
    scores = list(scores) or all_scores()
    for score in scores:
        find_selector(score)
    if reference not in scores:
        raise UserError(f"reference {reference!r}", "name one of the scores")
    options = StrategyOptions.parse(strategy, DEFAULT_FORGETTER, settings or {})
    build = find_strategy(strategy)[0].build
    rows: dict[str, list[float]] = {}
    encoded: FeatureCache | None = None
    for seed in seeds:
        world = build_scenario(scenario, data, seed, "learn-only")
        clip = load_clip(world.model)
        encoded = encoded or FeatureCache(clip)
        learned = sum(len(r.classes) for r in world.requests if isinstance(r, Learn))
        memories = {
            (score, n): UncertaintyBuffer(n * learned, score, seed)
            for score in scores
            for n in each
        }
        learner = build(clip, options, seed)
        learner.cache.share(encoded)
        learner.memory = panel = Panel(options.memory.size, seed, list(memories.values()))
        for experience in world.benchmark().train_stream:
            learner.train(experience, eval_streams=[])
        for score, why in panel.refused.items():
            say(f"left out: {why}")
            scores.remove(score)
        for (score, n), memory in memories.items():
            if score in panel.refused:
                continue
            for name, accuracy in _taught(learner, world, memory, seed).items():
                rows.setdefault(f"{name}/{n}/{score}", []).append(accuracy)
        say(f"seed {seed}: " + ", ".join(
            f"{score} " + "/".join(f"{rows[f'nearest-mean/{n}/{score}'][-1]:.3f}" for n in each)
            for score in scores
        ))  # fmt: skip
    return {
        "scenario": scenario, "weights": world.model, "strategy": strategy, "seeds": list(seeds),
        "each": list(each), "reference": reference, "rows": rows,
        "table": _table(rows, scores, each, reference),
    }  # fmt: skip


@torch.no_grad()
def _taught(
    strategy: Any, world: Scenario, memory: UncertaintyBuffer, seed: int
) -> dict[str, float]:
    """Accuracy on the test images of the memory's classes, of every learner taught by it alone."""
    data, cache = world.data, strategy.cache
    labels = memory.classes
    v = cache(data.train, memory.sample_ids)
    rows = data.rows("test", labels)
    asked, truth = cache(data.test, rows), data.test.targets[rows].to(v.device)
    found = {}
    for name, options in LEARNERS.items():
        model = ClapModel(strategy.model.clip, name, None, seed)
        if options:
            model = ClapModel(strategy.model.clip, name, HEADS.get(name).Settings(**options), seed)
        model.describe(data.class_names, data.templates)
        head = model.head
        head.grow(labels, model.template_features(labels))
        head.guide(v)
        head.learn(v[:, None], memory.labels.to(v.device), memory.sample_ids, cache.tower)
        head.settle()
        best = head.labels[head.probs(asked).argmax(1)]
        found[name] = (best == truth).float().mean().item()
    return found


def _table(
    rows: Mapping[str, list[float]], scores: Sequence[str], each: Sequence[int], reference: str
) -> dict[str, Any]:
    """By learner, score and exemplars a class: mean and 95 % t interval of the accuracy, and of its
    difference to the reference's at the same seed."""
    table: dict[str, Any] = {}
    for name in LEARNERS:
        for score in scores:
            for n in each:
                own, other = rows[f"{name}/{n}/{score}"], rows[f"{name}/{n}/{reference}"]
                table.setdefault(name, {}).setdefault(score, {})[str(n)] = {
                    "value": cell(own),
                    "difference": cell([a - b for a, b in zip(own, other, strict=True)]),
                }
    return table


def markdown(found: dict[str, Any]) -> str:
    """A table a learner, best first: accuracy, and the paired difference to the reference."""
    spread = len(found["seeds"]) > 1
    lines = []
    for name, of in found["table"].items():
        heads = [f"{n} a class" for n in found["each"]]
        heads += [f"{n}: − `{found['reference']}`" for n in found["each"]]
        lines += [
            f"| `{name}` taught by | " + " | ".join(heads) + " |",
            "|---" * (len(heads) + 1) + "|",
        ]
        order = sorted(of, key=lambda s: -sum(c["value"]["mean"] for c in of[s].values()))
        for score in order:
            shown = [cell_text(c["value"], 3, spread=spread) for c in of[score].values()]
            shown += [
                "reference" if score == found["reference"] else cell_text(c["difference"], 3, "+", spread)
                for c in of[score].values()
            ]  # fmt: skip
            lines.append(f"| `{score}` | " + " | ".join(shown) + " |")
        lines.append("")
    return "\n".join(lines)
