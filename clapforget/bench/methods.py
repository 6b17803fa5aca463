"""``clapforget bench methods``: learning strategies on the same streams, several seeds, with intervals.

A method is written as on the command line, its settings after commas: ``exact``,
``clapforget:released``, ``exact,exact.features=0``. A seed orders the classes and seeds the method; all
methods see the same order at the same seed, so that differences are paired. Each run leaves the folder
that ``clapforget run`` would; one that is finished is not repeated, one that was cut short goes on. What
all runs of a folder share (scenario, data, sequence, images a class, validation images, model) is written there as
``streams.json``, and a folder of other streams is refused. Runs share the frozen image features, so their
seconds are those of learning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from clapforget.bench.cells import cell, cell_text
from clapforget.bench.chosen_images import chosen_images
from clapforget.errors import UserError
from clapforget.features import FeatureCache
from clapforget.posterior import HEADS, OnePassHead
from clapforget.run import RunRequest, run_scenario
from clapforget.strategies.registry import StrategyOptions, find_strategy
from clapforget.writing import check_writable, write_json

__all__ = ["MEASURES", "NOVELTY", "markdown", "measure", "parse_method"]

NOVELTY = "energy"
"""The score by which every method tells what it has not learned: the published one. One score for all,
named beforehand; a run's summary has the others."""
_DETECTION = {"novelty_auroc": "AUROC", "novelty_aupr": "AUPR", "novelty_fpr95": "FPR95"}
MEASURES = {
    "last_accuracy": "last accuracy", "average_accuracy": "average accuracy",
    "backward_transfer": "BwT", "ece": "ECE", "nll": "NLL",
    **{name: f"novelty {text}" for name, text in _DETECTION.items()}, "seconds": "seconds",
}  # fmt: skip
"""What the table shows, by name in a run's summary."""


def parse_method(text: str) -> tuple[str, list[str]]:
    """Strategy and settings of ``"NAME[:PRESET][,GROUP.NAME=VALUE …]"``."""
    strategy, *settings = (part.strip() for part in text.split(","))
    return strategy, settings


def measure(
    scenario: str, methods: Sequence[str], seeds: Sequence[int], folder: Path,
    data: str | None = None, sequence: str = "learn-only", per_class: int = 0, validation: int = 0,
    reference: str = "", model: str | None = None, settings: Callable[[list[str]], dict[str, Any]] = lambda pairs: {},
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """All figures, as plain values.

    :param methods: see :func:`parse_method`. :param folder: of the runs' folders.
    :param per_class: learn from so many training images a class, drawn with the seed; 0: from all.
    :param validation: judge by so many training images a class, drawn with the seed and not learned
        from, in place of the test images; 0: by the test images.
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
    reads = {}
    for (method, _), request in requests.items():  # complains now rather than after hours
        options = StrategyOptions.parse(request.strategy, request.forgetter, request.settings)
        reads[method] = _reads(request.strategy, options)
    streams = {
        "scenario": scenario, "data": None if data is None else str(Path(data).absolute()),
        "sequence": sequence, "per_class": per_class, "validation": validation,
        "model": str(Path(model).absolute()) if model and Path(model).exists() else model,
    }  # fmt: skip
    _keep_apart(folder, streams)
    encoded: dict[str, FeatureCache] = {}
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    weights: dict[str, str] = {}
    for (method, seed), request in requests.items():
        out = folder / f"{_slug(method)}-{seed}"
        if not (out / "summary.json").is_file():
            change = chosen_images(per_class, validation, seed) if per_class or validation else None
            begun = (out / "checkpoints").is_dir()  # cut short before that, it begins again
            run_scenario(
                request, out, resume=begun, overwrite=not begun,
                say=lambda line: None, encoded=encoded, change=change,
            )  # fmt: skip
        row = _row(json.loads((out / "summary.json").read_text()))
        weights[method] = _weights(out)
        rows[method].append(row)
        say(f"{method}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()))
    return {
        "scenario": scenario, "sequence": sequence, "seeds": list(seeds), "per_class": per_class,
        "validation": validation, "weights": weights, "reads": reads, "reference": reference,
        "rows": rows, "table": _table(rows, reference),
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


def _reads(strategy: str, options: StrategyOptions) -> str:
    """What a strategy learns from beside an experience's own data, in words."""
    entry, _ = find_strategy(strategy)
    if entry.reads == "everything":
        return "all data"
    if entry.reads is None and issubclass(HEADS.get(entry.posterior), OnePassHead):
        return "none"
    return str(options.memory.size)


def _weights(run: Path) -> str:
    """Name and tag of the model that a run began with."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    return f"{Path(str(config['model'])).name}, {config['pretrained']}"


def _slug(method: str) -> str:
    return "".join(c if c.isalnum() or c in ".-=" else "_" for c in method)


def _row(summary: dict[str, Any]) -> dict[str, float]:
    scores = (summary.get("novelty") or {}).get("scores", {})
    values = summary | {
        name: scores.get(NOVELTY, {}).get(name.removeprefix("novelty_")) for name in _DETECTION
    }
    found = {}
    for name in MEASURES:
        value = values.get(name)
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
    heads = ["method", "weights", "exemplars", *heads]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    order = sorted(
        found["table"].items(), key=lambda item: -item[1]["last_accuracy"]["value"]["mean"]
    )
    for method, cells in order:
        shown = [text(cells[n]["value"], 1 if n == "seconds" else 3) for n in MEASURES]
        for name in ("last_accuracy", "ece"):
            own = method == found["reference"]
            shown.append("reference" if own else text(cells[name]["difference"], 3, "+"))
        about = [f"`{method}`", found["weights"][method], found["reads"][method]]
        lines.append("| " + " | ".join(about + shown) + " |")
    return "\n".join(lines) + "\n"
