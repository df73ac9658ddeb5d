"""The C library's memory allocator, set up for networks on volumes."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt(3), glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks for the next allocation instead of returning them to the system at once.

    By default every tensor beyond 32 MB is a mapping of its own: unmapped when freed, and page-faulted anew,
    4 KiB at a time, when the next step needs the same block: on volumes, half of a training step. The price:
    the process keeps the memory of its peak until it ends.

    Returns whether it took effect; elsewhere than on glibc it does nothing. Call it before the work begins;
    calling it again is harmless.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
