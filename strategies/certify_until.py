"""Forget until the verifier says so, or the budget ends: ``ClapForget(until="verified")``.

A stopping rule that looked at test images would be judged on what it was chosen on. So part of the
request's own train images, and some exemplars of the classes to keep, are held back from the forgetter;
on them, beside train images of classes never learned, each round is examined at the quick level. The
certificate's test images are seen by nobody before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.seeding import generator_for
from clapforget.strategies.certify_material import knew, request_views, validation_material
from clapforget.strategies.forget_task import class_task
from clapforget.unlearn.base import ForgetTask, Forgetter, Pairs, Unlearned
from clapforget.verify import Material, Subject, examine
from clapforget.verify.examine import readings
from clapforget.verify.rules import KEPT_OPEN, Claim

__all__ = ["check_until", "repeat", "unlearn_once", "unlearn_until_verified"]

_MOST_FORGET, _PART_FORGET = 30, 0.5
_MOST_KEPT, _PART_KEPT = 8, 0.25


def check_until(until: str, budget: int, level: str | None = "full") -> None:
    """:param level: of the certificate; None: there is none.

    :raises UserError: for another word, no round at all, or rounds without the full certificate: they stop at what
        the quick level sees, and the last word is not theirs.
    """
    if until not in ("once", "verified"):
        raise UserError(f"unknown until {until!r}", "choose once or verified")
    if budget < 1:
        raise UserError(f"a budget of {budget} rounds", "give at least 1")
    if until == "verified" and level != "full":
        what = "without certificates" if level is None else f"with certificates of the {level} level"
        raise UserError(f"until='verified' {what} would end in what its own rounds say", "set certify to full")


def unlearn_once(strategy: Any, experience: Any, rows: Tensor) -> Unlearned:
    """The strategy's forgetter on its CLIP. :param rows: of the train images to forget [n]."""
    task = class_task(strategy, experience, rows)
    return strategy.forgetter.unlearn(strategy.model.clip, task)


def unlearn_until_verified(strategy: Any, experience: Any, rows: Tensor) -> Unlearned:
    """The same in rounds, see :func:`repeat`, with images held back for validation."""
    task, m = _with_validation(strategy, experience, rows)
    clip, claim = strategy.model.clip, strategy.claim
    return repeat(strategy.forgetter, clip, task, m, strategy.budget, claim)


def _with_validation(strategy: Any, experience: Any, rows: Tensor) -> tuple[ForgetTask, Material]:
    """What the forgetter is given, and what was held back from it.

    :param rows: train images to forget [n]. At most 30 of each class, and half of them, are held back;
        of exemplars at most 8 a class, and a quarter.
    """
    data, memory = experience.data, strategy.memory
    rng = generator_for(strategy.request_seed, 23)
    own = _held(data.train.targets[rows], _MOST_FORGET, _PART_FORGET, rng)
    kept = _held(memory.labels, _MOST_KEPT, _PART_KEPT, rng)
    task = class_task(strategy, experience, rows[~own])
    if strategy.retain_set is None:
        names = [name for name, held in zip(task.retain.names, kept.tolist()) if not held]
        task = replace(task, retain=Pairs(task.retain.images[~kept], names))
    views = request_views(experience, memory.classes, strategy.model.head.labels.tolist())
    views = replace(views, forget=tuple(data.train.targets[rows].unique().tolist()))
    ids = memory.sample_ids
    return task, validation_material(
        experience, views, rows[own], ids[kept], ids[~kept], strategy.request_seed
    )


def _held(labels: Tensor, most: int, part: float, rng: torch.Generator) -> Tensor:
    """Which of some images are held back, [n]: of each class so many, drawn at random."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        order = torch.randperm(len(own), generator=rng)
        held[own[order[: min(most, int(part * len(own)))]]] = True
    return held


def repeat(
    forgetter: Forgetter, clip: Clip, task: ForgetTask, m: Material, budget: int, claim: Claim
) -> Unlearned:
    """Repeat a forgetter on its own result until bare CLIP is ``forgotten`` at the quick level.

    A round that damages ends it, and is undone if there was a better one. Losses of the rounds follow
    each other; the notes are those of the round that is kept, and under ``until`` what each came to.

    :param m: images that the task does not hold. :param budget: rounds at most.
    """
    before, seed = Subject(clip), task.seed
    m = m.with_nearest_names(before.names(m.names, m.templates))
    judged = all(part in m.test for part in ("forget", "retain")) and knew(before, m)
    old = readings(before, m, "quick", seed) if judged else []
    rounds: list[dict[str, Any]] = []
    losses: dict[str, list[float]] = {}
    kept, steps, number, ended = Unlearned(clip), 0, 0, "budget"
    for turn in range(budget if judged else 1):
        result = forgetter.unlearn(kept.clip, replace(task, seed=seed + turn))
        steps += result.steps
        for term, values in result.losses.items():
            losses.setdefault(term, []).extend(values)
        if not judged:
            kept, number, ended = result, 1, "CLIP did not know it, or no image was left to tell"
            break
        found = examine(before, Subject(result.clip), m, level="quick", claim=claim, seed=seed,
                        before_readings=old).judgement  # fmt: skip
        rounds.append({"verdict": found.verdict, "rule": found.rule, "weakest": found.weakest})
        if found.verdict != "damaged" or not number:
            kept, number = result, turn + 1
        if found.verdict in ("forgotten", "damaged"):
            ended = found.verdict
            break
        if found.rule.startswith("1:") or found.rule == KEPT_OPEN:  # no further round helps
            ended = found.rule
            break
    until = {"goal": "verified", "budget": budget, "rounds": rounds, "kept": number, "ended": ended}
    return Unlearned(kept.clip, steps, losses, {**kept.notes, "until": until})
