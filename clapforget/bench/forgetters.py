"""``clapforget bench forgetters``: every forgetter on the same lab requests, beside real twins.

A twin is ``lab-tiny`` trained again without the forgotten classes, once for each request, and kept in a
folder. All methods run at their defaults; nothing here is seen by a method. Requests and what is seen of
the outcome: :mod:`clapforget.bench.lab_request`.

================  ==================================================================================
forget            forget accuracy − the twin's
captioned         the same with the names in captions
retain            the twin's − ours, of the classes in memory
neighbours        the twin's − ours
bystanders        before − after
cosine            distance of the matched cosine from the twin's
relearning        area between the relearning curve and the twin's, as a share of the whole
retrieval         R@1 on captions of retained classes, before − after
seconds           of the request, over the seconds that training the shipped backbone took (two cores,
                  idle; the requests run beside whatever else runs)
gap               mean distance from the twin over forget (the given images), retain, test (all known
                  classes but the forgotten) and attack (area under the relearning curve)
================  ==================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import trapezoid

from clapforget.bench.cells import cell, cell_text
from clapforget.bench.lab_request import AT, LabRequest, Look, curve_area
from clapforget.loading import load_clip, shipped_card
from clapforget.strategies.twin import retrained_lab
from clapforget.unlearn import FORGETTERS, make_forgetter

__all__ = ["MUST_HOLD", "compare", "markdown", "measure"]

TWIN = "the twin, relearning from other images"
"""A row: how far a twin is from itself, which is what chance does to relearning and gap."""
MUST_HOLD = {
    "forget": 0.01, "captioned": 0.01, "retain": 0.02, "neighbours": 0.02, "bystanders": 0.01,
    "cosine": 0.10, "relearning": 0.10, "retrieval": 0.02, "seconds": 0.02,
}  # fmt: skip
"""The most that the mean of a measure may be, for a default."""


def measure(
    seeds: Sequence[int], twins: Path, methods: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None, progress: bool = True, draws: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """All figures, as plain values.

    :param seeds: of the requests. :param twins: folder of the trained twins; missing ones are
        trained, which takes minutes each. :param methods: ``NAME`` or ``NAME:PRESET``; default: all.
    :param draws: of images to relearn from; the curves are means over them.
    """
    base = load_clip("lab-tiny")
    whole = float(shipped_card("lab-tiny")["seconds"])
    requests: list[dict[str, Any]] = []
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        request = LabRequest(seed, draws)
        path = retrained_lab(base, request.forget, twins, progress)
        other = load_clip(str(path))
        before, twin = request.look(base), request.look(other)
        rows.setdefault(TWIN, []).append(compare(before, request.look(other, True), twin, 1.0))
        looks: dict[str, dict[str, Any]] = {"before": asdict(before), "twin": asdict(twin)}
        for method in methods or FORGETTERS.names():
            began = time.perf_counter()
            clip = make_forgetter(method).unlearn(base, request.task).clip
            seconds = time.perf_counter() - began
            after = request.look(clip)
            looks[method] = asdict(after) | {"seconds": round(seconds, 2)}
            row = compare(before, after, twin, seconds / whole)
            rows.setdefault(method, []).append(row)
            say(f"seed {seed}, {method}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()))
        requests.append({
            "seed": seed, "forget": request.forget, "memory": request.memory,
            "neighbours": request.neighbours, "looks": looks,
        })  # fmt: skip
    return {"seeds": list(seeds), "draws": draws, "table": _table(rows), "requests": requests}


def compare(before: Look, after: Look, twin: Look, seconds: float) -> dict[str, float]:
    """One method's figures on one request, by the names of the module's table."""
    area = trapezoid(np.abs(np.subtract(after.curve, twin.curve)), AT) / AT[-1]
    known = [
        abs(after.trained_forget - twin.trained_forget),
        abs(after.retain - twin.retain),
        abs((after.retain + 2 * after.bystanders) - (twin.retain + 2 * twin.bystanders)) / 3,
        abs(curve_area(after.curve) - curve_area(twin.curve)),
    ]
    return {
        "forget": after.forget - twin.forget,
        "captioned": after.captioned - twin.captioned,
        "retain": twin.retain - after.retain,
        "neighbours": twin.neighbours - after.neighbours,
        "bystanders": before.bystanders - after.bystanders,
        "cosine": abs(after.cosine - twin.cosine),
        "relearning": float(area),
        "retrieval": before.retrieval - after.retrieval,
        "seconds": seconds,
        "gap": sum(known) / len(known),
    }


def _table(rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Mean and 95 % interval over the requests (Student's t), and whether the means hold."""
    found: dict[str, dict[str, Any]] = {}
    for method, of in rows.items():
        cells: dict[str, Any] = {}
        for name in of[0]:
            cells[name] = cell([row[name] for row in of])
        cells["fails"] = [n for n, most in MUST_HOLD.items() if cells[n]["mean"] > most]
        found[method] = cells
    return dict(
        sorted(found.items(), key=lambda item: (len(item[1]["fails"]), item[1]["gap"]["mean"]))
    )


def markdown(found: dict[str, Any]) -> str:
    """The table, best first: means with the half width of their interval."""
    names = [*MUST_HOLD, "gap"]
    lines = [
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        "| *at most* | " + " | ".join(f"{v:.2f}" for v in MUST_HOLD.values()) + " | *smallest* |",
    ]
    for method, cells in found["table"].items():
        shown = []
        for column in names:
            text = cell_text(cells[column])
            shown.append(f"**{text}**" if column in cells["fails"] else text)
        name = method if method == TWIN else f"`{method}`"
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
