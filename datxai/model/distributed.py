"""Several processes as one training, as torchrun starts them; in a single process everything here does nothing."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import distributed, nn

from datxai.errors import InputError


def join(device: str) -> str:
    """Join the process group of torchrun, if there is one; returns the device of this process."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def leave() -> None:
    """Leave the process group."""
    if size() > 1:
        distributed.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0; process 0 writes the files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def part_of(items: list[int]) -> tuple[list[int], int]:
    """This process's part of ``items``, equally long in all processes, and where in ``items`` it starts.

    The last parts are padded with copies of the first item; what lies at or beyond the end of ``items`` has to be left
    out of sums.
    """
    length = -(-len(items) // size())
    filled = items + items[:1] * (length * size() - len(items))
    return filled[rank() * length : (rank() + 1) * length], rank() * length


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in their order."""
    if size() == 1:
        return tensor
    rows = tensor.new_empty(size() * len(tensor), *tensor.shape[1:])
    distributed.all_gather_into_tensor(rows, tensor.contiguous())
    return rows


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    if size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def agree(decision: bool) -> bool:
    """The decision of process 0, in all processes."""
    decisions = [decision]
    if size() > 1:
        distributed.broadcast_object_list(decisions)
    return decisions[0]


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters are spread over the processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, with sharded ones gathered from all processes."""
    return {name: _assembled(part) if hasattr(part, "full_tensor") else part for name, part in tensors.items()}


def _assembled(part: Any) -> torch.Tensor:
    """A tensor that is spread over the processes, a DTensor, whose type is imported only where there are several."""
    return part.full_tensor()


def replicate(step: nn.Module, device: torch.device) -> nn.Module:
    """``step`` with gradients averaged over the processes."""
    if size() == 1:
        return step
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(step, device_ids=devices, gradient_as_bucket_view=True)


def shard(step: nn.Module, layer: nn.Module, device: torch.device) -> None:
    """Spread parameters, gradients and what Adam keeps over the processes (FSDP); ``layer`` is gathered on its own."""
    if size() == 1:
        raise InputError(
            "training.shard=true: there is one process only, expected several; start them with "
            "`torchrun --nproc-per-node N -m datxai train run=RUN_DIR` or set training.shard=false."
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (size(),))
    fully_shard(layer, mesh=mesh)
    fully_shard(step, mesh=mesh)
