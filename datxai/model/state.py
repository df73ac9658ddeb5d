"""The state of a training on disk: written so that it is whole or not there, read back to go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from torch import nn

from datxai.errors import InputError
from datxai.files import replacing
from datxai.model import distributed
from datxai.model.checkpoint import WEIGHTS

STATE, HISTORY = "last.ckpt", "history.tsv"
COPIES = 3  # the state holds the parameters and Adam's two moments


def collect_state(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer]) -> dict:
    """Parameters and what the optimisers keep, whole; all processes of a sharded training take part."""
    if not distributed.is_sharded(model):
        return {"model": model.state_dict(), "optimisers": [optimiser.state_dict() for optimiser in optimisers]}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    weights, kept = get_state_dict(model, optimisers, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {"model": weights, "optimisers": kept}


def restore_state(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], state: dict) -> None:
    """Put back what `collect_state` gave."""
    weights, kept = state["model"], state["optimisers"]
    if not distributed.is_sharded(model):
        model.load_state_dict(weights)
        for optimiser, each in zip(optimisers, kept, strict=True):
            optimiser.load_state_dict(each)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimisers, model_state_dict=weights, optim_state_dict=kept, options=options)


def write_state(state: dict, folder: Path) -> None:
    """Replace ``last.ckpt``; at every moment the old or the new one is there."""
    with replacing(folder / STATE) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)


def read_state(folder: Path, settings: dict, max_epochs: int) -> dict | None:
    """The last state of the training of these ``settings``, None where there is none.

    A state beyond ``max_epochs`` is of no use: the best weights beside it may be of an epoch too late.
    Raises `InputError` if it is damaged.
    """
    path = folder / STATE
    if not (path.is_file() and (folder / WEIGHTS).is_file()):
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, as the damage has it
        raise InputError(
            f"{path}: cannot be read as the state of a training, the file is damaged; delete it to begin anew."
        ) from error
    return state if state["settings"] == settings and state["max_epochs"] <= max_epochs else None


def clear(folder: Path, keep_state: bool) -> None:
    """Remove what a killed process has left half-written and, unless it is gone on from, the last training."""
    left = [*folder.glob(".part-*"), *(folder / name for name in (STATE, HISTORY, WEIGHTS) if not keep_state)]
    for path in left:
        path.unlink(missing_ok=True)


def require_space(model: nn.Module, folder: Path) -> None:
    """Room for the best weights and the state, each beside its successor while that is written, or `InputError`."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    needed = 2 * (1 + COPIES) * weights
    present = sum(path.stat().st_size for name in (STATE, WEIGHTS) if (path := folder / name).is_file())
    free = shutil.disk_usage(folder).free + present
    if free < needed:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB are free, training needs {needed / 1e9:.1f} GB for the weights "
            f"and the state to resume from; free space or choose another run folder."
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A write that fails, on a full disk above all, is an `InputError`; the files of before are as they were."""
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        # PyTorch answers a failed write with a RuntimeError of its own, before or after the stream's.
        causes = [each for each in (error, error.__context__) if isinstance(each, OSError)]
        if isinstance(error, RuntimeError) and not causes:
            raise
        raise InputError(
            f"{folder}: the state of the training cannot be written ({[*causes, error][0]}); free space there, then "
            f"the same command goes on from the last state that is whole."
        ) from error
