"""Read a run folder into typed records. What is missing or null becomes ``None``, never an error.

Only ``config.yaml`` and ``events.jsonl`` must be there and whole: without them there is no run to
report on. A missing or damaged summary or certificate is noted on the page instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clapforget.errors import UserError

__all__ = [
    "Event",
    "Request",
    "Run",
    "items",
    "labels",
    "load_run",
    "mapping",
    "number",
    "quantiles",
    "text",
]


@dataclass(frozen=True)
class Event:
    """One experience of the stream and what was measured after it."""

    number: int
    kind: str
    text: str
    classes: list[int]
    names: list[str]
    seconds: float | None
    forgotten: frozenset[int]
    """Labels that are forgotten once this experience is over."""
    metrics: dict[str, float | None]
    strategy: dict[int, float]
    """Accuracy of the strategy's prediction, by label."""
    clip: dict[int, float]
    """Accuracy of the bare CLIP among all names, by label."""
    forget: dict[str, Any]
    reliability: dict[str, Any]
    """Reliability bins of the strategy's prediction; empty where none were recorded."""
    novelty: dict[str, Any]
    """Detection of classes that come later; empty where none was recorded."""
    tasks: dict[str, Any] = field(default_factory=dict)
    """The four CLIP tasks before and after a forget request; empty where none were recorded."""


@dataclass(frozen=True)
class Request:
    """One forget request: its place among the events, its verdict and its certificate."""

    index: int
    position: int | None
    """Index into :attr:`Run.events`, or None when the run recorded no such experience."""
    text: str
    classes: list[int]
    names: list[str]
    verdict: str | None
    certificate: dict[str, Any]
    file: str | None


@dataclass(frozen=True)
class Run:
    """Everything that the page shows."""

    folder: Path
    config: dict[str, Any]
    events: list[Event]
    summary: dict[str, Any]
    requests: list[Request]
    names: list[str]
    notes: list[str] = field(default_factory=list)
    """What could not be read, one sentence each."""

    def name(self, label: int) -> str:
        """The class's name, or a stand-in where the run does not say it."""
        return self.names[label] if 0 <= label < len(self.names) else f"class {label}"


def number(value: object) -> float | None:
    """A finite number of a size that can be drawn, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e100 else None


def text(value: object, default: str = "") -> str:
    """A string that can be written as UTF-8."""
    if value is None or isinstance(value, (dict, list)):
        return default
    return str(value).encode("utf-8", "replace").decode("utf-8")


def mapping(value: object) -> dict[str, Any]:
    """A mapping with string keys; empty where there is none."""
    return {text(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}


def items(value: object) -> list[Any]:
    """A list; empty where there is none."""
    return list(value) if isinstance(value, (list, tuple)) else []


def labels(value: object) -> list[int]:
    """The integers of a list."""
    return [x for x in items(value) if isinstance(x, int) and not isinstance(x, bool)]


def quantiles(value: object) -> dict[str, list[float]]:
    """Five rising numbers by view; views that have not five are left out."""
    found = {}
    for view, entry in mapping(value).items():
        q = [x for x in map(number, items(entry)) if x is not None]
        if len(q) == 5:
            found[view] = sorted(q)
    return found


def _by_label(value: object) -> dict[int, float]:
    found = {}
    for key, accuracy in mapping(value).items():
        amount = number(accuracy)
        if amount is not None and key.isdecimal():
            found[int(key)] = amount
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"there is no {path.name} in {path.parent}", "name the folder of a run (its --out)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", "run the stream again") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(_read(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {error}", "run the stream again") from error
    if not isinstance(config, Mapping):
        raise UserError(f"{path} holds no settings", "run the stream again")
    return mapping(config)


def _read_events(path: Path) -> list[Event]:
    events: list[Event] = []
    forgotten: set[int] = set()
    for row, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {row}, is not JSON: {error}",
                "if the run was interrupted, resume it; otherwise run the stream again",
            ) from error
        if not isinstance(record, Mapping):
            raise UserError(f"{path}, line {row}, is not an experience", "run the stream again")
        if number(record.get("event")) not in (None, len(events)):
            raise UserError(
                f"{path}, line {row}, is event {record['event']:g} where {len(events)} should stand",
                "run the stream again; two runs may have written into the folder",
            )
        events.append(_event(mapping(record), len(events), forgotten))
        forgotten = set(events[-1].forgotten)
    return events


def _event(record: dict[str, Any], position: int, forgotten: set[int]) -> Event:
    classes, words = labels(record.get("classes")), text(record.get("text"))
    kind = text(record.get("kind")) or ("forget" if words[:1] == "F" else "learn")
    if isinstance(record.get("forgotten"), list):
        after = set(labels(record["forgotten"]))
    else:  # an old run: follow the requests
        after = forgotten | set(classes) if kind == "forget" else forgotten - set(classes)
    accuracy = mapping(record.get("accuracy"))
    return Event(
        number=position,
        kind=kind,
        text=words or f"{kind[:1].upper()}{','.join(map(str, classes))}",
        classes=classes,
        names=[text(name) for name in items(record.get("names"))],
        seconds=number(record.get("seconds")),
        forgotten=frozenset(after),
        metrics={key: number(value) for key, value in mapping(record.get("metrics")).items()},
        strategy=_by_label(accuracy.get("strategy")),
        clip=_by_label(accuracy.get("clip")),
        forget=mapping(record.get("forget")),
        reliability=mapping(record.get("reliability")),
        novelty=mapping(record.get("novelty")),
        tasks=mapping(record.get("tasks")),
    )


def _read_json(path: Path, folder: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; on failure an empty one and a note."""
    shown = path.relative_to(folder).as_posix()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{shown} is missing.")
        return {}
    except (OSError, ValueError, RecursionError):
        notes.append(f"{shown} cannot be read.")
        return {}
    if not isinstance(value, Mapping):
        notes.append(f"{shown} holds something else.")
    return mapping(value)


def _read_requests(
    folder: Path, events: list[Event], summary: dict[str, Any], notes: list[str]
) -> list[Request]:
    """Bring together what events, summary and certificates say about each forget request."""
    files = sorted((folder / "certificates").glob("*.json"))
    certificates = {
        path.relative_to(folder).as_posix(): _read_json(path, folder, notes) for path in files
    }
    by_event = {
        int(where): file
        for file, certificate in certificates.items()
        if (where := number(certificate.get("event"))) is not None
    }
    positions = [i for i, event in enumerate(events) if event.kind == "forget"]
    listed = [mapping(entry) for entry in items(summary.get("requests"))]
    requests = []
    for index in range(max(len(positions), len(listed))):
        entry = listed[index] if index < len(listed) else {}
        position = positions[index] if index < len(positions) else None
        event = events[position] if position is not None else None
        file: str | None = text(entry.get("certificate")) or None
        if file is None and event is not None:
            file = by_event.get(event.number)
        if file is not None and file not in certificates:
            notes.append(f"{file} is missing.")
        certificate = certificates.get(file or "", {})
        asked = mapping(certificate.get("request"))
        classes = labels(asked.get("classes")) or labels(entry.get("classes"))
        names = items(asked.get("names")) or items(entry.get("names"))
        requests.append(
            Request(
                index=index,
                position=position,
                text=text(asked.get("text")) or (event.text if event else "forget request"),
                classes=classes or (event.classes if event else []),
                names=[text(name) for name in names] or (event.names if event else []),
                verdict=text(certificate.get("verdict")) or text(entry.get("verdict")) or None,
                certificate=certificate,
                file=file,
            )
        )
    return requests


def load_run(folder: Path) -> Run:
    """Read the folder that ``clapforget run --out`` wrote.

    :raises UserError: if ``config.yaml`` or ``events.jsonl`` is missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", "name the folder of a run (its --out)")
    config = _read_config(folder / "config.yaml")
    events = _read_events(folder / "events.jsonl")
    notes: list[str] = []
    summary = _read_json(folder / "summary.json", folder, notes)
    if notes:
        notes.append("The headline numbers are those after the last recorded experience.")
    names = [text(name, "?") for name in items(config.get("class_names"))]
    requests = _read_requests(folder, events, summary, notes)
    return Run(folder, config, events, summary, requests, names, notes)
