"""The process keeps the memory that it frees, for what it asks next."""

from __future__ import annotations

import ctypes
import os

__all__ = ["HEARD", "keep_freed_memory"]

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MIB = 2**20
HEARD = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables of the environment by which a user has a say of his own."""


def keep_freed_memory(kept: int = 256, apart: int = 32) -> bool:
    """Ask the C library to keep what tensors on the CPU give back, and to hand it out again.

    Every step frees its gradients and asks for as much again; given back to the system in between,
    that memory must be mapped, zeroed and touched for the first time in every step, which on a
    virtual machine can cost more than what is worked out in it (docs/performance.md). No result
    depends on it. A process-wide setting, so the command line makes it and the library does not;
    an experiment script may call this once, before it trains.

    :param kept: MiB of free memory at the end of the heap that stay with the process.
    :param apart: MiB from which a block is mapped by itself and goes back to the system when freed.
    :returns: whether it was set. It is left alone where the C library is not the GNU one, and where
        the environment says something of its own (:data:`HEARD`).
    """
    if any(os.environ.get(name) for name in HEARD):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  other libraries have a mallopt that means less
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows, where None opens nothing
        return False
    return bool(mallopt(_MMAP, apart * _MIB)) and bool(mallopt(_TRIM, kept * _MIB))
