"""How many cases to explain at once: as many as memory holds and as bring something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

WORTHWHILE = {"cpu": 4, "cuda": 16}  # beyond so many cases at once a map becomes no cheaper
_COPIES = {"fast": 1.5, "zennit": 4.0}  # peak memory of a map over what its layers hand on, measured, rounded up
_SHARE = 0.5  # of the available memory: others may want some


def choose_batch_size(model: nn.Module, shape: Sequence[int], device: str, rules: str = "fast") -> int:
    """How many cases of ``shape`` [channels, X, Y, Z] to explain at once on ``device`` with ``rules``; at least one."""
    kind = torch.device(device).type
    fitting = int(_SHARE * available_bytes(device) / (_COPIES[rules] * activation_bytes(model, shape)))
    return max(1, min(WORTHWHILE.get(kind, 1), fitting))


def activation_bytes(model: nn.Module, shape: Sequence[int]) -> int:
    """Bytes that the layers of ``model`` hand on for one case; nothing is computed or allocated for it."""
    total = 0

    def count(module: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal total
        total += output.nbytes

    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    layers = [module for module in model.modules() if not list(module.children())]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            absent = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
            torch.func.functional_call(model, absent, torch.empty(1, *shape, dtype=dtype, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return total


def available_bytes(device: str) -> int:
    """Memory that may still be taken without anything being swapped out."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found, meminfo, limit = [], Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        found += [1024 * int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line]
    if limit.exists() and limit.read_text().strip() != "max":  # a container's
        found.append(int(limit.read_text()) - int(limit.with_name("memory.current").read_text()))
    return min(found, default=0)
