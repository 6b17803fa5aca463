"""Where something is written: tried first, in one step, and by one run at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clapforget.errors import UserError
from clapforget.writing import check_writable, sole_run, write_json, write_text

HOLD = """
import os, signal, sys
from pathlib import Path
from clapforget.writing import sole_run
with sole_run(Path(sys.argv[1])):
    print("held", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def holder(folder: Path, then: str) -> subprocess.Popen[str]:
    """Another process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), then],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    with holder(tmp_path / "out", "wait") as other:
        with (
            pytest.raises(UserError, match="another run is writing into"),
            sole_run(tmp_path / "out"),
        ):
            pass
        assert (tmp_path / "out" / ".lock").exists(), "the lock of the other run was taken away"
        other.communicate("")
    with sole_run(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path, "die") as other:
        assert other.wait() == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    with sole_run(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sole_run(tmp_path):
        raise ZeroDivisionError
    with sole_run(tmp_path):
        pass


def places(root: Path) -> dict[str, tuple[Path, bool]]:
    (root / "file").write_text("a")
    (root / "folder").mkdir()
    (root / "loop").symlink_to("loop")
    return {
        "below a file": (root / "file" / "x", True), "a file": (root / "file", True),
        "a folder": (root / "folder", False), "long": (root / ("x" * 300), True),
        "long file": (root / ("x" * 300), False), "in a long folder": (root / ("x" * 300) / "y", False),
        "too long while unfinished": (root / ("x" * 250), False), "itself": (root / "loop" / "x", True),
        "in proc": (Path("/proc/nowrite"), True), "a file in proc": (Path("/proc/c.json"), False),
    }  # fmt: skip


@pytest.mark.parametrize("name", [
    "below a file", "a file", "a folder", "long", "long file", "in a long folder",
    "too long while unfinished", "itself", "in proc", "a file in proc",
])  # fmt: skip
def test_what_cannot_be_written_is_found_before(name: str, tmp_path: Path) -> None:
    path, folder = places(tmp_path)[name]
    if "proc" in name and not Path("/proc/self").exists():
        pytest.skip("a system without /proc")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"--out .* cannot be written") as error:
        check_writable(path, folder=folder)
    assert len(str(error.value)) < 300
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("folder", [True, False])
def test_trying_leaves_nothing_and_changes_nothing(tmp_path: Path, folder: bool) -> None:
    check_writable(tmp_path / "a" / "b", folder=folder)
    assert list(tmp_path.iterdir()) == []
    there = tmp_path / "there"
    if folder:
        there.mkdir()
    else:
        there.write_text("kept")
    before = there.stat()
    check_writable(there, folder=folder)
    assert list(tmp_path.iterdir()) == [there]
    assert folder or there.read_text() == "kept"
    assert folder or there.stat().st_mtime_ns == before.st_mtime_ns


def test_a_device_is_written_into_and_stays_one() -> None:
    check_writable(Path("/dev/null"))
    write_text(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()


def test_a_text_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "[\n 1\n]\n"
    full = Path.write_text

    def cut(self: Path, text: str) -> int:
        full(self, text[:2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "real.json", "new text")
    assert (tmp_path / "real.json").read_text() == "[\n 1\n]\n"
