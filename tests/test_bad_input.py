"""A user's mistake ends with one line that names it, exit code 2, and nothing written or lost.

Every case goes through the entry point of the command line. Most run in this process, for speed;
``test_cli.py`` shows that a process of its own behaves alike.
"""

# ruff: noqa: E501 - a case of the tables stays on one line

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import clapforget.loading
import clapforget.run  # now, not in the first case: plotting libraries write caches
from clapforget import cli
from clapforget.run import RunRequest

WEIGHTS = Path(clapforget.loading.__file__).parent / "weights"
CLASSES = ("ant", "bee", "cow", "dog")


# ---- the world of a case -------------------------------------------------------------------
def image_file(path: Path, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(str(path.name).encode()).digest()[:4], "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def class_folders(root: Path) -> Path:
    for name in CLASSES:
        for split in ("train", "test"):
            for i in range(2):
                image_file(root / split / name / f"{name}{split}{i}.png")
    return root


def a_run(folder: Path) -> Path:
    """A folder as an interrupted run leaves it, without having lived through one."""
    folder.mkdir(parents=True)
    request = asdict(RunRequest("lab-smoke", sequence="L0,1 L2", settings={"training.epochs": 1}))
    config = {"scenario": "lab-smoke", "seed": 0, "request": request, "versions": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "events.jsonl").write_text("")
    (folder / "certificates").mkdir()
    (folder / "checkpoints").mkdir()
    state = WEIGHTS / "lab-tiny.safetensors"
    (folder / "checkpoints" / "state.safetensors").write_bytes(state.read_bytes()[:20_000])
    return folder


@dataclass
class World:
    """What a case may name on its command line; everything lies under one folder."""

    root: Path

    def __post_init__(self) -> None:
        self.out = self.root / "out"
        self.data = class_folders(self.root / "data")

    def broken_data(self, spoil: Callable[[Path], None]) -> Path:
        spoil(self.data)
        return self.data

    def file(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.write_bytes(content)
        return path


def listing(root: Path) -> dict[str, str]:
    """Every file and folder below, with a hash of its contents."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLAPFORGET_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return World(tmp_path)


Arguments = Callable[[World], list[str]]


def fail(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """Call the entry point. :returns: its one line on standard error."""
    monkeypatch.setattr(sys, "argv", ["clapforget", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    errors = capfd.readouterr().err
    assert stop.value.code == 2, errors
    check_message(errors)
    return errors


def check_message(errors: str) -> None:
    assert "Traceback" not in errors
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("clapforget: error:")


VERIFY = [
    "verify", "--before", "lab-tiny", "--after", "lab-tiny", "--request", "F0", "--data", "lab",
    "--level", "quick",
]  # fmt: skip


# ---- the cases -----------------------------------------------------------------------------
def run(*arguments: str, scenario: str = "folder") -> Arguments:
    """``clapforget run`` on a small folder of images, with the built-in model."""

    def build(world: World) -> list[str]:
        data = ["--data", str(world.data), "--model", "lab-tiny"] if scenario == "folder" else []
        return ["run", scenario, "--out", str(world.out), *data, *arguments]

    return build


def on_lab(*arguments: str) -> Arguments:
    return run(*arguments, scenario="lab-smoke")


def settings(text: str) -> Arguments:
    return run("--set", text)


def sequence(text: str) -> Arguments:
    return run("--sequence", text)


Case = tuple[str, Arguments, tuple[str, ...]]
"""Its name, its arguments, and what the message must name."""

PARTS: list[Case] = [
    ("scenario", lambda w: ["run", "labb", "--out", str(w.out)], ("scenario", "labb")),
    ("forgetter", run("--forgetter", "cliperaser"), ("forgetter", "cliperaser")),
    ("preset", run("--forgetter", "cliperase:publish"), ("preset", "publish")),
    ("preset of nothing", run("--forgetter", "nothing:strong"), ("nothing", "strong")),
    ("model", lambda w: [*run()(w), "--model", "lab-tinny"], ("model", "lab-tinny")),
    ("strategy", run("--strategy", "clapforgot"), ("strategy", "clapforgot")),
    ("score", settings("memory.score=mutual"), ("score", "mutual")),
    ("group", settings("train.epochs=2"), ("train.epochs",)),
    ("setting", settings("training.epoch=2"), ("epoch", "training")),
    ("setting of a forgetter", settings("forget.learning_rate=2"), ("learning_rate", "stranger")),
    ("no group", settings("epochs=2"), ("epochs",)),
    ("text for a number", settings("training.epochs=many"), ("epochs", "many")),
    ("fraction for a whole number", settings("training.epochs=2.5"), ("epochs", "2.5")),
    ("true for a number", settings("training.lr=true"), ("lr", "number")),
    (
        "number for a choice",
        run("--forgetter", "cliperase", "--set", "forget.forgetting=3"),
        ("forgetting", "3"),
    ),
    ("unknown choice", settings("clap.context=all"), ("context", "all")),
    ("a list", settings("training.epochs=[1, 2]"), ("epochs",)),
    ("no value", settings("training.epochs="), ("epochs",)),
    ("no equals sign", settings("training.epochs"), ("training.epochs",)),
    ("no yaml", settings("training.epochs=[1"), ("training.epochs",)),
    ("no epoch", settings("training.epochs=0"), ("epochs", "0")),
    ("negative batch", settings("training.batch_size=-4"), ("batch_size", "-4")),
    ("no sample", settings("clap.samples=0"), ("samples", "0")),
    ("not a number", settings("training.lr=.nan"), ("lr", "nan")),
    ("negative steps of a forgetter", settings("forget.steps=-5"), ("steps", "-5")),
    (
        "empty forget batch",
        run("--forgetter", "cliperase", "--set", "forget.forget_batch=0"),
        ("forget_batch", "0"),
    ),
    ("heads that do not divide the width", settings("clap.heads=3"), ("heads", "3")),
    ("dropout of more than all", settings("clap.dropout=2"), ("clap.dropout=2", "below 1")),
    ("random features without room", run("--strategy", "ranpac", "--set", "ranpac.features=10000000"), ("ranpac.features", "at most 20000")),
    ("score of draws without draws", run("--set", "memory.score=variance_of_entropy", "--set", "clap.uncertainty=closed-form"),
        ("variance_of_entropy", "draws")),
    ("text for a number or none", run("--strategy", "exact", "--set", "exact.strength=many"), ("strength", "many", "number")),
    ("samples without end", settings("clap.samples=1000000000000"), ("samples", "at most 10000")),
    ("strangers without end", settings("forget.strangers=1000000000000"), ("strangers", "at most 4096")),
    ("features without end", run("--strategy", "exact", "--set", "exact.features=1000000000000"), ("features", "at most 20000")),
    ("random features without end", run("--strategy", "loranpac", "--set", "loranpac.features=1000000000000"), ("features", "at most")),
    ("prompt without end", run("--strategy", "coop", "--set", "prompt.length=1000000000000"), ("length", "at most 1000")),
    ("memory of none", settings("memory.size=0"), ("memory", "0")),
    ("memory too small", settings("memory.size=3"), ("memory", "3")),
    ("device", run("--device", "gpu"), ("device", "gpu")),
    ("absent device", run("--device", "cuda:77"), ("device", "cuda:77")),
    ("a device without numbers", run("--device", "meta"), ("device", "meta")),
]  # fmt: skip

COMMANDS: list[Case] = [
    ("negative seed", run("--seed", "-1"), ("seed", "-1")),
    ("seed in words", run("--seed", "one"), ("--seed",)),
    ("seed too large", on_lab("--seed", "9223372036854775808000"), ("seed", "4294967295")),
    ("seed a little too large", on_lab("--seed", "4294967296"), ("seed", "4294967295")),
    ("seed of verify", lambda w: [*VERIFY, "--seed", "4294967296"], ("seed", "4294967295")),
    (
        "seed of pretrain",
        lambda w: ["pretrain", "lab", "--out", "w.safetensors", "--seed", "4294967296"],
        ("seed", "4294967295"),
    ),
    (
        "seed of a bench",
        lambda w: [
            "bench",
            "methods",
            "lab",
            "--method",
            "zero-shot",
            "--out",
            str(w.out),
            "--seeds",
            "0,-1",
        ],
        ("seed", "-1"),
    ),
    (
        "seed of the truth bench",
        lambda w: ["bench", "verify", "--seeds", "4294967296"],
        ("seed", "4294967295"),
    ),
    (
        "kind of the truth bench",
        lambda w: ["bench", "verify", "--kind", "nothin done"],
        ("nothin done", "nothing done"),
    ),
    (
        "kinds of the truth bench on CIFAR-100",
        lambda w: ["bench", "verify", "--scenario", "cifar100", "--kind", "nothing"],
        ("--kind", "--scenario"),
    ),
    (
        "a folder as a bench's file",
        lambda w: ["bench", "learn", "--quick", "--json", str(w.data)],
        ("--json", "folder"),
    ),
    ("unknown option", run("--speed", "9"), ("--speed",)),
    ("unknown command", lambda w: ["forget", str(w.out)], ("forget",)),
    ("option without value", lambda w: ["run", "--out"], ("--out",)),
    ("too many arguments", lambda w: ["run", "lab", "lab", "--out", str(w.out)], ("lab",)),
    ("unknown option of report", lambda w: ["report", str(w.out), "--pictures"], ("--pictures",)),
]

SEQUENCES: list[Case] = [
    ("unknown letter", sequence("L0-1 X3"), ("X3",)),
    ("backwards", sequence("L3-0"), ("3-0",)),
    ("letter only", sequence("L"), ("'L'",)),
    ("forget letter only", sequence("L0-3 F"), ("'F'",)),
    ("empty", sequence(""), ("sequence", "empty")),
    ("blank", sequence("   "), ("sequence", "empty")),
    ("two commas", sequence("L0-1,,3"), ("L0-1,,3",)),
    ("twice in one request", sequence("L0,1,0"), ("twice", "0")),
    ("no class of that number", sequence("L0-4"), ("class 4", "4 classes")),
    ("no class of that number in the lab", on_lab("--sequence", "L0-500"), ("class 100", "100 classes")),
    ("huge range", sequence("L0-999999999"), ("0-999999999",)),
    ("an unseen class", on_lab("--sequence", "L0-3 F95"), ("class 95", "never learned")),
    ("to learn for now, and no head that can", on_lab("--sequence", "L0,1 N2"), ("for now", "--strategy exact")),
    ("to forget below a global latent", on_lab("--sequence", "L0,1 F0", "--set", "clap.hierarchical=true"),
     ("clap.hierarchical=true", "cannot forget")),
    ("all classes", sequence("L0-3 F0-3"), ("F0-3", "no learned class")),
    ("all classes in two steps", sequence("L0-1 F0 F1"), ("F1", "no learned class")),
    ("learned twice", sequence("L0-3 L2"), ("class 2", "learned already")),
    ("order with a class missing", run("--class-order", "0,1,2"), ("class order", "3 entries")),
    ("order with a class twice", run("--class-order", "0,1,2,2"), ("class order",)),
    ("order with a class too many", run("--class-order", "0,1,2,4"), ("class order",)),
    ("order of words", run("--class-order", "ant,bee"), ("ant,bee",)),
    ("empty order", run("--class-order", ""), ("class-order",)),
]  # fmt: skip


def at(path: str, content: bytes) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / path).write_bytes(content)

    return spoil


def truncate(root: Path) -> None:
    path = next((root / "train" / "bee").iterdir())
    path.write_bytes(path.read_bytes()[:300])


def empty(path: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        shutil.rmtree(root / path)
        (root / path).mkdir()

    return spoil


def spoiled(spoil: Callable[[Path], None]) -> Arguments:
    def build(world: World) -> list[str]:
        world.broken_data(spoil)
        return run()(world)

    return build


DATA: list[Case] = [
    ("no data", lambda w: ["run", "folder", "--out", str(w.out)], ("--data",)),
    ("missing folder", lambda w: ["run", "folder", "--data", str(w.root / "absent"), "--out", str(w.out)], ("absent", "not exist")),
    ("a file", lambda w: ["run", "folder", "--data", str(w.file("notes.txt", b"a")), "--out", str(w.out)], ("notes.txt", "file")),
    ("data for the lab", on_lab("--data", "anything"), ("anything", "lab-smoke")),
    ("no cifar", lambda w: ["run", "cifar100", "--out", str(w.out)], ("CIFAR-100", "--data")),
    ("a folder that is no cifar", lambda w: ["run", "cifar100", "--data", str(w.data), "--out", str(w.out)], ("CIFAR-100",)),
    ("empty folder", spoiled(empty(".")), ("data", "train/")),
    ("no class in train", spoiled(empty("train")), ("train", "no class folder")),
    ("a class without images", spoiled(empty("train/cow")), ("cow", "no image")),
    ("a class without test images", spoiled(lambda root: shutil.rmtree(root / "test/dog")), ("dog", "test")),
    ("one class", spoiled(lambda root: [shutil.rmtree(root / s / c) for s in ("train", "test") for c in CLASSES[1:]] and None), ("one class",)),
    ("text beside images", spoiled(at("train/ant/readme.md", b"hello")), ("readme.md", "no image")),
    ("text called image", spoiled(at("train/ant/fake.png", b"hello")), ("fake.png", "no image")),
    ("an empty file", spoiled(at("test/ant/none.png", b"")), ("none.png",)),
    ("a truncated image", spoiled(truncate), ("bee", "truncated")),
]  # fmt: skip


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


def weights(name: str, content: Callable[[World], bytes], model: str = "lab-tiny") -> Arguments:
    def build(world: World) -> list[str]:
        path = world.file(name, content(world))
        return [*run()(world), "--model", model, "--pretrained", str(path)]

    return build


def other_tensors(world: World) -> bytes:
    save_file({"a.weight": torch.zeros(3, 3)}, world.root / "other.safetensors")
    return (world.root / "other.safetensors").read_bytes()


def one_tensor_less(world: World) -> bytes:
    state = load_file(WEIGHTS / "lab-tiny.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, world.root / "less.safetensors")
    return (world.root / "less.safetensors").read_bytes()


def evil(world: World) -> bytes:
    return pickle.dumps({"state_dict": Evil(world.root / "executed")})


def evil_zip(world: World) -> bytes:
    torch.save({"state_dict": Evil(world.root / "executed")}, world.root / "made.bin")
    return (world.root / "made.bin").read_bytes()


TINY = (WEIGHTS / "lab-tiny.safetensors").read_bytes()
MODELS: list[Case] = [
    ("missing weights", run("--pretrained", "absent.safetensors"), ("absent.safetensors", "not exist")),
    ("missing model file", lambda w: [*run()(w), "--model", "absent.safetensors"], ("absent.safetensors", "not exist")),
    ("truncated weights", weights("half.safetensors", lambda w: TINY[: len(TINY) // 2]), ("half.safetensors", "truncated")),
    ("a few bytes of weights", weights("few.safetensors", lambda w: TINY[:5]), ("few.safetensors",)),
    ("weights of another model", weights("big.safetensors", lambda w: (WEIGHTS / "cifar100-tiny.safetensors").read_bytes()), ("big.safetensors", "cifar100-tiny")),
    ("weights of something else", weights("strange.safetensors", other_tensors), ("strange.safetensors",)),
    ("weights with a tensor missing", weights("part.safetensors", one_tensor_less), ("part.safetensors",)),
    ("a model file of no known architecture", lambda w: [*run()(w), "--model", str(w.file("anon.safetensors", other_tensors(w)))], ("anon.safetensors", "architecture")),
    ("garbage", weights("noise.pt", lambda w: bytes(range(256)) * 40), ("noise.pt",)),
    ("an empty file", weights("empty.pt", lambda w: b""), ("empty.pt",)),
    ("text", weights("text.bin", lambda w: b"hello, world"), ("text.bin",)),
    ("a pickle that runs code", weights("evil.pt", evil), ("evil.pt",)),
    ("a torch file that runs code", weights("evil.bin", evil_zip), ("evil.bin",)),
    ("a folder as weights", lambda w: [*run()(w), "--pretrained", str(w.data)], ("data",)),
    ("no pretrained tag", lambda w: [*run()(w), "--model", "RN50"], ("RN50", "--pretrained")),
    ("unknown tag", lambda w: [*run()(w), "--model", "RN50", "--pretrained", "laion400m"], ("RN50", "laion400m")),
]  # fmt: skip


def resumed(spoil: Callable[[Path], None]) -> Arguments:
    def build(world: World) -> list[str]:
        spoil(a_run(world.out))
        return ["run", "--out", str(world.out), "--resume"]

    return build


def config(content: str) -> Arguments:
    return resumed(lambda out: (out / "config.yaml").write_text(content) and None)


def in_a_run(*arguments: str) -> Arguments:
    def build(world: World) -> list[str]:
        a_run(world.out)
        return run(*arguments)(world)

    return build


def without_a_run(*arguments: str) -> Arguments:
    def build(world: World) -> list[str]:
        world.out.mkdir()
        (world.out / "letter.txt").write_text("dear")
        return [a.replace("OUT", str(world.out)) for a in arguments]

    return build


def out_is_a_file(*arguments: str) -> Arguments:
    def build(world: World) -> list[str]:
        world.out.write_text("a letter")
        return [*run()(world), *arguments]

    return build


def cut_config(out: Path) -> None:
    """Cut off in the middle of the request, where it is still a mapping of known names."""
    path = out / "config.yaml"
    path.write_text(path.read_text().split("  sequence:", maxsplit=1)[0])


FOLDERS: list[Case] = [
    ("a run is there", in_a_run(), ("out", "already holds a run")),
    ("only a report is there", lambda w: (w.out.mkdir(), (w.out / "report.html").write_text("x")) and run()(w), ("report.html",)),
    ("overwriting with a mistake", in_a_run("--overwrite", "--sequence", "L0 X"), ("'X'",)),
    ("overwriting with too small a memory", in_a_run("--overwrite", "--set", "memory.size=2"), ("memory",)),
    ("overwriting with bad weights", in_a_run("--overwrite", "--pretrained", "absent.pt"), ("absent.pt",)),
    ("resume without a run", without_a_run("run", "--out", "OUT", "--resume"), ("out", "no run to resume")),
    ("resume without a folder", lambda w: ["run", "--out", str(w.out), "--resume"], ("no run to resume",)),
    ("out is a file", out_is_a_file(), ("out", "file")),
    ("out is a file, overwritten", out_is_a_file("--overwrite"), ("out", "file")),
    ("out below a file", lambda w: [*run()(w), "--out", str(w.file("letter", b"a") / "x")], ("letter",)),
    ("out that the system keeps", run("--out", "/proc/nowrite"), ("/proc/nowrite", "cannot be written")),
    ("out of 300 characters", run("--out", "x" * 300), ("xxx", "cannot be written", "too long")),
    ("out of no characters", run("--out", ""), ("--out", "empty")),
    ("data of no characters", run("--data", ""), ("--data", "empty")),
    ("certificate that cannot be written", lambda w: [*VERIFY, "--out", "/proc/c.json"], ("/proc/c.json", "cannot be written")),
    ("certificate of no name", lambda w: [*VERIFY, "--out", ""], ("--out", "empty")),
    ("certificate in place of a folder", lambda w: [*VERIFY, "--out", str(w.data)], ("data", "folder")),
    ("weights that cannot be written", lambda w: ["pretrain", "lab", "--out", "/proc/w.safetensors"], ("/proc/w.safetensors", "cannot be written")),
    ("config of garbage", config("\x00\x01{{{"), ("config.yaml", "damaged")),
    ("empty config", config(""), ("config.yaml", "damaged")),
    ("config of a word", config("hello"), ("config.yaml", "damaged")),
    ("config without request", config("scenario: lab\n"), ("config.yaml", "damaged")),
    ("config with a strange request", config("request:\n  colour: red\n"), ("config.yaml", "damaged")),
    ("config with a seed in words", config("request:\n  scenario: lab-smoke\n  seed: one\n"), ("config.yaml",)),
    ("config with settings that are a list", config("request:\n  scenario: lab-smoke\n  settings: [1]\n"), ("config.yaml",)),
    ("config cut off in its request", resumed(cut_config), ("config.yaml", "damaged")),
    ("truncated checkpoint", resumed(lambda out: None), ("state.safetensors", "damaged")),
    ("empty checkpoint", resumed(at("checkpoints/state.safetensors", b"")), ("state.safetensors", "damaged")),
    ("report of nothing", lambda w: ["report", str(w.out)], ("out",)),
    ("report of a folder without a run", without_a_run("report", "OUT"), ("out",)),
    ("report of a file", lambda w: ["report", str(w.file("letter.txt", b"a"))], ("letter.txt",)),
    ("report of another program's file", lambda w: ["report", str(w.file("letter.json", b'{"format": "x"}'))], ("letter.json", "no certificate")),
    ("report of half a certificate", lambda w: ["report", str(w.file("half.json", b'{"format": "clapfor'))], ("half.json",)),
    ("report of a damaged config", lambda w: ["report", str(a_damaged_run(w))], ("config.yaml",)),
]  # fmt: skip


def a_damaged_run(world: World) -> Path:
    a_run(world.out)
    (world.out / "config.yaml").write_text("{{{")
    return world.out


def pretrain(*arguments: str) -> Arguments:
    return lambda world: ["pretrain", *(a.replace("ROOT", str(world.root)) for a in arguments)]


def pretrain_over_a_file(world: World) -> list[str]:
    world.file("mine.safetensors", b"precious")
    return pretrain("lab", "--out", "ROOT/mine.safetensors")(world)


PRETRAIN: list[Case] = [
    ("source", pretrain("labb", "--out", "ROOT/w.safetensors"), ("source", "labb")),
    ("class to exclude", pretrain("lab", "--out", "ROOT/w.safetensors", "--exclude", "zzzzz"), ("zzzzz",)),
    ("class of a folder to exclude", pretrain("folder", "--data", "ROOT/data", "--out", "ROOT/w.safetensors", "--exclude", "cat"), ("cat",)),
    ("file is there", pretrain_over_a_file, ("mine.safetensors", "exists")),
    ("suffix", pretrain("folder", "--data", "ROOT/data", "--out", "ROOT/w.pt"), ("w.pt", ".safetensors")),
    ("no out", pretrain("lab"), ("--out",)),
    ("no epochs", pretrain("lab", "--out", "ROOT/w.safetensors", "--epochs", "0"), ("--epochs",)),
    ("folder without data", pretrain("folder", "--out", "ROOT/w.safetensors"), ("--data",)),
    ("device", pretrain("lab", "--out", "ROOT/w.safetensors", "--device", "gpu"), ("gpu",)),
    ("fewer images than a batch", pretrain("folder", "--data", "ROOT/data", "--out", "ROOT/w.safetensors"), ("batch", "8")),
    ("architecture", pretrain("folder", "--data", "ROOT/data", "--model", "tiny-lab", "--out", "ROOT/w.safetensors"), ("tiny-lab",)),
]  # fmt: skip

CASES = {
    f"{group}: {name}": (arguments, named)
    for group, cases in {
        "part": PARTS, "command": COMMANDS, "sequence": SEQUENCES, "data": DATA, "model": MODELS,
        "folder": FOLDERS, "pretrain": PRETRAIN,
    }.items()
    for name, arguments, named in cases
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), CASES.values(), ids=CASES.keys())
def test_a_mistake_is_named_in_one_line_and_changes_nothing(
    arguments: Arguments, named: tuple[str, ...], world: World,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = arguments(world)
    before = listing(world.root)
    message = fail(command, monkeypatch, capfd)
    for word in named:
        assert word in message
    assert listing(world.root) == before


# ---- what needs a process of its own -------------------------------------------------------
def offline(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")  # fmt: skip
    env = {**os.environ, **nowhere, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hub"),
           "NO_PROXY": "", "no_proxy": "", "HOME": str(cwd), "XDG_CACHE_HOME": str(cwd / "cache")}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "clapforget.cli", *arguments],
        capture_output=True, text=True, env=env, cwd=cwd, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (("--model", "RN50", "--pretrained", "cc12m"), ("RN50", "cc12m", "--pretrained FILE")),
        (("--model", "hf-hub:nobody/no-clip"), ("nobody/no-clip", "open_clip_model.safetensors")),
    ],
    ids=["tag", "hub"],
)
def test_without_a_network_the_message_says_which_file_to_fetch(
    world: World, model: tuple[str, ...], named: tuple[str, ...]
) -> None:
    before = listing(world.data)
    done = offline([*run()(world), *model], world.root)
    assert done.returncode == 2
    check_message(done.stderr)
    for word in ("cannot download", *named):
        assert word in done.stderr
    assert not world.out.exists()
    assert listing(world.data) == before


# ---- what is no mistake --------------------------------------------------------------------
QUICK = ["--set", "training.epochs=1", "--forgetter", "stranger"]


def succeed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["clapforget", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0


def odd_images(root: Path) -> Iterator[Path]:
    kinds = [("RGB", "png"), ("L", "png"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("I;16", "png"), ("CMYK", "jpg"), ("LA", "png")]  # fmt: skip
    for i, (mode, suffix) in enumerate(kinds):
        path = root / "train" / CLASSES[i % 4] / f"odd{i}.{suffix}"
        if mode == "I;16":
            Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70).save(path)
        else:
            image_file(path, size=(17 + 9 * i, 60 - 5 * i), mode=mode)
        yield path


def test_images_of_any_size_and_mode_work(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(list(odd_images(world.data))) == 8
    succeed([*run("--sequence", "L0-3 F1", *QUICK)(world)], monkeypatch)
    assert (world.out / "summary.json").is_file()


def test_odd_names_of_classes_do_no_harm(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("<script>alert(1)", "<img src=x onerror=alert(2)>", "{0}{}{name}", "x..%2F..%2F", "é ü 字", "'; $(touch hurt)", "a\\..\\b", "{{ 7*7 }}")  # fmt: skip
    for name in names:
        for split in ("train", "test"):
            for i in range(2):
                image_file(world.data / split / name / f"{i}.png")
    before = listing(world.data)
    outside = {path.name for path in world.root.iterdir()}
    everything = f"L0-{len(names) + len(CLASSES) - 1}"
    order = sorted([*names, *CLASSES])
    gone = ",".join(str(order.index(name)) for name in names[:3])
    arguments = ["--class-order", ",".join(map(str, range(len(order)))), *QUICK]
    succeed([*run("--sequence", f"{everything} F{gone}", *arguments)(world)], monkeypatch)
    page = (world.out / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7*7 }}" in page
    assert listing(world.data) == before
    assert {path.name for path in world.root.iterdir()} - outside <= {"out", "cache"}
    config_ = yaml.safe_load((world.out / "config.yaml").read_text())
    assert sorted(config_["class_names"]) == sorted(n.replace("_", " ") for n in order)
