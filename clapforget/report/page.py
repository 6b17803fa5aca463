"""Build the page: gather what each section shows, fill the template, write the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from clapforget.report import heading, plots, tables, trust, words
from clapforget.report.certified import certified, fill, write_page
from clapforget.report.front import pareto_fronts
from clapforget.report.load import (
    Event,
    Request,
    Run,
    items,
    labels,
    load_run,
    mapping,
    number,
)
from clapforget.report.load import text as string

__all__ = ["build_report"]

_FILE = "report.html"


def build_report(
    folder: Path,
    pictures: Mapping[int, np.ndarray] | None = None,
    neighbours: Mapping[int, Sequence[int]] | None = None,
) -> Path:
    """Write ``report.html`` into the folder of a run and return its path.

    :param folder: what ``clapforget run --out`` wrote.
    :param pictures: by label, a few test images, uint8 [n, h, w, 3], of the forgotten classes and
        of their neighbours. None: the page says that there are none without the data.
    :param neighbours: by forgotten label, the labels that resemble it, most alike first.
    :raises UserError: if the folder holds no run, or a damaged one, or cannot be written.
    """
    folder = Path(folder)
    run = load_run(folder)
    return write_page(folder / _FILE, _render(run, pictures, neighbours))


def _render(
    run: Run,
    pictures: Mapping[int, np.ndarray] | None,
    neighbours: Mapping[int, Sequence[int]] | None,
) -> str:
    shown = [_request(run, request, pictures, neighbours) for request in run.requests]
    return fill(
        _FILE,
        title=string(run.config.get("scenario"), words.DASH),
        facts=heading.facts(run),
        notes=run.notes,
        reading=heading.reading(run),
        requests=shown,
        cards=heading.cards(run),
        numbers=tables.final_numbers(run),
        twin=bool(mapping(run.summary.get("twin"))),
        chips=[_chip(run, i, event) for i, event in enumerate(run.events)],
        matrix=tables.accuracy_matrix(run),
        lines=_lines(run),
        course=_course(run),
        calibration=trust.calibration(run),
        novelty=trust.novelty(run),
        configuration=_configuration(run),
    )


def _chip(run: Run, position: int, event: Event) -> dict[str, Any]:
    names = event.names or [run.name(c) for c in event.classes]
    request = next((r for r in run.requests if r.position == position), None)
    rest = len(names) - 2
    return {
        "number": position + 1,
        "kind": "forget" if event.kind == "forget" else "learn",
        "word": event.kind,
        "text": event.text,
        "names": ", ".join(names),
        "some": ", ".join(names[:2]) + (f" +{rest}" if rest > 0 else ""),
        "seconds": words.seconds(event.seconds),
        "badge": words.badge(request.verdict) if request else None,
        "link": f"#request-{request.index + 1}" if request else None,
    }


def _lines(run: Run) -> Markup | None:
    """Accuracies over the stream; the first point is before it, where the run knows it."""
    series: dict[str, list[float | None]] = {}
    for key in plots.SERIES:
        values = [heading.at_start(run, key), *(event.metrics.get(key) for event in run.events)]
        if any(value is not None for value in values):
            series[key] = values
    if not series:
        return None
    ticks = [event.text if len(event.text) < 15 else event.text[:13] + "…" for event in run.events]
    forgets = [i for i, event in enumerate(run.events) if event.kind == "forget"]
    if all(values[0] is None for values in series.values()):
        return Markup(plots.lines(ticks, {k: v[1:] for k, v in series.items()}, forgets))
    return Markup(plots.lines(["start", *ticks], series, [i + 1 for i in forgets]))


def _course(run: Run) -> list[dict[str, Any]]:
    """What requests did to each other and what they took, by event, as small lines."""
    forgets = [i for i, event in enumerate(run.events) if event.kind == "forget"]
    found = []
    for key, (title, what, colour, percent) in words.COURSE.items():
        values = [e.seconds if key == "seconds" else e.metrics.get(key) for e in run.events]
        if any(value is not None for value in values):
            drawn = plots.curve(values, title, colour=colour, percent=percent, marks=forgets)
            found.append({"title": title, "what": what, "plot": Markup(drawn)})
    return found


def _losses(event: Event | None, index: int) -> list[dict[str, Any]]:
    rows = []
    for term, values in mapping(event.forget.get("losses") if event else None).items():
        numbers = [number(x) for x in items(values)]
        known = [x for x in numbers if x is not None]
        if known:
            label = f"Request {index + 1}: loss {term} over steps"
            rows.append({
                "term": term.replace("_", " "),
                "first": words.amount(known[0]),
                "last": words.amount(known[-1]),
                "plot": Markup(plots.curve(numbers, label, colour="forget")),
            })  # fmt: skip
    return rows


def _request(
    run: Run,
    request: Request,
    pictures: Mapping[int, np.ndarray] | None,
    neighbours: Mapping[int, Sequence[int]] | None,
) -> dict[str, Any]:
    certificate = request.certificate
    event = run.events[request.position] if request.position is not None else None
    forget = event.forget if event else {}
    rows, more = tables.picture_rows(run, request, pictures or {}, neighbours)
    return {
        "number": request.index + 1,
        "text": request.text,
        "names": request.names or [run.name(c) for c in request.classes],
        "badge": words.badge(request.verdict),
        "file": request.file,
        **certified(certificate, request.index + 1),
        "forgetter": string(forget.get("forgetter"), words.DASH),
        "steps": "" if (n := number(forget.get("steps"))) is None else f"{n:.0f}",
        "seconds": words.seconds(number(forget.get("seconds"))),
        "towers": ", ".join(string(x) for x in items(forget.get("towers"))) or words.DASH,
        "losses": _losses(event, request.index),
        "tasks": tables.request_tasks(event),
        "fronts": [
            front | {"plot": Markup(front["plot"])}
            for front in pareto_fronts(forget, f"Request {request.index + 1}")
        ],
        "has_pictures": pictures is not None,
        "pictures": rows,
        "more_pictures": more,
    }


def _configuration(run: Run) -> dict[str, Any]:
    config = run.config
    groups = {"settings", "versions", "class_order", "class_names", "known", "unseen", "command"}
    general = {key: value for key, value in config.items() if key not in groups}
    known = config.get("known")
    return {
        "command": string(config.get("command")),
        "general": list(tables.flat(general)),
        "settings": list(tables.flat(mapping(config.get("settings")))),
        "versions": list(tables.flat(mapping(config.get("versions")))),
        "order": [(label, run.name(label)) for label in labels(config.get("class_order"))],
        "known": words.DASH if known is None else tables.ranges(labels(known)),
        "unseen": tables.ranges(labels(config.get("unseen"))),
    }
