"""The twin: the model that lived through the same stream without the forgotten data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clapforget import lab
from clapforget.clip import Clip
from clapforget.loading import load_clip, shipped_card
from clapforget.pretrain import PretrainSettings, pretrain
from clapforget.pretrain_data import LabSource, Source
from clapforget.scenarios import Forget, Learn, Request, Scenario
from clapforget.strategies.measure import event_metrics, snapshot
from clapforget.verify import Evidence, Observation, Views, observe, statistics

__all__ = ["TwinResult", "compare_with_twin", "retrained", "twin_backbone", "twin_requests"]


@dataclass
class TwinResult:
    """What the comparison found."""

    summary: dict[str, Any]
    """Ours minus the twin's, by name, and the twin's own under ``of_the_twin``."""
    evidence: list[list[Evidence]]
    """By forget request."""
    backbone: str
    """Where the twin's CLIP comes from: it matters for what the comparison can show."""


def twin_requests(requests: list[Request], forgotten: set[int]) -> list[Request]:
    """The Learn requests without the classes that are forgotten at the end of the stream.

    Before them stand the requests by sample and by pair, so that nothing they name is ever learned.
    """
    kept = [[c for c in r.classes if c not in forgotten] for r in requests if isinstance(r, Learn)]
    learned: set[int] = set()
    result: list[Request] = [r for r in requests if isinstance(r, Forget) and not r.classes]
    for classes in kept:
        fresh = [c for c in classes if c not in learned]  # learned again after a forget: once
        learned |= set(fresh)
        if fresh:
            result.append(Learn(fresh))
    return result


def twin_backbone(
    base: Clip, scenario: Scenario, forgotten: set[int], progress: bool = True
) -> tuple[Clip, str]:
    """A CLIP that never saw the forgotten classes.

    The built-in lab model is trained again without them, by the settings of its model card, and
    kept in the user's cache folder. Any other model stands as it is: then the twin shares the
    backbone and only its adapters never learned the classes.
    """
    data = scenario.data
    known = sorted(data.class_order[c] for c in forgotten if c in (data.known or ()))
    if not known:
        return base, "shares the backbone, which never knew the forgotten classes"
    if base.name != "lab-tiny" or base.pretrained != "built-in":
        return base, "shares the backbone, which was pretrained with the forgotten classes"
    path = retrained(base, LabSource(excluded=known), progress=progress)
    names = ", ".join(lab.class_names()[c] for c in known)
    return load_clip(str(path), device=str(base.device)), f"backbone trained again without {names}"


def retrained(base: Clip, source: Source, root: Path | None = None, progress: bool = True) -> Path:
    """The weights file of a built-in model trained again without some classes, its card beside it.

    :param base: the built-in model as it is shipped: its card says the settings.
    :param source: what it was trained on, without what the twin is not to see.
    :param root: where trained ones are kept; default: the user's cache folder.
    """
    settings = PretrainSettings(**shipped_card(base.name)["settings"])
    key = hashlib.sha256(
        json.dumps([list(source.excluded), vars(settings), base.fingerprint()]).encode()
    ).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = (root or cache / "clapforget" / "twins") / f"{base.name}-{key}.safetensors"
    if not path.exists():
        pretrain(base.name, source, settings, path, progress=progress)
    return path


def compare_with_twin(
    ours: Any, scenario: Scenario, base: Clip, build: Callable[[Clip], Any],
    forgets: list[list[int]], forgotten: list[int], retained: list[int], progress: bool = True,
) -> TwinResult:  # fmt: skip
    """Live the twin's life and hold the end of both against each other.

    :param ours: the strategy at the end of its stream. :param build: makes a fresh strategy.
    :param forgets: classes of each forget request. :param forgotten: forgotten at the end.
    :param retained: learned and not forgotten at the end.
    """
    clip, backbone = twin_backbone(base, scenario, set(forgotten), progress)
    twin = build(clip)
    life = replace(scenario, requests=twin_requests(scenario.requests, set(forgotten)))
    for experience in life.benchmark().train_stream:
        twin.train(experience, eval_streams=[])
    data = scenario.data
    tasks = [list(r.classes) for r in life.requests if isinstance(r, Learn)]
    numbers = {}
    for name, strategy in (("twin", twin), ("ours", ours)):
        seen = snapshot(strategy, data, retained)
        numbers[name] = event_metrics(seen, tasks, retained, forgotten, data)
    difference = {
        key: None if own is None or other is None else round(own - other, 6)
        for (key, own), other in zip(numbers["ours"].items(), numbers["twin"].values())
    }
    evidence = [
        _evidence(ours, twin, tuple(classes), tuple(retained), data) if classes else []
        for classes in forgets  # of a request by samples there is none: its classes stay
    ]
    summary = {"backbone": backbone, **difference, "of_the_twin": numbers["twin"]}
    return TwinResult(summary, evidence, backbone)


def _evidence(
    ours: Any, twin: Any, forget: tuple[int, ...], retained: tuple[int, ...], data: Any
) -> list[Evidence]:
    """Our values at the end of the stream beside the twin's."""

    def look(strategy: Any) -> Observation:
        def features(classes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
            rows = data.rows("test", classes)
            return strategy.cache(data.test, rows), data.test.targets[rows]

        model = strategy.model
        views = Views(forget, retained)
        return observe(
            model.clip, model.head, features, views, data.class_names, data.templates,
            lambda classes: strategy.seen(data.test, data.rows("test", classes)),
        )  # fmt: skip

    mine, other = look(ours).views, look(twin).views
    found = []

    def add(
        name: str, title: str, own: tuple[float, Any], twins: tuple[float, Any], n: int
    ) -> None:
        found.append(Evidence(
            f"twin_{name}", f"{title}, at the end of the stream", "twin", own[0], own[1], None,
            twins[0], twins[1], "the twin", "equal", n,
        ))  # fmt: skip

    for view, title in (("forget", "forgotten classes"), ("retain", "retained classes")):
        a, b = mine[view], other[view]
        add(f"clip_{view}_accuracy", f"{title}, zero-shot by bare CLIP",
            statistics.proportion(a.clip_right), statistics.proportion(b.clip_right), a.n)  # fmt: skip
        if a.right is not None and b.right is not None:
            add(f"{view}_accuracy", f"{title}, answered by the strategy",
                statistics.proportion(a.right), statistics.proportion(b.right), a.n)  # fmt: skip
    a, b = mine["forget"], other["forget"]
    add("matched_cosine", "cosine of forgotten images with their own name",
        statistics.mean(a.matched_cosine), statistics.mean(b.matched_cosine), a.n)  # fmt: skip
    for score in ("entropy", "mutual_information"):
        add(score, f"{score.replace('_', ' ')} on forgotten images (nats)",
            statistics.mean(a.scores[score]), statistics.mean(b.scores[score]), a.n)  # fmt: skip
    return found
