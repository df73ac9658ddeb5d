"""Training the classifier, so that it can be killed at any moment and go on, and predicting with it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datxai.errors import InputError
from datxai.files import write_table
from datxai.memory import keep_freed_memory, return_freed_memory
from datxai.model import distributed
from datxai.model.architectures import require_fit
from datxai.model.augmentation import Augmenter
from datxai.model.batches import LabelledSet, read_batches
from datxai.model.checkpoint import WEIGHTS, save_weights
from datxai.model.factored import factored_gradient
from datxai.model.network import LAYOUT, place
from datxai.model.recipe import Recipe, count_classes
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

COLUMNS = (
    "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "validation_auc",
    "learning_rate", "seconds", "kept",
)  # fmt: skip
STATE_SHARE = 0.05  # largest fraction of the time that is spent on writing the state


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
    """Train as the recipe says; keep the weights of the best epoch.

    In ``folder`` stand ``weights.safetensors`` (the best epoch), ``history.tsv`` and ``last.ckpt``. Killed
    and called again with the same arguments, training goes on from ``last.ckpt`` and ends with the weights
    of an uninterrupted run, bit for bit on the same machine and number of threads. A finished training returns at
    once.

    ``last.ckpt`` is with Adam three times the size of the weights (2.8 GB on the paper's grid). It is written after the
    first epoch, after the last, and between them so often that writing takes a twentieth of the time at most.

    Each process that torchrun has started (`distributed.join`) trains on its part of every batch;
    the loss is that of one process but for the order of summation. Process 0 writes the files.

    Parameters
    ----------
    model
        As `architectures.build` makes it. It is moved to ``device`` and ends with the weights of the last epoch.
    train_set, validation_set
        Give (volume [1, X, Y, Z] float32, label) by index.
    fingerprint
        Says which data and which network these are. A ``last.ckpt`` of another fingerprint, or of other
        settings given here, is no start: the three files are removed and training begins anew.
    augmenter
        Each training case is varied anew in each epoch, as the recipe's seed, epoch and index decide.
    on_batch
        Called with the number of batches done since the last call: 1, or first those done before a resume.
    on_epoch
        Called with the epoch's row of the history, after the files are written.

    Returns
    -------
    list of dict
        The history, a row per epoch: epoch, train_loss (with dropout), train_accuracy, validation_loss,
        validation_accuracy, validation_auc (None for a single class), learning_rate, seconds,
        kept (1 if its weights are better than all before).

    Raises
    ------
    InputError
        If a set is empty, the disk too small or full, ``last.ckpt`` damaged, or the loss no longer finite.
    """
    for name, dataset in (("training", train_set), ("validation", validation_set)):
        if len(dataset) == 0:
            raise InputError(f"The {name} set is empty, expected at least one case; change the split.")
    _require_fit(model, train_set, recipe)
    if recipe.monitor == "auc":
        count_classes(_labels(validation_set), "monitor=auc")
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
        stack.enter_context(_repeatable())
        loop = _prepare(model, recipe, train_set, augmenter, device, stack)
        history = _resume(loop, folder, settings)
        if history:
            on_batch(len(history) * math.ceil(len(train_set) / recipe.batch_size))
        written, cost = -math.inf, 0.0
        while not _finished(history, recipe):
            row = loop.run_epoch(train_set, validation_set, len(history) + 1, on_batch)
            is_best = all(recipe.score(row) > recipe.score(earlier) for earlier in history)
            row["kept"] = int(is_best)
            history.append(row)
            with writing(folder):
                if is_best:
                    _write(save_weights, distributed.whole(loop.judged.model.state_dict()), folder / WEIGHTS)
                _write(write_table, folder / HISTORY, history, COLUMNS)
                now = time.perf_counter()
                is_due = distributed.agree(now - written >= cost / STATE_SHARE)
                if is_due or _finished(history, recipe):
                    state = {"settings": settings, "max_epochs": recipe.max_epochs, "history": history}
                    _write(write_state, {**state, **loop.collect()}, folder)
                    written = time.perf_counter()
                    cost = written - now
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
    """Keep the weights as they are: the files of a training without an epoch, the history having epoch 0 alone.

    That row holds what the network makes of both sets as it is, in evaluation mode.
    """
    folder, row = Path(folder), {"epoch": 0}
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder, keep_state=False)
    for name, dataset in (("train", train_set), ("validation", validation_set)):
        labels = _labels(dataset)
        logits = torch.from_numpy(predict(model, dataset, recipe.batch_size, device)).double()
        row |= _judge(name, logits, torch.tensor(labels), Recipe().make_loss(labels))
    history = [{**row, "learning_rate": 0.0, "seconds": 0.0, "kept": 1}]
    save_weights(model.state_dict(), folder / WEIGHTS)
    write_table(folder / HISTORY, history, COLUMNS)
    return history


def predict(
    model: nn.Sequential, dataset: LabelledSet, batch_size: int = 8, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Logits [n, n_classes] float32 of all cases, in the order of ``dataset``, without dropout.

    The model is moved to ``device``; it is in the mode, training or evaluation, that it was in.
    """
    keep_freed_memory()
    place(model, device)
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


@dataclass(frozen=True)
class _Loop:
    """What an epoch is made with.

    ``replica`` is ``step`` in the form in which several processes train it together; ``average`` follows its weights,
    if wanted. The last optimiser is the one to call.
    """

    step: _Step
    replica: nn.Module
    average: AveragedModel | None
    optimisers: list[torch.optim.Optimizer]
    schedulers: list[LRScheduler]
    loss: Callable[[Tensor, Tensor], Tensor]
    order: Callable[[np.random.Generator], list[int]]
    recipe: Recipe
    augmenter: Augmenter | None
    device: torch.device

    @property
    def judged(self) -> _Step:
        """The network that is validated, and whose weights are kept."""
        if self.average is None:
            return self.step
        assert isinstance(self.average.module, nn.Sequential)
        return _Step(self.average.module)

    def run_epoch(
        self, train_set: LabelledSet, validation_set: LabelledSet, epoch: int, on_batch: Callable[[int], None]
    ) -> dict:
        """Train on the cases once, then validate: a row of the history."""
        start, rate = time.perf_counter(), self.optimisers[-1].param_groups[0]["lr"]
        train_loss, train_accuracy = self.train(train_set, epoch, on_batch)
        logits, labels = _apply(self.judged, validation_set, self.recipe.batch_size, self.device)
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            **_judge("validation", logits.double(), labels, self.loss),
            "learning_rate": rate,
            "seconds": time.perf_counter() - start,
        }
        _require_finite(row["validation_loss"], f"validation loss of epoch {epoch}")
        for scheduler in self.schedulers:
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(row[f"validation_{self.recipe.monitor}"])
            else:
                scheduler.step()
        return row

    def train(self, dataset: LabelledSet, epoch: int, on_batch: Callable[[int], None]) -> tuple[float, float]:
        """One pass in random order; mean loss and accuracy over the cases."""
        seed, batch_size, together = self.recipe.seed, self.recipe.batch_size, self.recipe.accumulate
        rng = np.random.default_rng([seed, epoch])
        order = self.order(rng)
        torch.manual_seed(int(rng.integers(2**63)))  # dropout
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        parts = [distributed.part_of(batch) for batch in batches]
        sums = np.zeros(2)
        self.replica.train()
        for number, (volumes, labels) in enumerate(read_batches(dataset, [items for items, _ in parts], self.device)):
            (items, first), n = parts[number], len(batches[number])
            if self.augmenter:
                varied = [self.augmenter.vary(volume, [seed, epoch, item]) for volume, item in zip(volumes, items)]
                volumes = torch.stack(varied).to(memory_format=LAYOUT)
            if number % together == 0:
                self.optimisers[-1].zero_grad()
            begin = number - number % together
            n_step = sum(map(len, batches[begin : begin + together]))
            logits, labels = (rows[: max(n - first, 0)] for rows in (self.replica(volumes, first, n), labels))
            loss = self.loss(logits, labels)
            (loss * distributed.size() / n_step).backward()
            if (number + 1) % together == 0 or number + 1 == len(batches):
                self.update()
            totals = distributed.total(torch.stack([loss.detach(), (logits.argmax(1) == labels).sum()])).tolist()
            _require_finite(totals[0], f"training loss of epoch {epoch}, batch {number + 1},")
            sums += totals
            on_batch(1)
        mean_loss, accuracy = (sums / len(order)).tolist()
        return mean_loss, accuracy

    def update(self) -> None:
        """A step of the optimiser with the gradients that are there."""
        optimiser = self.optimisers[-1]
        if self.recipe.clip_norm is not None:
            followed = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(followed, self.recipe.clip_norm)
        optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.step.model)

    def collect(self) -> dict:
        """All that an epoch leaves to the next."""
        kept = {"schedulers": [scheduler.state_dict() for scheduler in self.schedulers]}
        if self.average is not None:
            kept["average"] = self.average.state_dict()  # pyright: ignore[reportArgumentType]
        return kept | collect_state(self.step, self.optimisers)

    def restore(self, state: dict) -> None:
        """Put back what `collect` gave."""
        restore_state(self.step, self.optimisers, state)
        for scheduler, kept in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(kept)
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def _prepare(
    model: nn.Sequential,
    recipe: Recipe,
    train_set: LabelledSet,
    augmenter: Augmenter | None,
    device: torch.device,
    stack: ExitStack,
) -> _Loop:
    """The network on its device, spread or copied over the processes, with its optimisers."""
    labels = _labels(train_set) if recipe.sampling == "balanced" or recipe.class_weights else [0] * len(train_set)
    loss, order = recipe.make_loss(labels), recipe.make_order(labels)
    step = _Step(model, recipe.precision)
    if recipe.shard:
        step.to(device)
    else:
        place(step, device)
    average = None
    if recipe.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
    largest = _largest_linear(model) if recipe.shard or recipe.save_memory else None
    if largest is not None and recipe.shard:
        distributed.shard(step, largest, device)
    optimisers = []
    if largest is not None and recipe.save_memory:
        optimisers.append(stack.enter_context(factored_gradient(largest, recipe.make_optimiser)))
    optimisers.append(recipe.make_optimiser([parameter for parameter in step.parameters() if parameter.requires_grad]))
    return _Loop(
        step=step,
        replica=step if recipe.shard else distributed.replicate(step, device),
        average=average,
        optimisers=optimisers,
        schedulers=[scheduler for optimiser in optimisers for scheduler in recipe.make_schedulers(optimiser)],
        loss=loss,
        order=order,
        recipe=recipe,
        augmenter=augmenter,
        device=device,
    )


def _largest_linear(model: nn.Module) -> nn.Linear:
    """Whose gradient is never formed, or whose weight is gathered by itself."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.weight.requires_grad]
    if not linear:
        raise InputError(
            "training.save_memory and training.shard: no linear layer of the network is trained; set both to false."
        )
    return max(linear, key=lambda layer: layer.weight.numel())


def _require_fit(model: nn.Sequential, train_set: LabelledSet, recipe: Recipe) -> None:
    """Refuse what a network and a recipe cannot do together."""
    if recipe.precision == "bf16" and not any(isinstance(module, nn.Conv3d) for module in model):
        raise InputError("training.precision=bf16 is for network=nazari2021; set training.precision=float32.")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        smallest = min(recipe.batch_size, len(train_set) % recipe.batch_size or recipe.batch_size)
        if math.ceil(smallest / distributed.size()) == 1:
            shape = train_set[0][0].shape[1:]
            require_fit(model, shape, f"training.batch_size={recipe.batch_size}, {len(train_set)} training cases", n=1)


def _labels(dataset: LabelledSet) -> list[int]:
    return [dataset[number][1] for number in range(len(dataset))]


def _judge(name: str, logits: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> dict:
    """What a set of cases says of the network."""
    return {
        f"{name}_loss": (loss(logits, labels) / len(labels)).item(),
        f"{name}_accuracy": (logits.argmax(1) == labels).double().mean().item(),
        f"{name}_auc": _measure_auc(logits, labels),
    }


def _measure_auc(logits: Tensor, labels: Tensor) -> float | None:
    """The area under the ROC curve of both classes' difference; None where all cases are of one class."""
    margins = (logits[:, 1] - logits[:, 0]).double()
    higher = margins[labels == 1][:, None] - margins[labels == 0]  # of all pairs of a reduced and a normal case
    return ((higher.sign() + 1) / 2).mean().item() if higher.numel() else None


def _apply(
    step: _Step, dataset: LabelledSet, batch_size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of all cases, on the CPU, in evaluation mode."""
    was_training = step.model.training
    step.eval()
    try:
        with torch.inference_mode():
            own, _ = distributed.part_of(list(range(len(dataset))))
            batches = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
            outputs = [(step(volumes), labels) for volumes, labels in read_batches(dataset, batches, device)]
            logits, labels = (distributed.gather(torch.cat(rows))[: len(dataset)].cpu() for rows in zip(*outputs))
    finally:
        step.train(was_training)
    return logits, labels


def _resume(loop: _Loop, folder: Path, settings: dict) -> list[dict]:
    """Go on from the last state and return its history; where there is none of this training, clear the folder."""
    state = read_state(folder, settings, loop.recipe.max_epochs)
    distributed.agree(True)  # process 0 removes files only after all processes have read them
    _write(clear, folder, keep_state=state is not None)
    if state is None:
        return []
    loop.restore(state)
    _write(write_table, folder / HISTORY, state["history"], COLUMNS)
    return state["history"]


def _write(function: Callable, *arguments, **keywords) -> None:
    """Call a function that writes a file, on process 0 alone."""
    if distributed.rank() == 0:
        function(*arguments, **keywords)


@contextmanager
def _repeatable() -> Iterator[None]:
    """On a GPU the same numbers every time, in full float32: cuDNN convolves in TF32 unless told not to."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def _finished(history: Sequence[dict], recipe: Recipe) -> bool:
    if len(history) >= recipe.max_epochs:
        return True
    if recipe.patience is None or not history:
        return False
    scores = [recipe.score(row) for row in history]
    return len(scores) - 1 - scores.index(max(scores)) >= recipe.patience


def _require_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"The {what} is {loss}, expected a finite number; lower training.learning_rate or check the "
            f"intensity scaling of the volumes."
        )
