"""From what a user asked for to a finished run folder. The command line's working half."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from clapforget import lab
from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.features import FeatureCache
from clapforget.loading import load_clip
from clapforget.pretrain_data import FolderSource, LabSource, Source
from clapforget.report import build_report
from clapforget.report.load import load_run
from clapforget.scenarios import ImageData, Scenario, build_scenario, cifar100, folder
from clapforget.strategies.progress import ProgressPlugin
from clapforget.strategies.registry import StrategyOptions, find_strategy
from clapforget.strategies.runner import RUN_FILES, Run, clear_run
from clapforget.strategies.twin import compare_with_twin
from clapforget.unlearn import DEFAULT_FORGETTER
from clapforget.writing import check_writable, sole_run

__all__ = [
    "RunRequest",
    "check_device",
    "pretrain_source",
    "run_scenario",
    "write_report",
]


@dataclass(frozen=True)
class RunRequest:
    """A run as asked for on the command line; saved in config.yaml."""

    scenario: str = "lab"
    strategy: str = "clapforget"
    forgetter: str = DEFAULT_FORGETTER
    model: str | None = None
    pretrained: str | None = None
    data: str | None = None
    seed: int = 0
    sequence: str | None = None
    class_order: list[int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    twin: bool = False
    device: str = "cpu"


def run_scenario(
    request: RunRequest, out: Path | None, resume: bool, overwrite: bool,
    say: Callable[[str], None], encoded: dict[str, FeatureCache] | None = None,
    change: Callable[[Scenario], Scenario] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Check everything, run, report. :returns: the summary.

    :param encoded: features by image tower, filled here, so that the next run with the same tower
        need not encode them again. :param change: of the scenario, before it is lived through.
    :raises UserError: for any mistake, before anything is written or deleted.
    """
    out = _free_folder(request) if out is None else out
    asked, request = request, _check_folder(out, request, resume, overwrite)
    check_device(request.device)
    options = StrategyOptions.parse(request.strategy, request.forgetter, request.settings)
    scenario = build_scenario(
        request.scenario, request.data, request.seed, request.sequence, request.class_order
    )
    _check_memory(options, scenario)
    if change is not None:
        scenario = change(scenario)
    build = find_strategy(request.strategy)[0].build
    base, scenario = _model(request, scenario)
    strategy = build(base, options, request.seed)
    strategy.check_requests(scenario.requests)
    if encoded is not None:
        strategy.cache.share(encoded.setdefault(strategy.cache.tower, FeatureCache(base)))
    config = {
        **asdict(request), "model": base.name, "pretrained": base.pretrained,
        "settings": options.to_dict(), "request": asdict(request),
    }  # fmt: skip
    with sole_run(out), ProgressPlugin.on(strategy):
        if _check_folder(out, asked, resume, overwrite) != request:  # another run has been here
            raise UserError(f"the run in {out} has been replaced by another", "try again")
        if overwrite and not resume:
            clear_run(out)
        say(f"{scenario.name}: {scenario.sequence}\nmodel {base.name}, folder {out}")
        run = Run(out, scenario, strategy, base, config, say)
        summary = run.live()
        if request.twin:
            say("the twin lives through the same stream without the forgotten data")
            last = run.events[-1]
            forgets = [event["classes"] for event in run.events if event["kind"] == "forget"]
            twin = compare_with_twin(
                strategy, scenario, base, lambda clip: build(clip, options, request.seed),
                forgets, last["forgotten"], last["learned"],
            )  # fmt: skip
            summary = run.add_twin(twin)
        gone = {c for r in summary["requests"] for c in r["classes"]}
        page = build_report(out, *_pictures(scenario, gone))
    for line in [*_closing(summary), f"report: {page}"]:
        say(line)
    return summary


def write_report(out: Path, data: str | None = None) -> Path:
    """Write report.html again; without pictures where the data is not at hand.

    :raises UserError: if the folder holds no run.
    """
    request, run = _read_request(out), load_run(out)
    if request is None or not run.summary:
        return build_report(out)
    request = replace(request, data=data or request.data)
    try:
        scenario = build_scenario(
            request.scenario, request.data, request.seed, request.sequence, request.class_order
        )
    except UserError:  # the data has moved: the report says that it has no pictures
        return build_report(out)
    gone = {c for r in run.requests for c in r.classes if 0 <= c < scenario.data.num_classes}
    return build_report(out, *_pictures(scenario, gone))


def pretrain_source(source: str, data: Path | None, exclude: list[str]) -> tuple[str, Source]:
    """Default architecture and training images of a source.

    :param exclude: class names to leave out.
    :raises UserError: for an unknown source or class, or data that will not do.
    """
    if source == "lab":
        names = {name: label for label, name in enumerate(lab.class_names())}
        if unknown := [name for name in exclude if name not in names]:
            raise UserError(
                f"the lab has no class {unknown[0]!r}",
                f"its names are such as {', '.join(list(names)[:3])}",
            )
        return "lab-tiny", LabSource([names[name] for name in exclude])
    if source not in ("cifar100", "folder"):
        raise UserError(f"unknown source {source!r}", "choose lab, cifar100 or folder")
    if source == "folder" and data is None:
        raise UserError("source folder needs --data DIR", "name a folder with train/ and test/")
    images = cifar100(data) if source == "cifar100" else folder(data or "", size=32)
    excluded = [images.label_of(name) for name in exclude]
    return "cifar100-tiny", FolderSource.of(
        images, excluded, flip=images.flip or source == "folder"
    )


def check_device(device: str) -> None:
    """:raises UserError: if the device is unknown or absent."""
    try:
        torch.zeros(1, device=device).item()
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # each from torch, by backend
        raise UserError(
            f"device {device!r} is not available", "use cpu, or check the driver"
        ) from error


def _free_folder(request: RunRequest) -> Path:
    root = Path("runs")
    names = [f"{Path(request.scenario).name}-{request.seed}"]
    names += [f"{names[0]}-{i}" for i in range(2, 1000)]
    return next(root / name for name in names if not (root / name).exists())


def _read_request(out: Path) -> RunRequest | None:
    path = out / "config.yaml"
    if not path.is_file():
        return None
    damaged = UserError(f"{path} is damaged", "start again with --overwrite")
    try:
        values = yaml.safe_load(path.read_text())["request"]
        known = typing.get_type_hints(RunRequest)
        if set(values) != set(known):
            raise damaged
        whole = all(_is_a(values[name], hint) for name, hint in known.items())
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise damaged from error
    if not whole:
        raise damaged
    return RunRequest(**values)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value from a file is of one of the types of a field's annotation."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return any(isinstance(value, typing.get_origin(kind) or kind) for kind in kinds)


def _check_folder(out: Path, request: RunRequest, resume: bool, overwrite: bool) -> RunRequest:
    """What to run: the request, or the one that the folder's run was started with."""
    check_writable(out, folder=True)
    present = [name for name in RUN_FILES if (out / name).exists()]
    if resume:
        saved = _read_request(out)
        if saved is None:
            raise UserError(f"{out} holds no run to resume", "leave out --resume")
        return replace(saved, data=request.data or saved.data, device=request.device)
    if present and not overwrite:
        raise UserError(
            f"{out} already holds a run ({present[0]})",
            "add --resume or --overwrite, or choose another --out",
        )
    return request


def _model(request: RunRequest, scenario: Scenario) -> tuple[Clip, Scenario]:
    """The model, and the scenario with what is known of that model's pretraining."""
    name = request.model or scenario.model
    own = name == scenario.model and request.pretrained is None
    pretrained = scenario.pretrained if own else request.pretrained
    clip = load_clip(name, pretrained, request.device)
    if clip.name != scenario.model:  # what the built-in model knows says nothing of this one
        scenario = replace(scenario, data=replace(scenario.data, known=None))
    return clip, scenario


def _check_memory(options: StrategyOptions, scenario: Scenario) -> None:
    learned = {c for r in scenario.requests if r.kind == "learn" for c in r.classes}
    if options.memory.size < len(learned):
        raise UserError(
            f"a memory of {options.memory.size} exemplars cannot hold one of each of {len(learned)} classes",
            f"use --set memory.size={len(learned) * 5} or more",
        )


def _pictures(scenario: Scenario, gone: set[int]) -> tuple[dict[int, Any], dict[int, list[int]]]:
    """Test images of the forgotten classes and of some neighbours, for the report."""
    data: ImageData = scenario.data
    learned = {c for r in scenario.requests for c in r.classes}
    neighbours = {c: [n for n in data.neighbours([c]) if n in learned][:5] for c in sorted(gone)}
    shown = gone | {n for near in neighbours.values() for n in near}
    pictures = {
        c: data.test.images(data.rows("test", [c])[:4]).permute(0, 2, 3, 1).numpy()
        for c in sorted(shown)
    }
    return pictures, neighbours


def _closing(summary: dict[str, Any]) -> list[str]:
    def percent(key: str) -> str:
        value, was = summary.get(key), summary["before"].get(key)
        text = "–" if value is None else f"{value:.1%}"
        return text if was is None else f"{text} (before the stream {was:.1%})"

    rows = [
        ("retain accuracy", "retain_accuracy"), ("forget accuracy", "forget_accuracy"),
        ("average accuracy", "average_accuracy"), ("last accuracy", "last_accuracy"),
        ("zero-shot, retained", "zero_shot_retain_accuracy"),
        ("zero-shot, retained and known", "zero_shot_retain_known_accuracy"),
        ("zero-shot, forgotten", "zero_shot_forget_accuracy"), ("zero-shot, bystanders", "bystander_accuracy"),
    ]  # fmt: skip
    lines = [f"  {title:30} {percent(key)}" for title, key in rows]
    lines += [
        f"  {r['text']:30} {r['verdict'] or 'not examined'}"
        + (f" ({', '.join(r['names'])})" if r["names"] else "")
        for r in summary["requests"]
    ]
    return ["", *lines, ""]
