"""The state of a training on disk: written atomically, read back to resume."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from torch import nn

from datxai.errors import InputError
from datxai.files import remove_unfinished, replacing
from datxai.model import distributed
from datxai.model.checkpoint import WEIGHTS, is_whole

STATE, HISTORY = "last.ckpt", "history.tsv"


def collect_state(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer]) -> dict:
    """Unsharded states of model and optimisers; every process of a sharded training must call this."""
    if not distributed.is_sharded(model):
        return {"model": model.state_dict(), "optimisers": [optimiser.state_dict() for optimiser in optimisers]}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(model, optimisers, options=options)
    return {"model": weights, "optimisers": moments}


def restore_state(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], state: dict) -> None:
    """Restore a state that `collect_state` returned."""
    weights, moments = state["model"], state["optimisers"]
    if not distributed.is_sharded(model):
        model.load_state_dict(weights)
        for optimiser, optimiser_state in zip(optimisers, moments, strict=True):
            optimiser.load_state_dict(optimiser_state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimisers, model_state_dict=weights, optim_state_dict=moments, options=options)


def write_state(state: dict, folder: Path) -> None:
    """Replace ``last.ckpt`` atomically."""
    with replacing(folder / STATE) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)


def read_state(folder: Path, settings: dict, max_epochs: int) -> dict | None:
    """Read the last state of the training with these ``settings``; None if there is none.

    A state beyond ``max_epochs`` is not used: the best weights beside it may be from a later epoch.
    Raises `InputError` if it is damaged.
    """
    path = folder / STATE
    if not (path.is_file() and (folder / WEIGHTS).is_file()):
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch writes checksums but does not verify them
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved_settings, saved_epochs = state["settings"], state["max_epochs"]
    except Exception as error:  # the type depends on the damage
        raise InputError(
            f"{path}: cannot be read as the state of a training, the file is damaged; delete it to begin anew."
        ) from error
    if saved_settings != settings or saved_epochs > max_epochs:
        return None
    if not is_whole(folder / WEIGHTS):
        raise InputError(
            f"{folder / WEIGHTS}: the file is damaged, expected the best weights so far; delete it to begin anew."
        )
    return state


def clear(folder: Path, keep_state: bool) -> None:
    """Remove half-written files of a killed process and, unless ``keep_state``, the files of the last training."""
    remove_unfinished(folder)
    if not keep_state:
        for name in (STATE, HISTORY, WEIGHTS):
            (folder / name).unlink(missing_ok=True)


def require_space(model: nn.Module, folder: Path, copies: int) -> None:
    """Raise `InputError` if the disk has no room for two copies each of the best weights and the state.

    The state takes ``copies`` times the size of the weights. A new file is complete before it replaces the old one.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    needed = 2 * (1 + copies) * weights
    present = sum(path.stat().st_size for name in (STATE, WEIGHTS) if (path := folder / name).is_file())
    free = shutil.disk_usage(folder).free + present
    if free < needed:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB are free, training needs {needed / 1e9:.1f} GB for the weights "
            f"and the state to resume from; free space or choose another run folder."
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failed write, as on a full disk, into an `InputError`; the previous files stay intact."""
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        # After a failed write PyTorch raises a RuntimeError of its own, before or after the stream's OSError.
        causes = [cause for cause in (error, error.__context__) if isinstance(cause, OSError)]
        if isinstance(error, RuntimeError) and not causes:
            raise
        raise InputError(
            f"{folder}: the state of the training cannot be written ({[*causes, error][0]}); free space there, then "
            f"the same command resumes from the last complete state."
        ) from error
