"""``clapforget bench forgetters``: every forgetter on the same requests, beside real twins.

On the lab with ``lab-tiny``, or on CIFAR-100 with ``cifar100-tiny``. A twin is that model trained again
without the forgotten classes, once for each request, and kept in a folder. All methods run at their
defaults; nothing here is seen by a method. Requests and what is seen of the outcome:
:mod:`clapforget.bench.twin_request`.

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
from clapforget.bench.twin_request import AT, Look, TwinRequest, curve_area, lab_request
from clapforget.errors import UserError
from clapforget.loading import load_clip, shipped_card
from clapforget.pretrain_data import FolderSource, LabSource, Source
from clapforget.scenarios.cifar100_data import cifar100
from clapforget.strategies.measure import minus
from clapforget.strategies.twin import retrained
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
    scenario: str = "lab", data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All figures, as plain values.

    :param seeds: of the requests. :param twins: folder of the trained twins; missing ones are
        trained, which takes minutes each. :param methods: ``NAME`` or ``NAME:PRESET``; default: all.
    :param draws: of images to relearn from; the curves are means over them.
    :param scenario: ``lab`` or ``cifar100``. :param data: folder of the latter.
    :raises UserError: for another scenario, an unknown method, or data that is not there.
    """
    weights, make = _world(scenario, data)
    forgetters = {method: make_forgetter(method) for method in methods or FORGETTERS.names()}
    base = load_clip(weights)
    whole = float(shipped_card(weights)["seconds"])
    requests: list[dict[str, Any]] = []
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        request, source = make(seed, draws)
        path = retrained(base, source, twins, progress)
        other = load_clip(str(path))
        before, twin = request.look(base), request.look(other)
        rows.setdefault(TWIN, []).append(compare(before, request.look(other, True), twin, 1.0))
        looks: dict[str, dict[str, Any]] = {"before": asdict(before), "twin": asdict(twin)}
        for method, forgetter in forgetters.items():
            began = time.perf_counter()
            clip = forgetter.unlearn(base, request.task).clip
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
    return {
        "scenario": scenario, "weights": weights, "seeds": list(seeds), "draws": draws,
        "table": _table(rows), "requests": requests,
    }  # fmt: skip


def _world(
    scenario: str, data: str | None
) -> tuple[str, Callable[[int, int], tuple[TwinRequest, Source]]]:
    """The shipped weights, and what makes a request with what its twin is trained on."""
    if scenario == "lab":

        def on_lab(seed: int, draws: int) -> tuple[TwinRequest, Source]:
            request = lab_request(seed, draws)
            return request, LabSource(excluded=request.forget)

        return "lab-tiny", on_lab
    if scenario != "cifar100":
        raise UserError(f"there are no twins for {scenario!r}", "choose lab or cifar100")
    images = cifar100(data)

    def on_cifar(seed: int, draws: int) -> tuple[TwinRequest, Source]:
        request = TwinRequest(images, seed, draws)
        return request, FolderSource.of(images, request.forget)

    return "cifar100-tiny", on_cifar


def compare(before: Look, after: Look, twin: Look, seconds: float) -> dict[str, float]:
    """One method's figures on one request, by the names of the module's table; of data without captions
    those that need none."""
    area = trapezoid(np.abs(np.subtract(after.curve, twin.curve)), AT) / AT[-1]
    known = [
        abs(after.trained_forget - twin.trained_forget),
        abs(after.retain - twin.retain),
        abs((after.retain + 2 * after.bystanders) - (twin.retain + 2 * twin.bystanders)) / 3,
        abs(curve_area(after.curve) - curve_area(twin.curve)),
    ]
    found = {
        "forget": after.forget - twin.forget,
        "captioned": minus(after.captioned, twin.captioned),
        "retain": twin.retain - after.retain,
        "neighbours": twin.neighbours - after.neighbours,
        "bystanders": before.bystanders - after.bystanders,
        "cosine": abs(after.cosine - twin.cosine),
        "relearning": float(area),
        "retrieval": minus(before.retrieval, after.retrieval),
        "seconds": seconds,
        "gap": sum(known) / len(known),
    }
    return {name: value for name, value in found.items() if value is not None}


def _table(rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Mean and 95 % interval over the requests (Student's t), and whether the means hold."""
    found: dict[str, dict[str, Any]] = {}
    for method, of in rows.items():
        cells: dict[str, Any] = {}
        for name in of[0]:
            cells[name] = cell([row[name] for row in of])
        cells["fails"] = [n for n in MUST_HOLD if n in cells and cells[n]["mean"] > MUST_HOLD[n]]
        found[method] = cells
    return dict(
        sorted(found.items(), key=lambda item: (len(item[1]["fails"]), item[1]["gap"]["mean"]))
    )


def markdown(found: dict[str, Any]) -> str:
    """The table, best first: means with the half width of their interval."""
    first = next(iter(found["table"].values()))
    names = [name for name in (*MUST_HOLD, "gap") if name in first]
    most = [f"{MUST_HOLD[name]:.2f}" for name in names[:-1]]
    lines = [
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        "| *at most* | " + " | ".join(most) + " | *smallest* |",
    ]
    for method, cells in found["table"].items():
        shown = []
        for column in names:
            text = cell_text(cells[column])
            shown.append(f"**{text}**" if column in cells["fails"] else text)
        name = method if method == TWIN else f"`{method}`"
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
