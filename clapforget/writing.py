"""What is written is whole, its place is tried first, and two runs do not share a folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clapforget.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_writable", "sole_run", "write_json", "write_text"]

_LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step: a reader never sees half of it."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step; what is no file, such as ``/dev/stdout``, is written into."""
    if path.exists() and not path.is_file():
        path.write_text(text)
        return
    temporary = _unfinished(path.resolve())  # beside what a link points to, not beside the link
    temporary.write_text(text)
    temporary.replace(path.resolve())


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.writing")


def check_writable(path: Path, option: str = "--out", folder: bool = False) -> None:
    """Try to write where something is to be written once the work is done; leaves nothing behind.

    :param folder: whether the path is a folder to write into, made where there is none, or a file.
    :raises UserError: if it cannot be written.
    """
    try:
        _try(path.resolve(), folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = getattr(error, "strerror", None) or "a link to itself"
        raise UserError(
            f"{option} {_short(path)} cannot be written ({reason})",
            f"name another {'folder' if folder else 'file'}",
        ) from error


def _try(path: Path, folder: bool) -> None:
    if path.exists():
        if path.is_dir() != folder:
            code, kind = (errno.ENOTDIR, "file") if folder else (errno.EISDIR, "folder")
            raise OSError(code, f"it is a {kind}")
        if path.is_file():
            path.open("ab").close()
        elif not folder:
            return  # a device or a pipe
    home = path if folder else path.parent
    there = next(parent for parent in (home, *home.parents) if parent.exists())
    probe = Path(tempfile.mkdtemp(prefix=".clapforget-", dir=there))  # of no one else
    try:
        missing = probe / home.relative_to(there)
        missing.mkdir(parents=True, exist_ok=True)
        (missing / ("written" if folder else _unfinished(path).name)).write_text("\n")
    finally:
        shutil.rmtree(probe)


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-60:]} ({len(text)} characters)"


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Make the folder and hold it: for as long, no other run writes there.

    The system frees it when the process ends, however it ends; a file left behind holds nothing.
    Where there are no locks, nothing is held.

    :raises UserError: if another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    path = folder / _LOCK
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"another run is writing into {folder}", "wait for it, or choose another --out"
                ) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if not _is_still(path, file.fileno()):
                continue  # the run before took its file away between opening and locking
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_still(path: Path, opened: int) -> bool:
    """Whether an opened file is the one that stands under its name."""
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except FileNotFoundError:
        return False
