"""What a run records after every experience, and the summary at its end.

Accuracies derive from two tables: the accuracy of every class, by the strategy (among all classes
it met, forgotten names included) and by bare zero-shot CLIP (among all names).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clapforget import calibration
from clapforget.scenarios.data import ImageData
from clapforget.strategies.model import ClapModel
from clapforget.strategies.novelty import average_novelty

__all__ = ["Snapshot", "event_metrics", "minus", "snapshot", "stream_metrics", "summarise"]

_RISE = 0.1  # accuracy by which a forgotten class may rise and still count as forgotten
CALIBRATION = ("ece", "legacy_ece", "brier", "nll")


@dataclass
class Snapshot:
    """One moment, on test images. Tables hold accuracies by class label."""

    strategy: dict[int, float] = field(default_factory=dict)
    clip: dict[int, float] = field(default_factory=dict)
    task_aware: dict[int, float] = field(default_factory=dict)
    """The strategy's, among the classes of the true one's task only."""
    calibration: dict[str, float] = field(default_factory=dict)
    """Of the strategy on retained classes; empty where there are none.

    ============  ==============================================================================
    ece           expected calibration error over all images together (15 bins, L1)
    legacy_ece    CLAP's figure, the mean of that error over batches of 32: to compare only
    brier         Brier score, in [0, 2]
    nll           negative log likelihood in nats
    ============  ==============================================================================
    """
    reliability: dict[str, list[float]] | None = None
    """``counts``, ``confidence`` and ``accuracy`` of the 15 bins behind ``ece``."""


@torch.no_grad()
def snapshot(strategy: Any, data: ImageData, retained: Sequence[int]) -> Snapshot:
    """Measure on all test images.

    :param strategy: with ``model`` (a :class:`ClapModel`) a ``cache`` of CLIP's features
        and ``seen``, those that the head reads.
    :param retained: labels learned and not forgotten: whose images calibration is measured on.
    """
    model: ClapModel = strategy.model
    v = strategy.cache(data.test, torch.arange(len(data.test)))
    labels = data.test.targets.to(v.device)
    text = model.clip.class_features(data.class_names, data.templates)
    clip = _by_class((v @ text.T).argmax(1) == labels, labels, range(data.num_classes))
    head = model.head
    if not len(head.labels):
        return Snapshot({}, clip)
    met = torch.isin(labels, head.labels)
    read = strategy.seen(data.test, met.nonzero().flatten())
    labels, probs = labels[met], head.predict(read).probs
    columns, classes = head.columns(labels), head.labels.tolist()
    other_task = head.task != head.task[columns][:, None]
    seen = Snapshot(
        _by_class(probs.argmax(1) == columns, labels, classes),
        clip,
        _by_class(probs.masked_fill(other_task, -1).argmax(1) == columns, labels, classes),
    )
    kept = torch.isin(labels, torch.tensor(list(retained), device=v.device))
    if kept.any():
        seen.calibration, seen.reliability = _calibration(probs[kept], columns[kept])
    return seen


def _calibration(probs: Tensor, target: Tensor) -> tuple[dict[str, float], dict[str, list[float]]]:
    """:attr:`Snapshot.calibration` and :attr:`Snapshot.reliability` of [n, C] and [n]."""
    bins = calibration.bins(probs, target)
    values = {
        "ece": bins.error,
        "legacy_ece": calibration.per_batch_error(probs, target),
        "brier": calibration.brier(probs, target).mean(),
        "nll": calibration.nll(probs.log(), target).mean(),
    }
    table = {name: [round(x, 6) for x in value.tolist()] for name, value in bins._asdict().items()}
    return {name: round(float(value), 6) for name, value in values.items()}, table


def _by_class(right: Tensor, labels: Tensor, classes: Iterable[int]) -> dict[int, float]:
    return {
        c: float(right[labels == c].float().mean()) for c in sorted(classes) if (labels == c).any()
    }


def _mean(values: Mapping[int, float], classes: Iterable[int]) -> float | None:
    """Mean over classes, which all have the same weight; None if there are none."""
    found = [values[c] for c in classes if c in values]
    return _average(found)


def _average(values: Iterable[float | None]) -> float | None:
    """Mean of the numbers that are there; None if there are none."""
    found = [value for value in values if value is not None]
    return round(sum(found) / len(found), 6) if found else None


def _owned(tasks: Sequence[Sequence[int]], retained: Sequence[int]) -> list[list[int]]:
    """Retained classes of each task. One that was learned again belongs to its later task."""
    newest = {c: number for number, task in enumerate(tasks) for c in task}
    kept = set(retained)
    return [[c for c in task if c in kept and newest[c] == k] for k, task in enumerate(tasks)]


def bystanders(data: ImageData, shown: Iterable[int]) -> list[int]:
    """Classes known from pretraining that neither requests nor memory have shown."""
    return sorted((data.known or frozenset()) - set(shown))


def event_metrics(
    seen: Snapshot,
    tasks: Sequence[Sequence[int]],
    retained: Sequence[int],
    forgotten: Sequence[int],
    data: ImageData,
) -> dict[str, float | None]:
    """The numbers of one moment.

    :param tasks: classes of each Learn request so far.
    """
    owned = _owned(tasks, retained)
    return {
        "retain_accuracy": _mean(seen.strategy, retained),
        "forget_accuracy": _mean(seen.strategy, forgotten),
        "average_accuracy": _average(_mean(seen.strategy, task) for task in owned),
        "task_aware_accuracy": _average(_mean(seen.task_aware, task) for task in owned),
        **{name: seen.calibration.get(name) for name in CALIBRATION},
        "zero_shot_retain_accuracy": _mean(seen.clip, retained),
        "zero_shot_retain_known_accuracy": _mean(
            seen.clip, [c for c in retained if c in (data.known or ())]
        ),
        "zero_shot_forget_accuracy": _mean(seen.clip, forgotten),
        "bystander_accuracy": _mean(seen.clip, bystanders(data, [*retained, *forgotten])),
    }


def stream_metrics(
    events: Sequence[dict[str, Any]], event: dict[str, Any]
) -> dict[str, float | None]:
    """What a stream's requests did to each other, after one more event.

    ===========  ==================================================================================
    spill        retain accuracy lost in this request, on the classes retained after it; of a forget
                 request only, and one by pairs is aimed at the classes of its images: without them
    relapse      largest rise of a request's forget accuracy, by the strategy or by bare CLIP, from
                 right after it to now, on its classes still forgotten
    persistence  share of the classes forgotten now of which neither rose by more than 10 points since
                 their last request
    ===========  ==================================================================================

    :param events: those before. :param event: this one, with ``kind``, ``classes``, ``learned``,
        ``forgotten``, ``accuracy`` and of a forget request ``aimed_at``.
    """
    now = _restore(event)
    spill = None
    if event["kind"] == "forget" and events:
        before = _restore(events[-1])
        kept = _to_be_kept(event)
        spill = minus(_mean(before.strategy, kept), _mean(now.strategy, kept))
    rises, worst = [], dict[int, float]()
    for then in (*events, event):
        if then["kind"] != "forget":
            continue
        seen = _restore(then)
        gone = [c for c in then["classes"] if c in event["forgotten"]]
        for table in ("strategy", "clip"):
            was, is_ = getattr(seen, table), getattr(now, table)
            rises.append(minus(_mean(is_, gone), _mean(was, gone)))
        for c in gone:
            pairs = ((now.strategy, seen.strategy), (now.clip, seen.clip))
            worst[c] = max(is_.get(c, 0.0) - was.get(c, 0.0) for is_, was in pairs)
    found = [rise for rise in rises if rise is not None]
    return {
        "spill": None if spill is None else round(spill, 6),
        "relapse": round(max(found), 6) if found else None,
        "persistence": _average(float(rise <= _RISE) for rise in worst.values()),
    }


def _to_be_kept(event: dict[str, Any]) -> list[int]:
    """Classes retained after a request that it was not aimed at."""
    return [c for c in event["learned"] if c not in event.get("aimed_at", ())]


def summarise(events: Sequence[dict[str, Any]], start: Snapshot, data: ImageData) -> dict[str, Any]:
    """The summary of a finished run, from its events.

    Differences of accuracies are between means over the same classes: those of a task that are
    retained at the end, one learned again being its later task's.

    =====================  =======================================================================
    average_accuracy       mean over learn events of the mean accuracy of the tasks learned so far
    last_accuracy          the latter at the end of the stream
    backward_transfer      mean over tasks but the last of (accuracy at the end − right after the
                           task was learned)
    forgetting             mean over tasks but the last of (best accuracy from right after the task
                           was learned − at the end); what was asked for is none of it
    forward_transfer       mean over tasks but the first of (accuracy just before the task was
                           learned − before the stream), by bare CLIP: the strategy has no answer
                           for classes that it has not met
    spill                  largest loss of retain accuracy in any forget request
    relapse                largest rise of a request's forget accuracy from right after it to the end
    reliability            the bins behind ``ece`` at the end
    persistence            as :func:`stream_metrics` has it, at the end
    novelty                mean over learn events of what :mod:`clapforget.strategies.novelty` says
    =====================  =======================================================================
    """
    last = events[-1]
    retained, forgotten = last["learned"], last["forgotten"]
    snapshots = [_restore(event) for event in events]
    learns = [i for i, event in enumerate(events) if event["kind"] == "learn"]
    owned = _owned([events[i]["classes"] for i in learns], retained)
    backward, lost, forward = [], [], []
    for i, kept in zip(learns[:-1], owned):
        course = [_mean(seen.strategy, kept) for seen in snapshots[i:]]
        backward.append(minus(course[-1], course[0]))
        best = max((value for value in course[:-1] if value is not None), default=None)
        lost.append(minus(best, course[-1]))
    for i, kept in zip(learns[1:], owned[1:]):
        new = [c for c in kept if c not in events[i - 1]["forgotten"]]
        forward.append(minus(_mean(snapshots[i - 1].clip, new), _mean(start.clip, new)))
    spills, relapses = [], []
    for i, event in enumerate(events):
        if event["kind"] == "forget":
            kept = _to_be_kept(event)
            then, now = (
                _mean(snapshots[i - 1].strategy, kept) if i else None,
                _mean(snapshots[i].strategy, kept),
            )
            if then is not None and now is not None:
                spills.append(then - now)
            gone = [c for c in event["classes"] if c in set(forgotten)]
            for table in ("strategy", "clip"):
                then = _mean(getattr(snapshots[i], table), gone)
                now = _mean(getattr(snapshots[-1], table), gone)
                if then is not None and now is not None:
                    relapses.append(now - then)
    before = event_metrics(start, [], retained, forgotten, data)
    keys = ("zero_shot_retain_accuracy", "zero_shot_retain_known_accuracy",
            "zero_shot_forget_accuracy", "bystander_accuracy")  # fmt: skip
    return {
        **last["metrics"],
        "last_accuracy": last["metrics"]["average_accuracy"],
        "average_accuracy": _average(events[i]["metrics"]["average_accuracy"] for i in learns),
        "backward_transfer": _average(backward),
        "forgetting": _average(lost),
        "forward_transfer": _average(forward),
        "spill": round(max(spills), 6) if spills else None,
        "relapse": round(max(relapses), 6) if relapses else None,
        "before": {key: before[key] for key in keys},
        "reliability": last.get("reliability"),
        "novelty": average_novelty([event.get("novelty") for event in events]),
    }


def minus(left: float | None, right: float | None) -> float | None:
    """Their difference; None where either is missing."""
    return None if left is None or right is None else left - right


def _restore(event: dict[str, Any]) -> Snapshot:
    def table(name: str) -> dict[int, float]:
        return {int(c): a for c, a in event["accuracy"][name].items()}

    return Snapshot(table("strategy"), table("clip"))
