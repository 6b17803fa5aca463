"""What a user installs: the wheel, built from a copy of the sources and looked into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("clapforget", "strategies", "scenarios")


def call(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **env},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built where no earlier build lies about."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for file in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy2(file, source)
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / room, source / room, ignore=ignored)
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, cwd=source)
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("target")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    call(*pip, "--target", target, wheel, cwd=target)
    return target


def test_one_import_package_and_nothing_else_is_installed(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if path.name != "bin"}
    info = {name for name in names if name.startswith("clapforget-") and name.endswith(".dist-info")}  # fmt: skip
    assert len(info) == 1
    assert names - info == {"clapforget"}


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= 30 * 2**20


def test_every_source_file_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ROOMS:
        inside = room if room == "clapforget" else f"clapforget/{room}"
        for path in (ROOT / room).rglob("*.py"):
            assert f"{inside}/{path.relative_to(ROOT / room).as_posix()}" in names


def test_all_that_is_no_code_is_in_the_wheel(installed: Path) -> None:
    package = installed / "clapforget"
    assert (package / "py.typed").is_file()
    for folder in ("weights", "configs"):
        wanted = {path.name for path in (ROOT / "clapforget" / folder).iterdir()}
        assert {path.name for path in (package / folder).iterdir()} == wanted
        assert wanted
    for name in ("lab-tiny", "cifar100-tiny"):
        assert (package / "weights" / f"{name}.safetensors").is_file()
        assert (package / "weights" / f"{name}.json").is_file()
        assert (package / "configs" / f"{name}.json").is_file()
    for path in (ROOT / "clapforget" / "report").glob("*.[hc][ts][ms]*"):
        assert (package / "report" / path.name).is_file()
    assert (package / "report" / "report.css").is_file()


def test_no_tests_and_no_rubbish_are_in_the_wheel(wheel: Path) -> None:
    for name in zipfile.ZipFile(wheel).namelist():
        assert not name.startswith(("tests/", "strategies/", "scenarios/", "docs/"))
        assert "__pycache__" not in name


def test_the_installed_package_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    code = """
import clapforget, clapforget.strategies, clapforget.scenarios, clapforget.cli
from clapforget.scenarios import SCENARIOS
from clapforget.strategies.selection import SELECTORS
from clapforget.unlearn import FORGETTERS
for module in (clapforget, clapforget.strategies, clapforget.scenarios, clapforget.cli):
    print(module.__file__)
print(len(clapforget.load_clip("lab-tiny").fingerprint()))
print(*FORGETTERS.names(), *SELECTORS.names(), *SCENARIOS.names())
"""
    out = call(sys.executable, "-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    *files, digest, names = out.splitlines()
    assert len(files) == 4
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert digest == "64"
    assert {"cliperase", "nothing", "random", "mutual_information", "lab", "folder"} <= set(names.split())  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_its_metadata_names_licence_readme_and_command(installed: Path) -> None:
    (info,) = installed.glob("clapforget-*.dist-info")
    metadata = (info / "METADATA").read_text()
    assert "License-Expression: MIT" in metadata
    assert list(info.rglob("LICENSE"))
    assert "Description-Content-Type: text/markdown" in metadata
    _, _, readme = metadata.partition("\n\n")
    assert "clapforget" in readme
    assert "clapforget = clapforget.cli:main" in (info / "entry_points.txt").read_text()
