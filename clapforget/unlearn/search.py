"""Choosing a step on held-out pairs of the request itself: never on test data.

The step of one tensor is found by doubling and halving, ten evaluations long and always from the
original weights; among all evaluations of all tensors one deterministic rule picks the outcome.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.clip import Clip, Tower, tower_of
from clapforget.errors import UserError
from clapforget.prefix import Budget, Prefix
from clapforget.unlearn.base import Pairs

__all__ = ["Judge", "Score", "Trial", "bisect", "choose", "hold_out", "select", "try_direction"]


def select(pairs: Pairs, rows: Tensor) -> Pairs:
    """Some of the pairs. :param rows: positions [m]."""
    return Pairs(pairs.images[rows.to(pairs.images.device)], [pairs.names[i] for i in rows])


def hold_out(pairs: Pairs, fraction: float, rng: torch.Generator) -> tuple[Pairs, Pairs]:
    """Split pairs into those to work with and those to judge by, spread evenly over the names.

    :param fraction: share to hold out, in [0, 1), rounded, at least one pair; with 0 there is no
        split and both parts are the whole.
    :raises UserError: if there are fewer than two pairs to split.
    """
    if fraction == 0:
        return pairs, pairs
    if len(pairs) < 2:
        raise UserError(
            f"{len(pairs)} pair cannot be split into two parts",
            "give 2 or more, or set validation=0 to judge by the same pairs",
        )
    shuffled = torch.randperm(len(pairs), generator=rng).tolist()
    order = torch.tensor(sorted(shuffled, key=lambda row: pairs.names[row]))  # stable within a name
    held = min(max(round(fraction * len(pairs)), 1), len(pairs) - 1)
    chosen = torch.zeros(len(pairs), dtype=torch.bool)
    chosen[(torch.arange(held) * len(pairs) + len(pairs) // 2) // held] = True
    return select(pairs, order[~chosen].sort().values), select(pairs, order[chosen].sort().values)


@dataclass(frozen=True)
class Score:
    """Accuracies on held-out pairs, fractions from 0 to 1."""

    forget_top1: float
    forget_top5: float
    retain_top1: float
    forget_lead: float = field(default=0.0, compare=False)
    """The largest lead of a forget image's own name over the best other, in nats (cosines times the
    logit scale); negative if every image is given another name."""


class Judge:
    """Classifies held-out images among names; what stays as it is, is encoded once."""

    def __init__(
        self, clip: Clip, forget: Pairs, retain: Pairs, names: Sequence[str],
        templates: Sequence[str], changing: Collection[str] | None = None, megabytes: float = 1024,
    ) -> None:  # fmt: skip
        """:param clip: the model before.
        :param names: candidates of the classification; names of pairs that lack are added.
        :param changing: parameters in which a judged model may differ from ``clip``; None: all.
        :param megabytes: memory for activations before those parameters.
        """
        self.names = list(dict.fromkeys([*names, *forget.names, *retain.names]))
        position = {name: i for i, name in enumerate(self.names)}
        labels = [position[name] for name in (*forget.names, *retain.names)]
        self.labels = torch.tensor(labels, device=clip.device)
        self.forget = len(forget)
        self._megabytes = megabytes
        texts = [template.format(name) for name in self.names for template in templates]
        self._frozen = [
            *(Prefix(clip, "image", part.images, []) for part in (forget, retain) if len(part)),
            Prefix(clip, "text", clip.tokenize(texts), []),
        ]
        self._inputs = self._cut(clip.parameter_names() if changing is None else changing)

    def _cut(self, changing: Collection[str]) -> list[Prefix]:
        towers = {tower_of(name) for name in changing}
        budget = Budget(self._megabytes)
        return [
            Prefix(x.clip, x.tower, x.inputs, changing, budget) if x.tower in towers else x
            for x in self._frozen
        ]

    def watching(self, changing: Collection[str]) -> Judge:
        """The same judge for models that differ from the one before in these parameters only."""
        other = copy.copy(self)
        other._inputs = self._cut(changing)
        return other

    @torch.no_grad()
    def logits(self, clip: Clip) -> Tensor:
        """Cosines [n, C] of the forget images, then the retain images, with the names."""
        *images, texts = (part(clip) for part in self._inputs)
        v = torch.cat(images)
        by_template = texts.view(len(self.names), -1, v.shape[1])
        return v @ F.normalize(by_template.mean(1), dim=-1).T

    def __call__(self, clip: Clip) -> Score:
        """Score a model."""
        logits = self.logits(clip)
        own = logits.gather(1, self.labels[:, None])
        above = (~(logits <= own)).sum(1)  # a model that answers with NaN is wrong everywhere
        forget, retain = above[: self.forget], above[self.forget :]
        return Score(
            (forget < 1).double().mean().item(),
            (forget < 5).double().mean().item(),
            (retain < 1).double().mean().item() if len(retain) else 0.0,
            self._lead(logits[: self.forget], clip),
        )

    def _lead(self, logits: Tensor, clip: Clip) -> float:
        own = self.labels[: self.forget, None]
        others = logits.scatter(1, own, -torch.inf).max(1).values
        lead = clip.scale * (logits.gather(1, own)[:, 0] - others)
        return float(lead.nan_to_num(-torch.inf).max())


@dataclass(frozen=True)
class Trial:
    """One evaluation: a step λ along one direction of one tensor, and what it did."""

    concept: str
    tensor: str
    tower: Tower
    step: float
    relative_change: float
    """``λ‖G‖ / ‖θ⁰‖``."""
    score: Score

    def as_json(self) -> dict[str, Any]:
        """Plain values, the score's beside the others."""
        values = asdict(self)
        return values | values.pop("score")


def bisect(gone: Callable[[float], bool], start: float, evaluations: int) -> None:
    """Look for the smallest step at which the concept is gone: double until it is, then halve.

    :param gone: evaluates a step λ > 0. Called exactly ``evaluations`` times.
    """
    low, high, step = 0.0, math.inf, start
    for _ in range(evaluations):
        if gone(step):
            high = step
        else:
            low = step
        step = 2 * step if math.isinf(high) else (low + high) / 2


def try_direction(
    judge: Judge, clip: Clip, concept: str, tensor: str, tower: Tower, direction: Tensor,
    evaluations: int, top: int, start: float | None = None, tick: Callable[[], None] = lambda: None,
    margin: float = 0.0,
) -> list[Trial]:  # fmt: skip
    """Search the step of one tensor, always from the weights it has now, and put them back.

    :param clip: a copy that may be changed. :param direction: added λ times; the tensor's shape.
    :param top: the concept is gone when no held-out forget image has its name among the first
        ``top`` (1 or 5; 1 if there are no more names than that).
    :param start: first λ; default ``‖θ‖ / (10 ‖G‖)``, a change of 10 %.
    :param margin: nats by which every image's own name must be behind another as well.
    """
    parameter = clip.model.get_parameter(tensor)
    original = parameter.detach().clone()
    share = (direction.norm() / original.float().norm()).item()
    first = top == 1 or len(judge.names) <= top
    judge = judge.watching([tensor])
    trials: list[Trial] = []

    def gone(step: float) -> bool:
        with torch.no_grad():
            parameter.copy_(original + step * direction)
        score = judge(clip)
        trials.append(Trial(concept, tensor, tower, step, step * share, score))
        tick()
        behind = margin == 0 or score.forget_lead <= -margin
        return behind and (score.forget_top1 if first else score.forget_top5) == 0

    bisect(gone, 0.1 / share if start is None else start, evaluations)
    with torch.no_grad():
        parameter.copy_(original)
    return trials


def choose(trials: Sequence[Trial], margin: float = 0.0) -> tuple[Trial, bool]:
    """The outcome, and whether the concept is gone from the first rank in it.

    Among trials with ``forget_top1 = 0`` the best ``retain_top1``, then the smaller relative
    change. If there is none, the lowest ``forget_top1``, then the same order. With a margin, what is
    missing to it (in nats) comes right after ``forget_top1``.
    """

    def order(t: Trial) -> tuple[float, float, float, float]:
        missing = max(0.0, t.score.forget_lead + margin) if margin else 0.0
        return t.score.forget_top1, missing, -t.score.retain_top1, t.relative_change

    trial = min(trials, key=order)
    return trial, trial.score.forget_top1 == 0
