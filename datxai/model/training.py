"""Training the classifier, so that it can be killed at any moment and go on, and predicting with it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from datxai.errors import InputError
from datxai.files import write_table
from datxai.memory import keep_freed_memory, return_freed_memory
from datxai.model import distributed
from datxai.model.augmentation import Augmentation
from datxai.model.batches import read_batches
from datxai.model.checkpoint import WEIGHTS, save_weights
from datxai.model.factored import factored_gradient
from datxai.model.network import LAYOUT
from datxai.model.state import (
    HISTORY,
    clear,
    collect_state,
    read_state,
    require_space,
    restore_state,
    write_state,
    writing,
)

COLUMNS = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds")
PRECISIONS = ("float32", "bf16")
STATE_SHARE = 0.05  # at most this share of the time goes into writing the state


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
    save_memory: bool = False,
    shard: bool = False,
    augmentation: Augmentation | None = None,
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

    In each of the processes that torchrun has started (`distributed.join`) it trains on a share of every batch;
    the loss is that of one process but for the order of summation. Process 0 writes the files.

    Parameters
    ----------
    model
        As `network.build` makes it. It is moved to ``device`` and ends with the weights of the last epoch.
    train_set, validation_set
        Give (volume [1, X, Y, Z] float32, label) by index.
    fingerprint
        Says which data and which network these are. A ``last.ckpt`` of another fingerprint, or of other
        settings given here, is no start: the three files are removed and training begins anew.
    batch_size
        Of all processes together.
    max_epochs
        The only setting that may be raised later, to go on. The default is the paper's: 1.5 h, 64 s an epoch.
    patience
        Stop after so many epochs without a lower validation loss; None trains ``max_epochs`` epochs.
    precision
        "float32", or "bf16" for the convolutions of the training step; the rest and validation stay float32.
    save_memory
        Never form the gradient of the largest linear layer (`factored.factored_gradient`), and return freed memory.
    shard
        Spread the parameters over the processes; ``model`` is left spread.
    augmentation
        Each training case is varied anew in each epoch, as ``seed``, epoch and index decide.
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
        If a set is empty, the disk too small or full, ``last.ckpt`` damaged, or the loss no longer finite.
    """
    for name, dataset in (("training", train_set), ("validation", validation_set)):
        if len(dataset) == 0:
            raise InputError(f"The {name} set is empty, expected at least one case; change the split.")
    if precision not in PRECISIONS:
        raise InputError(f"training.precision is {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    if save_memory and shard:
        raise InputError("training.save_memory and training.shard exclude each other; set one of them to false.")
    folder, device = Path(folder), torch.device(device)
    folder.mkdir(parents=True, exist_ok=True)
    require_space(model, folder)
    if save_memory:
        return_freed_memory()
    else:
        keep_freed_memory()
    settings = {
        "fingerprint": fingerprint,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "seed": seed,
        "precision": precision,
        "save_memory": save_memory,
        "shard": shard,
        "augmentation": asdict(augmentation) if augmentation else None,
    }
    on_batch, on_epoch = on_batch or (lambda n: None), on_epoch or (lambda row: None)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(_repeatable())
        step = _Step(model, precision).to(device, memory_format=torch.contiguous_format if shard else LAYOUT)
        largest = max((module for module in model if isinstance(module, nn.Linear)), key=lambda m: m.weight.numel())
        if shard:
            distributed.shard(step, largest, device)
        optimisers = [stack.enter_context(factored_gradient(largest, learning_rate))] if save_memory else []
        rest = [parameter for parameter in step.parameters() if parameter.requires_grad]
        optimisers.append(torch.optim.Adam(rest, lr=learning_rate, fused=True))
        replica = step if shard else distributed.replicate(step, device)
        history = _resume(step, optimisers, folder, settings, max_epochs)
        if history:
            on_batch(len(history) * math.ceil(len(train_set) / batch_size))
        written, cost = -math.inf, 0.0
        while not _finished(history, max_epochs, patience):
            start = time.perf_counter()
            epoch = len(history) + 1
            train_loss, train_accuracy = _train_epoch(
                replica, optimisers[-1], train_set, batch_size, seed, epoch, augmentation, device, on_batch
            )
            logits, labels = _apply(step, validation_set, batch_size, device)
            validation_loss = F.cross_entropy(logits.double(), labels).item()
            _require_finite(validation_loss, f"validation loss of epoch {epoch}")
            is_best = all(validation_loss < row["validation_loss"] for row in history)
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
            with writing(folder):
                if is_best:
                    _write(save_weights, distributed.whole(model.state_dict()), folder / WEIGHTS)
                _write(write_table, folder / HISTORY, history, COLUMNS)
                now = time.perf_counter()
                due = distributed.agree(now - written >= cost / STATE_SHARE)
                if due or _finished(history, max_epochs, patience):
                    state = {"settings": settings, "max_epochs": max_epochs, "history": history}
                    _write(write_state, {**state, **collect_state(step, optimisers)}, folder)
                    written = time.perf_counter()
                    cost = written - now
            on_epoch(history[-1])
    return history


def predict(
    model: nn.Sequential, dataset: Dataset, batch_size: int = 8, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Logits [n, n_classes] float32 of all cases, in the order of ``dataset``, without dropout.

    The model is moved to ``device``; it is in the mode, training or evaluation, that it was in.
    """
    keep_freed_memory()
    model.to(device, memory_format=LAYOUT)
    with _repeatable():
        return _apply(_Step(model), dataset, batch_size, torch.device(device))[0].numpy()


class _Step(nn.Module):
    """The pass of volumes [n, 1, X, Y, Z] through the network to logits [n, n_classes], as training wants it.

    With ``precision`` "bf16" the convolutions, and they alone, leave float32 while training: in the linear layers the
    loss drifts. ReLU works in place. Of several processes, which see rows ``first`` and on of a batch of ``n``, each
    draws the whole batch's dropout and uses its own rows: the result does not depend on their number.
    """

    def __init__(self, model: nn.Sequential, precision: str = "float32"):
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, x: torch.Tensor, first: int = 0, n: int = 0) -> torch.Tensor:
        lowered = self.training and self.precision == "bf16"
        for module in self.model:
            if isinstance(module, nn.ReLU):
                x = F.relu(x, inplace=True)
            elif isinstance(module, nn.Flatten) and x.requires_grad:
                x.register_hook(lambda gradient: gradient.contiguous(memory_format=LAYOUT))
                x = module(x)
            elif isinstance(module, nn.Dropout) and self.training and distributed.size() > 1:
                scale = F.dropout(x.new_ones(n, *x.shape[1:]), module.p)[first : first + len(x)]
                x = x * F.pad(scale, (0, 0, 0, len(x) - len(scale)))
            else:
                with torch.autocast(x.device.type, torch.bfloat16, enabled=lowered and isinstance(module, nn.Conv3d)):
                    x = module(x.float() if isinstance(module, nn.Linear) else x)
        return x


def _train_epoch(
    step: nn.Module,
    optimiser: torch.optim.Optimizer,
    dataset: Dataset,
    batch_size: int,
    seed: int,
    epoch: int,
    augmentation: Augmentation | None,
    device: torch.device,
    on_batch: Callable[[int], None],
) -> tuple[float, float]:
    """One pass in random order; mean loss and accuracy over the cases."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(dataset)).tolist()
    torch.manual_seed(int(rng.integers(2**63)))  # dropout
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shares = [distributed.share(batch) for batch in batches]
    sums = np.zeros(2)
    step.train()
    for number, (volumes, labels) in enumerate(read_batches(dataset, [items for items, _ in shares], device)):
        (items, first), n = shares[number], len(batches[number])
        if augmentation:
            varied = [augmentation.vary(volume, [seed, epoch, item]) for volume, item in zip(volumes, items)]
            volumes = torch.stack(varied).to(memory_format=LAYOUT)
        optimiser.zero_grad()
        logits, labels = (rows[: max(n - first, 0)] for rows in (step(volumes, first, n), labels))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (loss * distributed.size() / n).backward()
        optimiser.step()
        found = distributed.total(torch.stack([loss.detach(), (logits.argmax(1) == labels).sum()])).tolist()
        _require_finite(found[0], f"training loss of epoch {epoch}, batch {number + 1},")
        sums += found
        on_batch(1)
    return tuple((sums / len(order)).tolist())


def _apply(
    step: _Step, dataset: Dataset, batch_size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of all cases, on the CPU, in evaluation mode."""
    was_training = step.model.training
    step.eval()
    try:
        with torch.inference_mode():
            mine, _ = distributed.share(list(range(len(dataset))))
            batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
            found = [(step(volumes), labels) for volumes, labels in read_batches(dataset, batches, device)]
            logits, labels = (distributed.gather(torch.cat(rows))[: len(dataset)].cpu() for rows in zip(*found))
    finally:
        step.train(was_training)
    return logits, labels


def _resume(
    step: _Step,
    optimisers: Sequence[torch.optim.Optimizer],
    folder: Path,
    settings: dict,
    max_epochs: int,
) -> list[dict]:
    """Go on from the last state and return its history; where there is none of this training, clear the folder."""
    state = read_state(folder, settings, max_epochs)
    distributed.agree(True)  # all have read before process 0 removes anything
    _write(clear, folder, keep_state=state is not None)
    if state is None:
        return []
    restore_state(step, optimisers, state)
    return state["history"]


def _write(function: Callable, *arguments, **keywords) -> None:
    """Files are written by process 0 alone."""
    if distributed.rank() == 0:
        function(*arguments, **keywords)


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


def _require_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"The {what} is {loss}, expected a finite number; lower training.learning_rate or check the "
            f"intensity scaling of the volumes."
        )
