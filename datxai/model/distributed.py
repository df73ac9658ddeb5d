"""Training in several processes started by torchrun; in a single process, tensors and models stay as they are."""

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
    """The index of this process, from 0; process 0 writes the files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def part_of(items: list[int]) -> tuple[list[int], int]:
    """This process's part of ``items``, equally long in all processes, and the index in ``items`` at which it starts.

    The last parts are padded with copies of the first item; sums must leave out everything past the end of ``items``.
    """
    length = -(-len(items) // size())
    padded = items + items[:1] * (length * size() - len(items))
    return padded[rank() * length : (rank() + 1) * length], rank() * length


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all processes, in the order of their ranks."""
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
    """Whether the parameters are sharded over the processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gather sharded tensors from all processes; others are returned as they are."""
    return {name: _unshard(tensor) if hasattr(tensor, "full_tensor") else tensor for name, tensor in tensors.items()}


def _unshard(tensor: Any) -> torch.Tensor:
    """Gather a DTensor, typed as `Any` because that class is imported only if there are several processes."""
    return tensor.full_tensor()


def replicate(step: nn.Module, device: torch.device) -> nn.Module:
    """Wrap ``step`` so that gradients are averaged over the processes."""
    if size() == 1:
        return step
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(step, device_ids=devices, gradient_as_bucket_view=True)


def shard(step: nn.Module, layer: nn.Module, device: torch.device) -> None:
    """Shard parameters, gradients and Adam's moments over the processes (FSDP); ``layer`` is gathered on its own."""
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
