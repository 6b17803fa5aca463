"""Freed memory stays with the process. Asked of the C library itself, in processes of their own."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clapforget.allocator import HEARD, keep_freed_memory

_GNU = hasattr(ctypes.CDLL(None), "gnu_get_libc_version") if os.name == "posix" else False

_PROBE = """
import ctypes, json, sys
from clapforget.allocator import keep_freed_memory
said = [keep_freed_memory()] if "keep" in sys.argv else []

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def lives(mib):
    before = libc.mallinfo2()
    block = libc.malloc(mib << 20)
    during = libc.mallinfo2()
    libc.free(block)
    after = libc.mallinfo2()
    return during.hblks - before.hblks, (after.arena - before.arena) >> 20

print(json.dumps([said, lives(20), lives(200)]))
"""


def _probe(*words: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in HEARD}
    here = Path(__file__).parents[1]
    out = subprocess.run(
        [sys.executable, "-c", _PROBE, *words], env=clean | environment, cwd=here,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return out.stdout.strip()


@pytest.mark.skipif(not _GNU, reason="the C library is not the GNU one")
def test_a_freed_block_stays_unless_it_is_very_large() -> None:
    """20 MiB come from the heap, which keeps them (a little less where it had room); 200 are mapped
    by themselves and go back."""
    said, small, large = _parts(_probe("keep"))
    assert said == [True]
    assert small[0] == 0 and 15 <= small[1] <= 24
    assert large == (1, 0)


@pytest.mark.skipif(not _GNU, reason="the C library is not the GNU one")
def test_it_changes_what_the_library_does_by_itself() -> None:
    _, small, _ = _parts(_probe())
    assert small == (1, 0), "the first block of this size is mapped, and unmapped when freed"


@pytest.mark.skipif(not _GNU, reason="the C library is not the GNU one")
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_who_says_otherwise_is_heard(name: str) -> None:
    assert _parts(_probe("keep", **{name: "131072"}))[:2] == ([False], (1, 0))


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def mallopt(self, *_: int) -> int:
            raise AssertionError("not to be called")

    for name in HEARD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Other())
    assert keep_freed_memory() is False


def _parts(out: str) -> tuple[list[bool], tuple[int, int], tuple[int, int]]:
    said, small, large = json.loads(out)
    return said, tuple(small), tuple(large)
