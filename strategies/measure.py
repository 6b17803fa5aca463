"""What a run records after every experience, and the summary at its end.

Everything derives from two tables: the accuracy of every class, by the strategy (among all classes
it met, forgotten names included) and by bare zero-shot CLIP (among all names).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from clapforget.scenarios.data import ImageData
from clapforget.strategies.model import ClapModel

__all__ = ["Snapshot", "event_metrics", "snapshot", "summarise"]


@dataclass
class Snapshot:
    """Accuracy by class label at one moment."""

    strategy: dict[int, float] = field(default_factory=dict)
    clip: dict[int, float] = field(default_factory=dict)
    ece: float | None = None
    """Full-set expected calibration error (15 bins, L1) on retained classes' test images."""


@torch.no_grad()
def snapshot(strategy: Any, data: ImageData, retained: Sequence[int]) -> Snapshot:
    """Measure on all test images.

    :param strategy: with ``model`` (a :class:`ClapModel`) and a feature ``cache``.
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
    probs = head.predict(v[met]).probs
    right = head.labels[probs.argmax(1)] == labels[met]
    kept = torch.isin(labels[met], torch.tensor(list(retained), device=v.device))
    ece = None
    if kept.any():
        columns = head.columns(labels[met][kept])
        probs = probs.clamp(
            max=1 - 1e-6
        )  # a confidence of exactly 1 falls out of torchmetrics' last bin
        ece = float(
            multiclass_calibration_error(probs[kept], columns, probs.shape[1], n_bins=15, norm="l1")
        )
    return Snapshot(_by_class(right, labels[met], head.labels.tolist()), clip, ece)


def _by_class(
    right: torch.Tensor, labels: torch.Tensor, classes: Iterable[int]
) -> dict[int, float]:
    return {
        c: float(right[labels == c].float().mean()) for c in sorted(classes) if (labels == c).any()
    }


def _mean(values: dict[int, float], classes: Iterable[int]) -> float | None:
    """Mean over classes, which all have the same weight; None if there are none."""
    found = [values[c] for c in classes if c in values]
    return round(sum(found) / len(found), 6) if found else None


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
    by_task = [_mean(seen.strategy, [c for c in task if c in set(retained)]) for task in tasks]
    found = [value for value in by_task if value is not None]
    return {
        "retain_accuracy": _mean(seen.strategy, retained),
        "forget_accuracy": _mean(seen.strategy, forgotten),
        "average_accuracy": round(sum(found) / len(found), 6) if found else None,
        "ece": None if seen.ece is None else round(seen.ece, 6),
        "zero_shot_retain_accuracy": _mean(seen.clip, retained),
        "zero_shot_retain_known_accuracy": _mean(
            seen.clip, [c for c in retained if c in (data.known or ())]
        ),
        "zero_shot_forget_accuracy": _mean(seen.clip, forgotten),
        "bystander_accuracy": _mean(seen.clip, bystanders(data, [*retained, *forgotten])),
    }


def summarise(events: Sequence[dict[str, Any]], start: Snapshot, data: ImageData) -> dict[str, Any]:
    """The summary of a finished run, from its events.

    =====================  =======================================================================
    average_accuracy       mean over learn events of the mean accuracy of the tasks learned so far
    last_accuracy          the latter at the end of the stream
    backward_transfer      mean over tasks but the last of (accuracy at the end − right after the
                           task was learned), on classes retained at the end
    spill                  largest loss of retain accuracy in any forget request
    relapse                largest rise of a request's forget accuracy from right after it to the end
    =====================  =======================================================================
    """
    last = events[-1]
    retained, forgotten = last["learned"], last["forgotten"]
    snapshots = [_restore(event) for event in events]
    learns = [i for i, event in enumerate(events) if event["kind"] == "learn"]
    averages = [events[i]["metrics"]["average_accuracy"] for i in learns]
    averages = [value for value in averages if value is not None]
    transfer = []
    for i in learns[:-1]:
        kept = [c for c in events[i]["classes"] if c in set(retained)]
        then, now = _mean(snapshots[i].strategy, kept), _mean(snapshots[-1].strategy, kept)
        if then is not None and now is not None:
            transfer.append(now - then)
    spills, relapses = [], []
    for i, event in enumerate(events):
        if event["kind"] == "forget":
            kept = event["learned"]
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
        "average_accuracy": round(sum(averages) / len(averages), 6) if averages else None,
        "backward_transfer": round(sum(transfer) / len(transfer), 6) if transfer else None,
        "spill": round(max(spills), 6) if spills else None,
        "relapse": round(max(relapses), 6) if relapses else None,
        "before": {key: before[key] for key in keys},
    }


def _restore(event: dict[str, Any]) -> Snapshot:
    def table(name: str) -> dict[int, float]:
        return {int(c): a for c, a in event["accuracy"][name].items()}

    return Snapshot(table("strategy"), table("clip"))
