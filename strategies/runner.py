"""Live through a scenario and write down everything: the run folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.scenarios import Scenario, unseen_classes
from clapforget.strategies.certify import package_versions
from clapforget.strategies.checkpoint import load_checkpoint, save_checkpoint
from clapforget.strategies.measure import (
    Snapshot,
    event_metrics,
    snapshot,
    stream_metrics,
    summarise,
)
from clapforget.strategies.novelty import novelty
from clapforget.strategies.request_tasks import request_tasks
from clapforget.strategies.twin import TwinResult
from clapforget.verify import Certificate
from clapforget.writing import write_json, write_text

__all__ = ["RUN_FILES", "Run", "clear_run"]

RUN_FILES = (
    "config.yaml",
    "events.jsonl",
    "summary.json",
    "report.html",
    "certificates",
    "checkpoints",
)
"""What a run writes into its folder; nothing else there is touched."""
_NEEDED = {"event", "kind", "text", "classes", "names", "seconds", "learned", "forgotten",
           "metrics", "accuracy"}  # fmt: skip


def clear_run(folder: Path) -> None:
    """Delete a run's own files and folders, and nothing else."""
    for name in RUN_FILES:
        path = folder / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


class Run:
    """One scenario, one strategy, one output folder."""

    def __init__(
        self, folder: Path, scenario: Scenario, strategy: Any, base: Clip, config: dict[str, Any],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        """:param base: the model at the start (the strategy works on a copy).
        :param config: what the user asked for; completed here and written to config.yaml.
        :param say: receives a readable line an event.
        """
        self.folder, self.scenario, self.strategy, self.base = folder, scenario, strategy, base
        self.say = say
        data = scenario.data
        self.config = {
            **config,
            "scenario": scenario.name, "sequence": scenario.sequence,
            "class_order": list(data.class_order), "class_names": list(data.class_names),
            "known": None if data.known is None else sorted(data.known),
            "unseen": list(unseen_classes(data, scenario.requests)),
            "data_fingerprint": data.train.fingerprint, "versions": package_versions(),
        }  # fmt: skip
        self.events: list[dict[str, Any]] = []
        self.checkpoint = folder / "checkpoints" / "state.safetensors"

    def live(self) -> dict[str, Any]:
        """Run from the start, or from the checkpoint. :returns: the summary."""
        data = self.scenario.data
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "certificates").mkdir(exist_ok=True)
        start = snapshot(self.strategy, data, [])
        done = load_checkpoint(self.checkpoint, self.strategy, self.base)
        self._take_up(done)
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        write_text(self.folder / "config.yaml", text)
        stream = self.scenario.benchmark().train_stream
        for index, experience in enumerate(stream):
            if index >= done:
                self._live_through(index, len(stream), experience)
        summary = self._summary(start)
        write_json(self.folder / "summary.json", summary)
        return summary

    def _take_up(self, done: int) -> None:
        """Read the events before the checkpoint; drop what an interruption left behind it."""
        path = self.folder / "events.jsonl"
        lines = _lines(path)[:done] if done and path.exists() else []
        if len(lines) < done:
            raise UserError(f"{path} has lost events", "start again with --overwrite")
        self.events = [_event(path, number, line) for number, line in enumerate(lines)]
        path.write_text("".join(line + "\n" for line in lines))
        forgets = sum(event["kind"] == "forget" for event in self.events)
        for certificate in sorted((self.folder / "certificates").glob("*.json")):
            if not certificate.stem.isdecimal():
                continue  # not ours
            if int(certificate.stem) >= forgets:
                certificate.unlink()
            else:
                self.strategy.certificates.append(_certificate(certificate))

    def _live_through(self, index: int, total: int, experience: Any) -> None:
        data, forget = self.scenario.data, experience.kind == "forget"
        tasks_before = request_tasks(self.strategy, experience) if forget else None
        began = time.monotonic()
        self.strategy.train(experience, eval_streams=[])
        seconds = time.monotonic() - began
        retained, forgotten = list(experience.learned_classes), list(experience.forgotten_classes)
        seen = snapshot(self.strategy, data, retained)
        future = [
            c
            for r in self.scenario.requests[experience.request_index + 1 :]
            if r.kind == "learn"
            for c in r.classes
        ]
        touched = sorted(set(experience.dataset.targets)) if forget else []
        tasks = [event["classes"] for event in self.events if event["kind"] == "learn"]
        tasks += [] if forget else [list(experience.classes)]
        event = {
            "event": index, "kind": experience.kind, "text": experience.title,
            "classes": list(experience.classes),
            "names": [data.class_names[c] for c in experience.classes or touched],
            "aimed_at": touched if forget and experience.request.pairs else [],
            "seconds": round(seconds, 2), "learned": retained, "forgotten": forgotten,
            "metrics": event_metrics(seen, tasks, retained, forgotten, data),
            "accuracy": _table(seen), "reliability": seen.reliability,
            "novelty": None if forget else novelty(self.strategy, data, retained, future),
            "forget": self.strategy.last_forgetting if forget else None,
            "tasks": {"before": tasks_before, "after": request_tasks(self.strategy, experience)}
            if forget else None,
        }  # fmt: skip
        event["metrics"] |= stream_metrics(self.events, event)
        written = self.strategy.certificates[-1:] if forget else []
        for certificate in written:
            number = sum(e["kind"] == "forget" for e in self.events)
            self._save_certificate(number, certificate)
        self.events.append(event)
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")
        save_checkpoint(self.checkpoint, self.strategy, self.base, index + 1)
        self.say(_line(event, index, total, *written))

    def _save_certificate(self, number: int, certificate: Certificate) -> None:
        certificate.save(self.folder / "certificates" / f"{number:03d}.json")

    def _summary(self, start: Snapshot) -> dict[str, Any]:
        summary = summarise(self.events, start, self.scenario.data)
        forgets = [event for event in self.events if event["kind"] == "forget"]
        written = self.strategy.certificates
        requests = [
            {
                "text": event["text"], "classes": event["classes"], "names": event["names"],
                "verdict": written[number].verdict if written else None,
                "seconds": event["seconds"],
                "certificate": f"certificates/{number:03d}.json" if written else None,
            }
            for number, event in enumerate(forgets)
        ]  # fmt: skip
        seconds = round(sum(event["seconds"] for event in self.events), 2)
        return {**summary, "seconds": seconds, "requests": requests, "twin": None}

    def add_twin(self, twin: TwinResult) -> dict[str, Any]:
        """Put a twin's evidence into the certificates and its differences into the summary."""
        for number, (certificate, evidence) in enumerate(
            zip(self.strategy.certificates, twin.evidence)
        ):
            certificate.evidence = [e for e in certificate.evidence if e.group != "twin"] + evidence
            certificate.reference = f"{certificate.reference}; twin ({twin.backbone})"
            self._save_certificate(number, certificate)
        path = self.folder / "summary.json"
        summary = {**json.loads(path.read_text()), "twin": twin.summary}
        write_json(path, summary)
        return summary


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise _damaged(str(path)) from error


def _event(path: Path, number: int, line: str) -> dict[str, Any]:
    """The event of a line; what a run goes on from has to be whole and in its place."""
    where = f"{path}, line {number + 1},"
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _damaged(where) from error
    if not isinstance(event, dict) or not event.keys() >= _NEEDED or event["event"] != number:
        raise _damaged(where)
    return event


def _certificate(path: Path) -> Certificate:
    try:
        return Certificate.from_dict(json.loads(path.read_text()))
    except (ValueError, RecursionError) as error:  # a UserError among them, without the path
        raise _damaged(str(path)) from error


def _damaged(what: str) -> UserError:
    return UserError(f"{what} is damaged", "start again with --overwrite")


def _table(seen: Snapshot) -> dict[str, dict[str, float]]:
    return {
        "strategy": {str(c): round(a, 6) for c, a in seen.strategy.items()},
        "clip": {str(c): round(a, 6) for c, a in seen.clip.items()},
    }


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _line(
    event: dict[str, Any], index: int, total: int, certificate: Certificate | None = None
) -> str:
    m = event["metrics"]
    numbers = f"retained {_percent(m['retain_accuracy'])}"
    if event["forgotten"]:
        numbers += f", forgotten {_percent(m['forget_accuracy'])} (CLIP {_percent(m['zero_shot_forget_accuracy'])})"
    if m["bystander_accuracy"] is not None:
        numbers += f", bystanders {_percent(m['bystander_accuracy'])}"
    names = ", ".join(event["names"]) if event["kind"] == "forget" else ""
    what = event["text"] + (f" ({names})" if names else "")
    verdict = f": {certificate.verdict.upper()}" if certificate else ""
    return f"[{index + 1}/{total}] {what}{verdict}  {event['seconds']:.0f} s; {numbers}"
