"""The C library's memory allocator, set up for networks on volumes."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # parameters of mallopt(3), glibc's malloc.h
_DEFAULTS = {_M_TRIM_THRESHOLD: 2**17, _M_MMAP_THRESHOLD: 2**17, _M_MMAP_MAX: 2**16}


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks for the next allocation instead of returning them to the system at once.

    By default every tensor beyond 32 MB is a separate mapping, which is unmapped when freed and page-faulted again,
    4 KiB at a time, when the next step needs the same block. On volumes, this takes half of a training step. The cost
    is that the process keeps its peak memory until it ends.

    Returns whether it took effect; without glibc it does nothing. Call it before the work begins; calling it again is
    harmless.
    """
    return _set_allocator({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})


def return_freed_memory() -> bool:
    """Undo `keep_freed_memory`: freed blocks of 128 kB and more are returned at once, as is glibc's default.

    No holes are left between long-lived tensors, so a process needs only the memory in use, at the cost of page faults.
    Returns whether it took effect.
    """
    return _set_allocator(_DEFAULTS)


def _set_allocator(parameters: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, value) for name, value in parameters.items())


def measure_peak(work: Callable[[], Any], device: str = "cpu") -> tuple[Any, int | None]:
    """The result of ``work``, and its peak memory in bytes, beyond what was in use before.

    On a GPU this is PyTorch's own count, otherwise the process's resident memory. Freed blocks are returned to the
    system first, so that memory kept for reuse counts when it is used. None where it is not available (only on Linux).
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return work(), torch.cuda.max_memory_allocated(device) - before
    references = Path("/proc/self/clear_refs")
    if not (sys.platform.startswith("linux") and references.exists()):
        return work(), None
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    references.write_text("5")  # resets the high-water mark, proc(5)
    before = _resident_bytes("VmRSS")
    return work(), max(_resident_bytes("VmHWM") - before, 0)


def _resident_bytes(field: str) -> int:
    """``VmRSS``: resident now; ``VmHWM``: the peak since the field was reset."""
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)
