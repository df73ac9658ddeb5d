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

    By default every tensor beyond 32 MB is a mapping of its own: unmapped when freed, and page-faulted anew,
    4 KiB at a time, when the next step needs the same block: on volumes, half of a training step. The price:
    the process keeps the memory of its peak until it ends.

    Returns whether it took effect; elsewhere than on glibc it does nothing. Call it before the work begins;
    calling it again is harmless.
    """
    return _tell_allocator({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})


def return_freed_memory() -> bool:
    """The opposite, and glibc's default: freed blocks of 128 kB and more go back at once.

    No hole is left between tensors that live long, so a process needs no more than what is in use, and pays for it in
    page faults. Returns whether it took effect.
    """
    return _tell_allocator(_DEFAULTS)


def _tell_allocator(parameters: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, value) for name, value in parameters.items())


def measure_peak(work: Callable[[], Any], device: str = "cpu") -> tuple[Any, int | None]:
    """What ``work`` returns, and the most bytes that were in use meanwhile beyond those in use before.

    On a GPU, PyTorch's own count. Otherwise the process's resident memory, after freed blocks were handed back, so
    that memory kept for reuse counts when it is used; None where the system does not tell (elsewhere than on Linux).
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
    """``VmRSS``: resident now; ``VmHWM``: the most since the field was reset."""
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)
