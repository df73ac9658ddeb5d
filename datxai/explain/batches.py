"""Choose how many cases to explain at once: as many as fit into memory and make it faster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from datxai.errors import InputError
from datxai.explain.layers import require_weights, tensors_in

WORTHWHILE = {"cpu": 4, "cuda": 16}  # measured: larger batches are no faster
_PEAK = {"fast": 1.5, "zennit": 4.0}  # peak memory / size of all activations, measured and rounded up
_MEMORY_FRACTION = 0.5  # of the free memory; the rest is left to other programs


def choose_batch_size(
    model: nn.Module, shape: Sequence[int], device: str, rules: Literal["fast", "zennit"] = "fast"
) -> int:
    """How many cases of ``shape`` [channels, X, Y, Z] to explain at once on ``device`` with ``rules``; at least one."""
    kind = torch.device(device).type
    fitting = int(_MEMORY_FRACTION * available_bytes(device) / (_PEAK[rules] * activation_bytes(model, shape)))
    return max(1, min(WORTHWHILE.get(kind, 1), fitting))


def activation_bytes(model: nn.Module, shape: Sequence[int]) -> int:
    """Size of all activations of one case in bytes, determined on the meta device without computing anything."""
    total = 0

    def count(module: nn.Module, args: tuple, output: object) -> None:
        nonlocal total
        total += sum(tensor.nbytes for tensor in tensors_in(output))

    require_weights(model)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    layers = [module for module in model.modules() if not list(module.children())]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            meta_state = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
            torch.func.functional_call(model, meta_state, torch.empty(1, *shape, dtype=dtype, device="meta"))
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"the memory of a map cannot be determined for this network, which does not run on the meta device "
            f"({error}); choose a batch size, such as 1."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return total


def available_bytes(device: str) -> int:
    """Free memory in bytes: of a GPU, or of this computer within the limits of the container."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits: list[int] = []
    meminfo, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        limits += [1024 * int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line]
    if container.exists() and container.read_text().strip() != "max":
        limits.append(int(container.read_text()) - int(container.with_name("memory.current").read_text()))
    return min(limits, default=0)
