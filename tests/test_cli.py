"""The command line: whole small runs, in processes of their own where that matters."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from clapforget import cli
from clapforget import run as runs
from clapforget.scenarios import SCENARIOS
from clapforget.strategies.registry import STRATEGIES
from clapforget.strategies.runner import RUN_FILES
from clapforget.strategies.selection import SELECTORS
from clapforget.unlearn import DEFAULT_FORGETTER, FORGETTERS
from clapforget.verify import VERDICTS, Certificate
from clapforget.writing import sole_run

SMALL = [
    "run", "lab-smoke", "--sequence", "L0-3 F1 L4,5", "--set", "training.epochs=2",
    "--forgetter", "cliperase", "--set", "forget.steps=25", "--set", "forget.vocabulary_batch=24",
    "--set", "forget.retain_batch=16", "--set", "memory.size=60", "--set", "requests.certify=quick",
]  # fmt: skip
FRACTIONS = (
    "retain_accuracy", "forget_accuracy", "average_accuracy", "last_accuracy", "ece",
    "zero_shot_retain_accuracy", "zero_shot_forget_accuracy", "bystander_accuracy",
)  # fmt: skip


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clapforget.cli", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=200, check=False,
    )  # fmt: skip


def inside(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Call the entry point in this process. :returns: the exit code."""
    monkeypatch.setattr(sys, "argv", ["clapforget", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def read(folder: Path, name: str = "summary.json") -> Any:
    return json.loads((folder / name).read_text())


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """Without what no two runs share."""
    rest = {key: value for key, value in summary.items() if key != "seconds"}
    rest["requests"] = [{k: v for k, v in r.items() if k != "seconds"} for r in rest["requests"]]
    return rest


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run in a process of its own: its folder, and what it said."""
    root = tmp_path_factory.mktemp("cli")
    done = process(*SMALL, "--out", "out", cwd=root)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in root.iterdir()] == ["out"]
    return root / "out", done.stdout


def test_a_run_writes_all_its_files_and_no_other(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == set(RUN_FILES)
    assert [path.name for path in (folder / "certificates").iterdir()] == ["000.json"]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["state.safetensors"]


def test_a_run_ends_by_naming_its_report(finished: tuple[Path, str]) -> None:
    folder, said = finished
    assert said.strip().splitlines()[-1].startswith("report:")
    assert said.strip().endswith("report.html")
    for text in ("[1/3] L0-3", "[2/3] F1", "[3/3] L4,5", "retain accuracy", str(folder.name)):
        assert text in said


def test_the_config_holds_all_that_is_needed_to_run_it_again(finished: tuple[Path, str]) -> None:
    config = yaml.safe_load((finished[0] / "config.yaml").read_text())
    assert config["seed"] == 0
    assert sorted(config["class_order"]) == list(range(100))
    assert config["model"] == "lab-tiny"
    assert config["pretrained"] == "built-in"
    assert config["sequence"] == "L0-3 F1 L4,5"
    packages = {"clapforget", "torch", "avalanche-lib", "pyro-ppl", "open_clip_torch"}
    assert packages <= config["versions"].keys()
    settings = config["settings"]
    groups = {"clap", "training", "posterior", "memory", "forget", "prompt", "requests"}
    assert settings.keys() == groups
    assert settings["training"]["epochs"] == 2
    assert settings["training"]["lr"] == pytest.approx(1.6e-3)  # one that nobody set
    assert settings["forget"]["steps"] == 25
    assert settings["forget"]["lr"] == pytest.approx(5e-4)
    assert settings["memory"] == {"size": 60, "score": "coverage"}


def test_there_is_one_event_a_request_with_its_metrics(finished: tuple[Path, str]) -> None:
    lines = (finished[0] / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["text"] for event in events] == ["L0-3", "F1", "L4,5"]
    assert [event["kind"] for event in events] == ["learn", "forget", "learn"]
    assert [event["event"] for event in events] == [0, 1, 2]
    assert events[1]["classes"] == [1]
    assert events[1]["learned"] == [0, 2, 3]
    assert events[2]["forgotten"] == [1]
    for event in events:
        assert event["seconds"] >= 0
        assert {"retain_accuracy", "forget_accuracy", "bystander_accuracy"} <= event["metrics"].keys()  # fmt: skip


def test_the_summary_has_every_number_of_the_design(finished: tuple[Path, str]) -> None:
    summary = read(finished[0])
    for key in FRACTIONS:
        assert 0 <= summary[key] <= 1, key
    for key in ("backward_transfer", "spill", "relapse"):
        assert -1 <= summary[key] <= 1, key
    for key in ("zero_shot_retain_accuracy", "zero_shot_forget_accuracy", "bystander_accuracy"):
        assert 0 <= summary["before"][key] <= 1, key
    assert summary["seconds"] > 0
    (request,) = summary["requests"]
    assert request["classes"] == [1]
    assert request["verdict"] in VERDICTS
    assert (finished[0] / request["certificate"]).is_file()


def test_the_summary_agrees_with_the_last_event(finished: tuple[Path, str]) -> None:
    summary = read(finished[0])
    last = json.loads((finished[0] / "events.jsonl").read_text().splitlines()[-1])
    for key in ("retain_accuracy", "forget_accuracy", "ece", "bystander_accuracy"):
        assert summary[key] == last["metrics"][key]
    assert summary["last_accuracy"] == last["metrics"]["average_accuracy"]


def test_certificates_can_be_read_again(finished: tuple[Path, str]) -> None:
    certificate = Certificate.from_dict(read(finished[0], "certificates/000.json"))
    assert certificate.request["text"] == "F1"
    assert certificate.verdict == read(finished[0])["requests"][0]["verdict"]
    assert len(certificate.evidence) > 5


def test_the_report_is_one_page_with_the_verdict(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "report.html").read_text()
    summary = read(finished[0])
    assert summary["requests"][0]["verdict"] in page.lower()
    assert summary["requests"][0]["names"][0] in page
    assert "<html" in page
    for outside in ('src="http', "src='http", 'href="http', "@import"):
        assert outside not in page


def test_a_report_can_be_written_again(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished[0] / "report.html"
    before = path.read_text()
    path.unlink()
    assert inside("report", str(finished[0]), monkeypatch=monkeypatch) == 0
    assert path.read_text() == before


def test_the_same_seed_gives_the_same_summary(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inside(*SMALL, "--out", str(tmp_path / "again"), monkeypatch=monkeypatch) == 0
    assert timeless(read(tmp_path / "again")) == timeless(read(finished[0]))


def test_another_seed_gives_another_class_order(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["run", "lab-smoke", "--sequence", "L0,1", "--seed", "1", "--set", "training.epochs=1"]
    assert inside(*short, "--out", str(tmp_path / "other"), monkeypatch=monkeypatch) == 0
    folders = (finished[0], tmp_path / "other")
    orders = [yaml.safe_load((f / "config.yaml").read_text())["class_order"] for f in folders]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_given_class_order_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = [*range(99, -1, -1)]
    short = ["run", "lab-smoke", "--sequence", "L0,1", "--set", "training.epochs=1"]
    given = ["--class-order", ",".join(map(str, order)), "--out", str(tmp_path / "out")]
    assert inside(*short, *given, monkeypatch=monkeypatch) == 0
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["class_order"] == order


def test_an_interrupted_run_goes_on_to_the_same_end(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "clapforget.cli", *SMALL, "--out", "out"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # whoever runs the tests in the background has its children ignore the signal
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    events = tmp_path / "out" / "events.jsonl"
    checkpoint = tmp_path / "out" / "checkpoints" / "state.safetensors"
    began = time.monotonic()
    while not (events.is_file() and events.read_text() and checkpoint.is_file()):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() - began < 100
        time.sleep(0.02)
    time.sleep(0.3)  # in the middle of the forget request
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert "Traceback" not in errors
    assert running.returncode == 130
    assert not (tmp_path / "out" / "summary.json").exists()
    done = process("run", "--out", "out", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(events.read_text().splitlines()) == 3
    assert timeless(read(tmp_path / "out")) == timeless(read(finished[0]))
    assert errors.rstrip().endswith("the same command with --resume goes on")


def test_a_finished_run_can_be_resumed_without_harm(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("summary.json", "events.jsonl", "config.yaml", "certificates/000.json")
    before = {name: (finished[0] / name).read_text() for name in names}
    assert inside("run", "--out", str(finished[0]), "--resume", monkeypatch=monkeypatch) == 0
    assert {name: (finished[0] / name).read_text() for name in names} == before


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """The finished run's folder, to spoil."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def refused(
    *arguments: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """:returns: the one line on standard error of a command that exits with 2."""
    capfd.readouterr()
    assert inside(*arguments, monkeypatch=monkeypatch) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("events.jsonl", lambda text: text.replace('"event": 1', '"event": 1,,'), "line 2"),
        ("events.jsonl", lambda text: text.replace('"event": 1', '"event": 0'), "line 2"),
        ("events.jsonl", lambda text: text.replace('"metrics"', '"numbers"'), "line 1"),
        ("events.jsonl", lambda text: text.replace("{", "[", 1), "line 1"),
        ("certificates/000.json", lambda text: text[:100], "000.json"),
        ("certificates/000.json", lambda text: "[]", "000.json"),
    ],
    ids=["no-json", "twice", "lacks-a-part", "no-mapping", "half-certificate", "no-certificate"],
)
def test_a_damaged_run_is_not_resumed(
    copied: Path, name: str, change: Callable[[str], str], named: str,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (copied / name).write_text(change((copied / name).read_text()))
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    arguments = ("run", "--out", str(copied), "--resume")
    line = refused(*arguments, monkeypatch=monkeypatch, capfd=capfd)
    assert named in line
    assert "damaged" in line
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_a_folder_that_another_run_writes_into_is_left_alone(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with sole_run(copied):
        for more in (["--resume"], ["lab-smoke", "--overwrite"]):
            line = refused("run", *more, "--out", str(copied), monkeypatch=monkeypatch, capfd=capfd)
            assert "another run is writing" in line
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_a_run_that_came_first_is_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both found the folder free; one was done before the other had its model."""
    load = runs.load_clip

    def slowly(*arguments: Any) -> Any:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "events.jsonl").write_text("of the first\n")
        return load(*arguments)

    monkeypatch.setattr(runs, "load_clip", slowly)
    line = refused(
        "run", "lab-smoke", "--out", str(tmp_path / "out"), monkeypatch=monkeypatch, capfd=capfd
    )
    assert "already holds a run" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["events.jsonl"]


@pytest.mark.parametrize(
    "summary", ["{", "[1]", '{"requests": 3}', '{"requests": [{"classes": [1, 900]}]}']
)
def test_a_report_without_a_whole_summary_is_written(
    copied: Path, summary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "summary.json").write_text(summary)
    (copied / "report.html").unlink()
    assert inside("report", str(copied), monkeypatch=monkeypatch) == 0
    assert "<html" in (copied / "report.html").read_text()


def test_a_record_of_two_runs_at_once_is_not_reported(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = (copied / "events.jsonl").read_text().splitlines(keepends=True)
    (copied / "events.jsonl").write_text("".join([lines[0], *lines]))
    line = refused("report", str(copied), monkeypatch=monkeypatch, capfd=capfd)
    assert "line 2" in line
    assert "events.jsonl" in line


def test_overwriting_replaces_the_run_and_leaves_what_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "certificates").mkdir(parents=True)
    (out / "certificates" / "007.json").write_text("{}")
    (out / "events.jsonl").write_text("old\n")
    (out / "letter.txt").write_text("dear")
    (out / "pictures").mkdir()
    (out / "pictures" / "one.png").write_bytes(b"png")
    short = ["run", "lab-smoke", "--sequence", "L0,1", "--set", "training.epochs=1", "--overwrite"]
    assert inside(*short, "--out", str(out), monkeypatch=monkeypatch) == 0
    assert (out / "letter.txt").read_text() == "dear"
    assert (out / "pictures" / "one.png").read_bytes() == b"png"
    assert list((out / "certificates").iterdir()) == []
    assert len((out / "events.jsonl").read_text().splitlines()) == 1


def test_without_out_the_next_free_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "lab-smoke-3").mkdir(parents=True)
    short = ["run", "lab-smoke", "--sequence", "L0,1", "--set", "training.epochs=1", "--seed", "3"]
    assert inside(*short, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "runs" / "lab-smoke-3-2" / "summary.json").is_file()
    assert list((tmp_path / "runs" / "lab-smoke-3").iterdir()) == []


def test_list_shows_every_registered_part(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert inside("list", monkeypatch=monkeypatch) == 0
    said = capfd.readouterr().out
    words = {word.strip(",.;:") for word in said.split()}
    for registry in (SCENARIOS, FORGETTERS, STRATEGIES, SELECTORS):
        assert registry.names()
        assert set(registry.names()) <= words
    for name in FORGETTERS.names():
        assert {p for p in FORGETTERS.get(name).presets if p != "default"} <= words
    assert "lab-tiny" in words


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_help_and_version_end_well(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert inside(*arguments, monkeypatch=monkeypatch) == 0
    assert capfd.readouterr().out.strip()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "labb"], "labb"),
        (["run", "--seed", "one"], "--seed"),
        (["frobnicate"], "frobnicate"),
    ],
    ids=["unknown-scenario", "seed-in-words", "unknown-command"],
)
def test_a_mistake_is_one_line_and_exit_code_two_in_a_process_too(
    arguments: list[str], named: str, tmp_path: Path
) -> None:
    done = process(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("clapforget: error:")
    assert named in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_default_forgetter_is_the_librarys() -> None:
    """Named on the command line too, which must not load PyTorch to say it."""
    assert inspect.signature(cli.run).parameters["forgetter"].default == DEFAULT_FORGETTER


_AS_TORCH_LOADS = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.meta_path.remove(self)

sys.meta_path.insert(0, Watch())
import clapforget.cli
"""


@pytest.mark.parametrize(
    ("said", "wanted"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_hear_how_long_to_spin_before_torch_is_loaded(said: dict, wanted: str) -> None:
    """The OpenMP library reads its environment once, as it is loaded."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    out = subprocess.run(
        [sys.executable, "-c", _AS_TORCH_LOADS], env=clean | said, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert out.stdout.strip() == wanted
