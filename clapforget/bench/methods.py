"""``clapforget bench methods``: learning strategies on the same streams, several seeds, with intervals.

A method is written as on the command line, its settings after commas: ``exact``,
``clapforget:released``, ``exact,exact.features=0``. A seed orders the classes and seeds the method; all
methods see the same order at the same seed, so that differences are paired. Each run leaves the folder
that ``clapforget run`` would; one that is finished is not repeated, one that was cut short goes on. What
all runs of a folder share (scenario, data, sequence, images a class, model) is written there as
``streams.json``, and a folder of other streams is refused. Runs share the frozen image features, so their
seconds are those of learning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clapforget.bench.cells import cell, cell_text
from clapforget.errors import UserError
from clapforget.features import FeatureCache
from clapforget.run import RunRequest, run_scenario
from clapforget.seeding import generator_for
from clapforget.strategies.registry import StrategyOptions
from clapforget.writing import check_writable, write_json

__all__ = ["MEASURES", "few_images", "markdown", "measure", "parse_method"]

MEASURES = {
    "last_accuracy": "last accuracy", "average_accuracy": "average accuracy",
    "ece": "ECE", "nll": "NLL", "novelty": "novelty AUROC", "seconds": "seconds",
}  # fmt: skip
"""What the table shows, by name in a run's summary."""


def parse_method(text: str) -> tuple[str, list[str]]:
    """Strategy and settings of ``"NAME[:PRESET][,GROUP.NAME=VALUE …]"``."""
    strategy, *settings = (part.strip() for part in text.split(","))
    return strategy, settings


def measure(
    scenario: str, methods: Sequence[str], seeds: Sequence[int], folder: Path,
    data: str | None = None, sequence: str = "learn-only", per_class: int = 0, reference: str = "",
    model: str | None = None, settings: Callable[[list[str]], dict[str, Any]] = lambda pairs: {},
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """All figures, as plain values.

    :param methods: see :func:`parse_method`. :param folder: of the runs' folders.
    :param per_class: learn from so many training images a class, drawn with the seed; 0: from all.
    :param reference: the method that differences are to; default: the last one.
    :param model: name or weights file; default: the scenario's own.
    :param settings: from ``GROUP.NAME=VALUE`` texts to values by name.
    :raises UserError: before anything runs, for a method that can't run, or a folder of other streams.
    """
    reference = reference or methods[-1]
    if reference not in methods:
        raise UserError(f"reference {reference!r}", "name one of the methods")
    requests = {
        (method, seed): RunRequest(
            scenario, strategy, model=model, data=data, seed=seed, sequence=sequence,
            settings=settings(values),
        )
        for seed in seeds
        for method in methods
        for strategy, values in [parse_method(method)]
    }  # fmt: skip
    for request in requests.values():  # complains now rather than after hours
        StrategyOptions.parse(request.strategy, request.forgetter, request.settings)
    streams = {
        "scenario": scenario, "data": None if data is None else str(Path(data).absolute()),
        "sequence": sequence, "per_class": per_class,
        "model": str(Path(model).absolute()) if model and Path(model).exists() else model,
    }  # fmt: skip
    _keep_apart(folder, streams)
    encoded: dict[str, FeatureCache] = {}
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for (method, seed), request in requests.items():
        out = folder / f"{_slug(method)}-{seed}"
        if not (out / "summary.json").is_file():
            change = few_images(per_class, seed) if per_class else None
            begun = (out / "checkpoints").is_dir()  # cut short before that, it begins again
            run_scenario(
                request, out, resume=begun, overwrite=not begun,
                say=lambda line: None, encoded=encoded, change=change,
            )  # fmt: skip
        row = _row(json.loads((out / "summary.json").read_text()))
        rows[method].append(row)
        say(f"{method}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()))
    return {
        "scenario": scenario, "sequence": sequence, "seeds": list(seeds), "per_class": per_class,
        "reference": reference, "rows": rows, "table": _table(rows, reference),
    }  # fmt: skip


def _keep_apart(folder: Path, streams: dict[str, Any]) -> None:
    """See that the runs in a folder are of these streams, and say so there."""
    check_writable(folder, folder=True)
    told = folder / "streams.json"
    if told.is_file():
        try:
            before = dict(json.loads(told.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{told} cannot be read ({error})", "choose another --out") from error
        other = [key for key in streams if before.get(key) != streams[key]]
        if other:
            raise UserError(
                f"{folder} holds runs with another {' and '.join(other)} (see {told.name})",
                "choose another --out",
            )
    elif any(folder.glob("*/summary.json")):
        raise UserError(f"{folder} holds runs of streams that are not told", "choose another --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(told, streams)


def few_images(per_class: int, seed: int) -> Callable[[Any], Any]:
    """A change of a scenario: its training images are so many a class, or all there are."""

    def change(scenario: Any) -> Any:
        from clapforget.scenarios import TensorImages

        data = scenario.data
        rng = generator_for(seed, 31)
        canonical = torch.tensor(data.class_order)[data.train.targets]
        rows = torch.cat([
            own[torch.randperm(len(own), generator=rng)[:per_class]]
            for c in range(data.num_classes)
            for own in [(canonical == c).nonzero().flatten()]
        ]).sort().values  # fmt: skip
        few = TensorImages(data.train.images(rows), data.train.targets[rows], "train")
        return replace(scenario, data=replace(data, train=few, captions=None))

    return change


def _slug(method: str) -> str:
    return "".join(c if c.isalnum() or c in ".-=" else "_" for c in method)


def _row(summary: dict[str, Any]) -> dict[str, float]:
    scores = (summary.get("novelty") or {}).get("scores", {})
    values = {name: summary.get(name) for name in MEASURES if name != "novelty"}
    values["novelty"] = max((s["auroc"] for s in scores.values()), default=float("nan"))
    found = {}
    for name in MEASURES:
        value = values[name]
        found[name] = float("nan") if value is None else float(value)
    return found


def _table(rows: dict[str, list[dict[str, float]]], reference: str) -> dict[str, Any]:
    """Mean and 95 % t interval over seeds of each measure, and of its difference to the reference."""

    return {
        method: {
            name: {
                "value": cell([row[name] for row in of]),
                "difference": cell(
                    [a[name] - b[name] for a, b in zip(of, rows[reference], strict=True)]
                ),
            }
            for name in MEASURES
        }
        for method, of in rows.items()
    }


def markdown(found: dict[str, Any]) -> str:
    """The table, best last accuracy first: means ± half their interval, and the paired difference of
    last accuracy and ECE to the reference."""

    def text(of: dict[str, float], digits: int = 3, sign: str = "") -> str:
        return cell_text(of, digits, sign, spread=len(found["seeds"]) > 1)

    heads = [*MEASURES.values(), "last accuracy − reference", "ECE − reference"]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    order = sorted(
        found["table"].items(), key=lambda item: -item[1]["last_accuracy"]["value"]["mean"]
    )
    for method, cells in order:
        shown = [text(cells[n]["value"], 1 if n == "seconds" else 3) for n in MEASURES]
        for name in ("last_accuracy", "ece"):
            own = method == found["reference"]
            shown.append("reference" if own else text(cells[name]["difference"], 3, "+"))
        lines.append(f"| `{method}` | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
