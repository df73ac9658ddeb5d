"""One epoch of training: batches, optimiser, averaged weights, validation; and the state that the next one needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datxai.errors import InputError
from datxai.model import distributed
from datxai.model.augmentation import Augmenter
from datxai.model.batches import LabelledSet, list_labels, read_batches
from datxai.model.factored import factored_gradient
from datxai.model.network import LAYOUT, place
from datxai.model.prediction import Forward, evaluate, predict_with_labels
from datxai.model.recipe import Recipe
from datxai.model.state import collect_state, restore_state


@dataclass(frozen=True)
class Loop:
    """Network, optimisers and schedules of a training.

    ``replica`` is ``forward`` wrapped for training in several processes; ``average`` is the moving average of its
    weights, if there is one. Only the last optimiser is called; with ``save_memory`` the first steps by itself.
    """

    forward: Forward
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
    def validated(self) -> Forward:
        """The network that is validated and saved: the average, if there is one."""
        if self.average is None:
            return self.forward
        assert isinstance(self.average.module, nn.Sequential)
        return Forward(self.average.module)

    def run_epoch(
        self, train_set: LabelledSet, validation_set: LabelledSet, epoch: int, on_batch: Callable[[int], None]
    ) -> dict:
        """Train for one epoch, then validate; returns the row of the history."""
        start, rate = time.perf_counter(), self.optimisers[-1].param_groups[0]["lr"]
        train_loss, train_accuracy = self.train(train_set, epoch, on_batch)
        logits, labels = predict_with_labels(self.validated, validation_set, self.recipe.batch_size, self.device)
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            **evaluate("validation", logits.double(), labels, self.loss),
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
        """One pass in random order; returns the mean loss and accuracy over the cases."""
        seed, batch_size, accumulate = self.recipe.seed, self.recipe.batch_size, self.recipe.accumulate
        rng = np.random.default_rng([seed, epoch])
        order = self.order(rng)
        torch.manual_seed(int(rng.integers(2**63)))  # for dropout
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        parts = [distributed.part_of(batch) for batch in batches]
        sums = np.zeros(2)
        self.replica.train()
        for number, (volumes, labels) in enumerate(read_batches(dataset, [items for items, _ in parts], self.device)):
            (items, first), n = parts[number], len(batches[number])
            if self.augmenter:
                varied = [self.augmenter.vary(volume, [seed, epoch, item]) for volume, item in zip(volumes, items)]
                volumes = torch.stack(varied).to(memory_format=LAYOUT)
            if number % accumulate == 0:
                self.optimisers[-1].zero_grad()
            step_start = number - number % accumulate
            n_step = sum(map(len, batches[step_start : step_start + accumulate]))
            logits, labels = (rows[: max(n - first, 0)] for rows in (self.replica(volumes, first, n), labels))
            loss = self.loss(logits, labels)
            (loss * distributed.size() / n_step).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                self.update()
            totals = distributed.total(torch.stack([loss.detach(), (logits.argmax(1) == labels).sum()])).tolist()
            _require_finite(totals[0], f"training loss of epoch {epoch}, batch {number + 1},")
            sums += totals
            on_batch(1)
        mean_loss, accuracy = (sums / len(order)).tolist()
        return mean_loss, accuracy

    def update(self) -> None:
        """Take one step of the optimiser, and update the averaged weights."""
        optimiser = self.optimisers[-1]
        if self.recipe.clip_norm is not None:
            parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
        optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.forward.model)

    def collect(self) -> dict:
        """The state from which training can resume."""
        state = {"schedulers": [scheduler.state_dict() for scheduler in self.schedulers]}
        if self.average is not None:
            state["average"] = self.average.state_dict()  # pyright: ignore[reportArgumentType]
        return state | collect_state(self.forward, self.optimisers)

    def restore(self, state: dict) -> None:
        """Restore a state that `collect` returned."""
        restore_state(self.forward, self.optimisers, state)
        for scheduler, scheduler_state in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(scheduler_state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def prepare_loop(
    model: nn.Sequential,
    recipe: Recipe,
    train_set: LabelledSet,
    augmenter: Augmenter | None,
    device: torch.device,
    stack: ExitStack,
) -> Loop:
    """Place the network on its device, shard or replicate it over the processes, and make its optimisers."""
    labels = list_labels(train_set) if recipe.sampling == "balanced" or recipe.class_weights else [0] * len(train_set)
    loss, order = recipe.make_loss(labels), recipe.make_order(labels)
    forward = Forward(model, recipe.precision)
    if recipe.shard:
        forward.to(device)
    else:
        place(forward, device)
    average = None
    if recipe.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
    largest = _largest_linear(model) if recipe.shard or recipe.save_memory else None
    if largest is not None and recipe.shard:
        distributed.shard(forward, largest, device)
    optimisers = []
    if largest is not None and recipe.save_memory:
        optimisers.append(stack.enter_context(factored_gradient(largest, recipe.make_optimiser)))
    optimisers.append(
        recipe.make_optimiser([parameter for parameter in forward.parameters() if parameter.requires_grad])
    )
    return Loop(
        forward=forward,
        replica=forward if recipe.shard else distributed.replicate(forward, device),
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
    """The linear layer with the most weights, which is treated apart to save memory or to shard the network."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.weight.requires_grad]
    if not linear:
        raise InputError(
            "training.save_memory and training.shard: no linear layer of the network is trained; set both to false."
        )
    return max(linear, key=lambda layer: layer.weight.numel())


def _require_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"The {what} is {loss}, expected a finite number; lower training.learning_rate or check the "
            f"intensity scaling of the volumes."
        )
