"""Training the classifier; it can be killed at any moment and resumed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from datxai.errors import InputError
from datxai.files import write_table
from datxai.memory import keep_freed_memory, return_freed_memory
from datxai.model import distributed
from datxai.model.architectures import require_fit
from datxai.model.augmentation import Augmenter
from datxai.model.batches import LabelledSet, list_labels
from datxai.model.checkpoint import WEIGHTS, save_weights
from datxai.model.loop import Loop, prepare_loop
from datxai.model.prediction import evaluate, predict, repeatable
from datxai.model.recipe import Recipe, count_classes
from datxai.model.state import HISTORY, clear, read_state, require_space, write_state, writing

COLUMNS = (
    "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "validation_auc",
    "learning_rate", "seconds", "kept",
)  # fmt: skip
STATE_SHARE = 0.05  # largest fraction of the time spent on writing the state


def train(
    model: nn.Sequential,
    train_set: LabelledSet,
    validation_set: LabelledSet,
    recipe: Recipe,
    *,
    folder: str | os.PathLike,
    fingerprint: str,
    augmenter: Augmenter | None = None,
    device: str | torch.device = "cpu",
    on_batch: Callable[[int], None] | None = None,
    on_epoch: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train by the recipe and keep the weights of the best epoch.

    Writes ``weights.safetensors`` (the best epoch), ``history.tsv`` and ``last.ckpt`` to ``folder``. If training is
    killed and called again with the same arguments, it resumes from ``last.ckpt`` and ends with the weights of an
    uninterrupted run, bit for bit on the same machine and number of threads. A finished training returns at once.

    With Adam ``last.ckpt`` is three times the size of the weights (2.8 GB on the paper's grid). It is written after the
    first epoch, after the last, and in between only as often as keeps writing to a twentieth of the time at most.

    Each process started by torchrun (`distributed.join`) trains on its part of every batch; the loss is that of one
    process but for the order of summation. Process 0 writes the files.

    Parameters
    ----------
    model
        Network from `architectures.build`. It is moved to ``device`` and ends with the weights of the last epoch.
    train_set, validation_set
        Datasets that return (volume [1, X, Y, Z] float32, label) by index.
    fingerprint
        Identifies data and network. If ``last.ckpt`` has another fingerprint or other settings, the three files are
        removed and training starts afresh.
    augmenter
        Varies each training case anew in each epoch; the recipe's seed, the epoch and the index determine how.
    on_batch
        Called with the number of batches done since the last call: 1, or at first those done before resuming.
    on_epoch
        Called with the epoch's row of the history, after the files are written.

    Returns
    -------
    list of dict
        The history, one row per epoch: epoch, train_loss (with dropout), train_accuracy, validation_loss,
        validation_accuracy, validation_auc (None for a single class), learning_rate, seconds,
        kept (1 if its weights are better than all before).

    Raises
    ------
    InputError
        If a set is empty, the disk too small or full, ``last.ckpt`` damaged, or the loss not finite.
    """
    for name, dataset in (("training", train_set), ("validation", validation_set)):
        if len(dataset) == 0:
            raise InputError(f"The {name} set is empty, expected at least one case; change the split.")
    _require_fit(model, train_set, recipe)
    if recipe.monitor == "auc":
        count_classes(list_labels(validation_set), "monitor=auc")
    folder, device = Path(folder), torch.device(device)
    folder.mkdir(parents=True, exist_ok=True)
    require_space(model, folder, recipe.copies)
    (return_freed_memory if recipe.save_memory else keep_freed_memory)()
    settings = {"fingerprint": fingerprint, **asdict(recipe)}
    settings["augmentation"] = asdict(augmenter) if augmenter else None
    if recipe.schedule != "cosine":
        del settings["max_epochs"]
    on_batch, on_epoch = on_batch or (lambda n: None), on_epoch or (lambda row: None)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(repeatable())
        loop = prepare_loop(model, recipe, train_set, augmenter, device, stack)
        history = _resume(loop, folder, settings)
        if history:
            on_batch(len(history) * math.ceil(len(train_set) / recipe.batch_size))
        state_written, write_time = -math.inf, 0.0
        while not _finished(history, recipe):
            row = loop.run_epoch(train_set, validation_set, len(history) + 1, on_batch)
            is_best = all(recipe.score(row) > recipe.score(earlier) for earlier in history)
            row["kept"] = int(is_best)
            history.append(row)
            with writing(folder):
                if is_best:
                    _write(save_weights, distributed.whole(loop.validated.model.state_dict()), folder / WEIGHTS)
                _write(write_table, folder / HISTORY, history, COLUMNS)
                now = time.perf_counter()
                is_due = distributed.agree(now - state_written >= write_time / STATE_SHARE)
                if is_due or _finished(history, recipe):
                    state = {"settings": settings, "max_epochs": recipe.max_epochs, "history": history}
                    _write(write_state, {**state, **loop.collect()}, folder)
                    state_written = time.perf_counter()
                    write_time = state_written - now
            on_epoch(row)
    return history


def keep(
    model: nn.Sequential,
    train_set: LabelledSet,
    validation_set: LabelledSet,
    recipe: Recipe,
    folder: str | os.PathLike,
    device: str | torch.device = "cpu",
) -> list[dict]:
    """Save the weights as they are, as a training of no epochs would.

    The history has a single row, epoch 0: the network as it is on both sets, in evaluation mode.
    """
    folder, row = Path(folder), {"epoch": 0}
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder, keep_state=False)
    for name, dataset in (("train", train_set), ("validation", validation_set)):
        labels = list_labels(dataset)
        logits = torch.from_numpy(predict(model, dataset, recipe.batch_size, device)).double()
        row |= evaluate(name, logits, torch.tensor(labels), Recipe().make_loss(labels))
    history = [{**row, "learning_rate": 0.0, "seconds": 0.0, "kept": 1}]
    save_weights(model.state_dict(), folder / WEIGHTS)
    write_table(folder / HISTORY, history, COLUMNS)
    return history


def _require_fit(model: nn.Sequential, train_set: LabelledSet, recipe: Recipe) -> None:
    """Raise `InputError` if the network cannot be trained by the recipe."""
    if recipe.precision == "bf16" and not any(isinstance(module, nn.Conv3d) for module in model):
        raise InputError("training.precision=bf16 is for network=nazari2021; set training.precision=float32.")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        smallest = min(recipe.batch_size, len(train_set) % recipe.batch_size or recipe.batch_size)
        if math.ceil(smallest / distributed.size()) == 1:
            shape = train_set[0][0].shape[1:]
            require_fit(model, shape, f"training.batch_size={recipe.batch_size}, {len(train_set)} training cases", n=1)


def _resume(loop: Loop, folder: Path, settings: dict) -> list[dict]:
    """Resume from the last state and return its history; if this training has none, clear the folder."""
    state = read_state(folder, settings, loop.recipe.max_epochs)
    distributed.agree(True)  # process 0 removes files only after all processes have read them
    _write(clear, folder, keep_state=state is not None)
    if state is None:
        return []
    loop.restore(state)
    _write(write_table, folder / HISTORY, state["history"], COLUMNS)
    return state["history"]


def _write(function: Callable, *arguments, **keywords) -> None:
    """Call a function that writes a file, in process 0 only."""
    if distributed.rank() == 0:
        function(*arguments, **keywords)


def _finished(history: Sequence[dict], recipe: Recipe) -> bool:
    if len(history) >= recipe.max_epochs:
        return True
    if recipe.patience is None or not history:
        return False
    scores = [recipe.score(row) for row in history]
    return len(scores) - 1 - scores.index(max(scores)) >= recipe.patience
