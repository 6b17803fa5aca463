"""The tables of the report: pure functions from a run to rows that the template writes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from clapforget.report import plots, words
from clapforget.report.load import Event, Request, Run, items, mapping, number, text

__all__ = [
    "Cell", "MatrixRow", "accuracy_matrix", "evidence_groups", "final_numbers", "fingerprints",
    "flat", "mean_accuracy", "picture_rows", "ranges", "request_tasks",
]  # fmt: skip

_MOST_PICTURES = 12


@dataclass(frozen=True)
class Cell:
    """One entry of the accuracy matrix."""

    value: float | None
    classes: int
    early: bool
    """Not learned yet: the number is the bare CLIP's."""
    own: bool
    """The column is the row's own experience."""

    @property
    def shown(self) -> str:
        return words.DASH if self.value is None else f"{100 * self.value:.1f}"

    @property
    def shade(self) -> str:
        """Which of three bands the colour falls in; the ink is chosen by it."""
        value = self.value or 0
        return "low" if value < 0.6 else "middle" if value < 0.72 else "high"


@dataclass(frozen=True)
class MatrixRow:
    """One task (or one forget request) followed through the stream."""

    kind: str
    title: str
    text: str
    names: str
    cells: list[Cell]


def mean_accuracy(
    accuracy: Mapping[int, float], classes: Iterable[int]
) -> tuple[float | None, int]:
    """The mean over those classes that have a number, each weighing the same, and their count."""
    found = [accuracy[c] for c in classes if c in accuracy]
    return (sum(found) / len(found) if found else None), len(found)


def accuracy_matrix(run: Run) -> list[MatrixRow]:
    """Rows: learned tasks, then forget requests. Columns: experiences.

    A task's row leaves out its classes that are forgotten at the time. Before the row's own
    experience, while the strategy has not met all its classes, the bare CLIP's accuracy stands
    in, as ``early``.
    """
    rows: list[MatrixRow] = []
    for kind, word in (("learn", "Task"), ("forget", "Request")):
        chosen = [i for i, e in enumerate(run.events) if (e.kind == "forget") == (kind == "forget")]
        for count, own in enumerate(chosen, start=1):
            event, cells = run.events[own], []
            for at, column in enumerate(run.events):
                gone = column.forgotten if kind == "learn" else frozenset()
                classes = [c for c in event.classes if c not in gone]
                value, n = mean_accuracy(column.strategy, classes)
                early = at < own and n < len(classes)
                if early:
                    value, n = mean_accuracy(column.clip, classes)
                cells.append(Cell(value, n, early, at == own))
            names = ", ".join(event.names or map(run.name, event.classes))
            rows.append(MatrixRow(kind, f"{word} {count}", event.text, names, cells))
    return rows


def _pair(value: object) -> tuple[float, float] | None:
    ends = [number(x) for x in items(value)]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return min(ends[0], ends[1]), max(ends[0], ends[1])


def _write(value: float | None, fraction: bool) -> str:
    return words.percent(value) if fraction else words.amount(value)


def _between(pair: tuple[float, float] | None, fraction: bool) -> str:
    if pair is None:
        return ""
    low, high = (_write(x, fraction) for x in pair)
    return f"{low.removesuffix('%')} to {high}"


_WANTED = {"low": "low", "high": "high", "equal": "like the reference"}
_HOLDS = {True: ("yes", "✓ holds"), False: ("no", "✕ fails"), None: ("open", "not judged")}


def evidence_groups(certificate: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The evidence of a certificate, by group in the order of :data:`words.GROUPS`.

    A number is shown as a percentage when its name or title says accuracy, or its unit is
    ``fraction``.
    """
    groups: dict[str, list[dict[str, Any]]] = {key: [] for key in words.GROUPS}
    for entry in map(mapping, items(certificate.get("evidence"))):
        name, title = text(entry.get("name")), text(entry.get("title"))
        fraction = "accuracy" in f"{name} {title}".lower() or entry.get("unit") == "fraction"
        value, before = number(entry.get("value")), number(entry.get("before"))
        reference = number(entry.get("reference"))
        interval, band = _pair(entry.get("interval")), _pair(entry.get("reference_interval"))
        count, holds = number(entry.get("n")), entry.get("holds")
        mark, verdict = _HOLDS[holds if isinstance(holds, bool) else None]
        direction = text(entry.get("direction"))
        drawn = plots.dots(
            value, interval, before, reference, band,
            zoom=direction == "equal", write=words.percent if fraction else words.amount,
        )  # fmt: skip
        row = {
            "name": name,
            "title": title or name.replace("_", " ") or words.DASH,
            "note": text(entry.get("note")),
            "n": None if count is None else f"{count:.0f}",
            "before": _write(before, fraction),
            "value": _write(value, fraction),
            "interval": _between(interval, fraction),
            "reference": _write(reference, fraction),
            "reference_interval": _between(band, fraction),
            "reference_name": text(entry.get("reference_name")),
            "wanted": _WANTED.get(direction, words.DASH),
            "plot": Markup(drawn),
            "mark": mark,
            "holds": verdict,
        }
        groups.setdefault(text(entry.get("group")) or "behaviour", []).append(row)
    return [(words.GROUPS.get(key, key), rows) for key, rows in groups.items() if rows]


_WRITTEN = {
    **dict.fromkeys(
        ("spill", "relapse", "backward_transfer", "forgetting", "forward_transfer"), words.points
    ),
    **dict.fromkeys(("brier", "nll"), words.amount),
}
"""Numbers of the summary that are no plain percentage."""


def final_numbers(run: Run) -> list[dict[str, str]]:
    """Every number of the summary, with its value before the stream and beside the twin."""
    before, twin = mapping(run.summary.get("before")), mapping(run.summary.get("twin"))
    rows = []
    for key, title in words.MEASURES.items():
        write, apart = _WRITTEN.get(key, words.percent), number(twin.get(key))
        rows.append({
            "key": key,
            "title": title,
            "before": words.percent(number(before.get(key))),
            "after": write(number(run.summary.get(key))),
            "twin": words.amount(apart) if write is words.amount else words.points(apart, sign=True),
        })  # fmt: skip
    return rows


def request_tasks(event: Event | None) -> list[dict[str, Any]]:
    """The four CLIP tasks around a request, a row each; empty where none were recorded."""
    tasks = mapping(event.tasks) if event else {}
    columns = [
        mapping(mapping(tasks.get(when)).get(part))
        for part in ("forget", "retain")
        for when in ("before", "after")
    ]
    return [
        {"title": title, "values": [words.percent(number(column.get(key))) for column in columns]}
        for key, title in words.TASKS.items()
        if any(number(column.get(key)) is not None for column in columns)
    ]


def fingerprints(certificate: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each part of the weights before and after the request, and whether it changed."""
    weights = mapping(certificate.get("weights"))
    before, after = mapping(weights.get("before")), mapping(weights.get("after"))
    rows = []
    for part in dict.fromkeys([*before, *after]):
        old, new = text(before.get(part)), text(after.get(part))
        changed = words.DASH if not old or not new else "unchanged" if old == new else "changed"
        rows.append({"part": part, "before": old or words.DASH, "after": new or words.DASH,
                     "changed": changed})  # fmt: skip
    return rows


def flat(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and texts."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{text(key)}" if prefix else text(key))
    elif isinstance(value, (list, tuple)):
        yield prefix, ", ".join(text(x, repr(x)) for x in value) or words.DASH
    elif prefix:
        yield prefix, text(value, words.DASH) or words.DASH


def _usable(images: object) -> bool:
    return (
        isinstance(images, np.ndarray)
        and images.ndim == 4
        and images.shape[-1] == 3
        and 0 not in images.shape
    )


def picture_rows(
    run: Run,
    request: Request,
    pictures: Mapping[int, np.ndarray],
    neighbours: Mapping[int, Sequence[int]] | None,
) -> tuple[list[dict[str, Any]], int]:
    """The forgotten classes and their neighbours, with accuracies before and after the request.

    :returns: the rows, and how many classes were left out to keep the page short.
    """
    near = [int(c) for label in request.classes for c in (neighbours or {}).get(label, ())]
    wanted = [(c, True) for c in dict.fromkeys(request.classes)]
    wanted += [(c, False) for c in dict.fromkeys(near) if c not in request.classes]
    drawable = [(c, forgot) for c, forgot in wanted if _usable(pictures.get(c))]
    at = request.position
    after = run.events[at] if at is not None else None
    before = run.events[at - 1] if at else None
    rows = []
    for label, forgot in drawable[:_MOST_PICTURES]:
        numbers = []
        for title, kind in (("strategy", "strategy"), ("bare CLIP", "clip")):
            old = getattr(before, kind).get(label) if before else None
            new = getattr(after, kind).get(label) if after else None
            if old is not None or new is not None:
                numbers.append((title, words.percent(old), words.percent(new)))
        earlier = before is not None and label in before.forgotten
        role = "forgotten" if forgot else "forgotten earlier" if earlier else "neighbour"
        rows.append({
            "label": label, "name": run.name(label), "role": role, "numbers": numbers,
            "image": plots.montage(pictures[label]),
        })  # fmt: skip
    return rows, len(drawable) - len(rows)


def ranges(values: Iterable[int]) -> str:
    """Labels in short: ``0–9, 12``."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs) or words.DASH
