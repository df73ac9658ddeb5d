"""Training the classifier, so that it can be killed at any moment and go on, and predicting with it."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from datxai.errors import InputError
from datxai.files import replacing, write_table
from datxai.memory import keep_freed_memory
from datxai.model.checkpoint import WEIGHTS, save_weights
from datxai.model.network import LAYOUT

STATE, HISTORY = "last.ckpt", "history.tsv"
COLUMNS = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds")
PRECISIONS = ("float32", "bf16")
STATE_SHARE = 0.05  # at most this share of the time goes into writing the state
STATE_COPIES = 3  # the state holds the parameters and Adam's two moments


def train(
    model: nn.Sequential,
    train_set: Dataset,
    validation_set: Dataset,
    *,
    folder: str | os.PathLike,
    fingerprint: str,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    max_epochs: int = 84,
    patience: int | None = None,
    seed: int = 0,
    precision: str = "float32",
    device: str | torch.device = "cpu",
    on_batch: Callable[[int], None] | None = None,
    on_epoch: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train with Adam and unweighted cross entropy; keep the weights of the lowest validation loss.

    In ``folder`` stand ``weights.safetensors`` (the best epoch), ``history.tsv`` and ``last.ckpt``. Killed
    and called again with the same arguments, training goes on from ``last.ckpt`` and ends with the weights
    of an uninterrupted run, bit for bit on the same machine and number of threads: all that is random in an
    epoch comes from ``seed`` and the epoch's number. A finished training returns at once.

    ``last.ckpt`` is three times the size of the weights (2.8 GB on the paper's grid). It is written after the
    first epoch, after the last, and between them so often that writing takes a twentieth of the time at most.

    Parameters
    ----------
    model
        As `network.build` makes it. It is moved to ``device`` and ends with the weights of the last epoch.
    train_set, validation_set
        Give (volume [1, X, Y, Z] float32, label) by index.
    fingerprint
        Says which data and which network these are. A ``last.ckpt`` of another fingerprint, or of other
        settings given here, is no start: the three files are removed and training begins anew.
    max_epochs
        The only setting that may be raised later, to go on. The default is the paper's: 1.5 h, 64 s an epoch.
    patience
        Stop after so many epochs without a lower validation loss; None trains ``max_epochs`` epochs.
    precision
        "float32", or "bf16" for the convolutions of the training step; the rest and validation stay float32.
    on_batch
        Called with the number of batches done since the last call: 1, or first those done before a resume.
    on_epoch
        Called with the epoch's row of the history, after the files are written.

    Returns
    -------
    list of dict
        The history, a row per epoch: epoch, train_loss (with dropout), train_accuracy, validation_loss,
        validation_accuracy, seconds.

    Raises
    ------
    InputError
        If a set is empty, the disk too small, ``last.ckpt`` damaged, or the loss no longer finite.
    """
    for name, dataset in (("training", train_set), ("validation", validation_set)):
        if len(dataset) == 0:
            raise InputError(f"The {name} set is empty, expected at least one case; change the split.")
    if precision not in PRECISIONS:
        raise InputError(f"training.precision is {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    folder, device = Path(folder), torch.device(device)
    folder.mkdir(parents=True, exist_ok=True)
    _require_space(model, folder)
    keep_freed_memory()
    model.to(device, memory_format=LAYOUT)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    settings = {
        "fingerprint": fingerprint,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "seed": seed,
        "precision": precision,
    }
    history = _resume(model, optimiser, folder, settings, max_epochs)
    on_batch = on_batch or (lambda n: None)
    if history:
        on_batch(len(history) * math.ceil(len(train_set) / batch_size))
    written, cost = -math.inf, 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _repeatable():
        while not _finished(history, max_epochs, patience):
            start = time.perf_counter()
            epoch = len(history) + 1
            train_loss, train_accuracy = _train_epoch(
                model, optimiser, train_set, batch_size, seed, epoch, precision, on_batch
            )
            logits, labels = _apply(model, validation_set, batch_size)
            validation_loss = F.cross_entropy(logits.double(), labels).item()
            _require_finite(validation_loss, f"validation loss of epoch {epoch}")
            if all(validation_loss < row["validation_loss"] for row in history):
                save_weights(model, folder / WEIGHTS)
            history.append(
                {
                    "epoch": epoch,
                    "train_loss": train_loss,
                    "train_accuracy": train_accuracy,
                    "validation_loss": validation_loss,
                    "validation_accuracy": (logits.argmax(1) == labels).double().mean().item(),
                    "seconds": time.perf_counter() - start,
                }
            )
            write_table(folder / HISTORY, history, COLUMNS)
            now = time.perf_counter()
            if now - written >= cost / STATE_SHARE or _finished(history, max_epochs, patience):
                _save_state(model, optimiser, folder, settings, max_epochs, history)
                written = time.perf_counter()
                cost = written - now
            if on_epoch is not None:
                on_epoch(history[-1])
    return history


def predict(
    model: nn.Module, dataset: Dataset, batch_size: int = 8, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Logits [n, n_classes] float32 of all cases, in the order of ``dataset``, without dropout.

    The model is moved to ``device``; it is in the mode, training or evaluation, that it was in.
    """
    keep_freed_memory()
    model.to(device, memory_format=LAYOUT)
    with _repeatable():
        return _apply(model, dataset, batch_size)[0].numpy()


def _train_epoch(
    model: nn.Sequential,
    optimiser: torch.optim.Optimizer,
    dataset: Dataset,
    batch_size: int,
    seed: int,
    epoch: int,
    precision: str,
    on_batch: Callable[[int], None],
) -> tuple[float, float]:
    """One pass in random order; mean loss and accuracy over the cases."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(dataset)).tolist()
    torch.manual_seed(int(rng.integers(2**63)))  # dropout
    total_loss, n_right = 0.0, 0
    model.train()
    for batch, (volumes, labels) in enumerate(_batches(model, dataset, batch_size, order), start=1):
        optimiser.zero_grad()
        logits = _forward(model, volumes, precision)
        loss = F.cross_entropy(logits, labels)
        _require_finite(loss.item(), f"training loss of epoch {epoch}, batch {batch},")
        loss.backward()
        optimiser.step()
        total_loss += loss.item() * len(labels)
        n_right += (logits.argmax(1) == labels).sum().item()
        on_batch(1)
    return total_loss / len(order), n_right / len(order)


def _forward(model: nn.Sequential, volumes: torch.Tensor, precision: str) -> torch.Tensor:
    """Logits; with "bf16" only the convolutions leave float32, since in the linear layers the loss drifts."""
    if precision == "float32":
        return model(volumes)
    x = volumes
    for module in model:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=isinstance(module, nn.Conv3d)):
            x = module(x.float() if isinstance(module, nn.Linear) else x)
    return x


def _apply(model: nn.Module, dataset: Dataset, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of all cases, on the CPU, in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            batches = _batches(model, dataset, batch_size, range(len(dataset)))
            logits, labels = zip(*((model(volumes).cpu(), labels.cpu()) for volumes, labels in batches))
    finally:
        model.train(was_training)
    return torch.cat(logits), torch.cat(labels)


def _batches(
    model: nn.Module, dataset: Dataset, batch_size: int, order: Sequence[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Volumes and labels where the model is; no more than one batch is copied."""
    device = next(model.parameters()).device
    loader = DataLoader(dataset, batch_size, sampler=order, pin_memory=device.type == "cuda")
    for volumes, labels in loader:
        yield (
            volumes.to(device, non_blocking=True, memory_format=LAYOUT),
            labels.to(device, non_blocking=True),
        )


@contextmanager
def _repeatable() -> Iterator[None]:
    """On a GPU the same numbers every time, in full float32: cuDNN convolves in TF32 unless told not to."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def _finished(history: Sequence[dict], max_epochs: int, patience: int | None) -> bool:
    losses = [row["validation_loss"] for row in history]
    if len(losses) >= max_epochs:
        return True
    return patience is not None and bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


def _save_state(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    folder: Path,
    settings: dict,
    max_epochs: int,
    history: list[dict],
) -> None:
    state = {
        "settings": settings,
        "max_epochs": max_epochs,
        "history": history,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    with replacing(folder / STATE) as temporary:
        torch.save(state, temporary)


def _resume(
    model: nn.Module, optimiser: torch.optim.Optimizer, folder: Path, settings: dict, max_epochs: int
) -> list[dict]:
    """Load the last state and return its history; where there is none of this training, clear the folder.

    A lower ``max_epochs`` begins anew, too: the best weights on disk may be of an epoch beyond it.
    """
    path = folder / STATE
    if path.is_file() and (folder / WEIGHTS).is_file():
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds, as the damage has it
            raise InputError(
                f"{path}: cannot be read as the state of a training, the file is damaged; delete it to begin "
                f"anew."
            ) from error
        if state["settings"] == settings and state["max_epochs"] <= max_epochs:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            return state["history"]
    for name in (STATE, HISTORY, WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    return []


def _require_space(model: nn.Module, folder: Path) -> None:
    """Room for the best weights and the state, each beside its successor while that is written."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    needed = 2 * (1 + STATE_COPIES) * weights
    present = sum(path.stat().st_size for name in (STATE, WEIGHTS) if (path := folder / name).is_file())
    free = shutil.disk_usage(folder).free + present
    if free < needed:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB are free, training needs {needed / 1e9:.1f} GB for the weights "
            f"and the state to resume from; free space or choose another run folder."
        )


def _require_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"The {what} is {loss}, expected a finite number; lower training.learning_rate or check the "
            f"intensity scaling of the volumes."
        )
