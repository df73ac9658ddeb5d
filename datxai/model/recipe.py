"""How a network is trained: optimiser, learning rates, loss and order of the cases, as PyTorch has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import WeightedRandomSampler

from datxai.errors import InputError

Precision = Literal["float32", "bf16"]  # of the convolutions
OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
SCHEDULES = ("constant", "cosine", "step", "plateau")
LOSSES = ("cross_entropy", "focal")
MONITORS = {"loss": "min", "accuracy": "max", "auc": "max"}  # of the validation set, and which is better
SAMPLINGS = ("shuffled", "balanced")
CLASSES = 2


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever it is and whatever it is trained on.

    Attributes
    ----------
    batch_size
        Of all processes together.
    learning_rate
        Before schedule and warm-up.
    fan_in
        A weight with more inputs than this learns at a rate lower in proportion, as in the maximal update
        parametrisation (Yang et al. 2021, arXiv 2203.03466); None: all learn at the same rate.
    optimiser, momentum, weight_decay
        "adam", "adamw" or "sgd", which alone has momentum; the decay is added to the gradient, but in AdamW.
    schedule, decay_epochs, decay_factor
        "constant"; "cosine", which reaches zero after ``max_epochs``; "step", which multiplies the rate by
        ``decay_factor`` every ``decay_epochs`` epochs; or "plateau", which does so when ``monitor`` has not improved
        for more than ``decay_epochs`` epochs.
    warmup_epochs
        So many first epochs have 1, 2, 3, ... parts in ``warmup_epochs`` + 1 of the schedule's rate.
    loss, focal_gamma
        "cross_entropy", or "focal": that of each case times (1 - p)^gamma, p the probability of its label (Lin et al.
        2017, arXiv 1708.02002).
    label_smoothing
        Of the cross entropy: so much of each label is spread over both classes.
    class_weights
        What the loss of a case of each class counts: None, two numbers, or "balanced": both classes count the same
        in all, one case 1 on average. The loss is the sum over the cases divided by their number.
    sampling
        "shuffled": every case once an epoch; "balanced": as many cases drawn with replacement, both classes alike.
    accumulate, clip_norm
        So many batches make one step; the norm of its gradient is brought down to ``clip_norm`` where it is larger.
    ema_decay
        Validated and kept are the exponential moving averages of weights and statistics, of this decay a step; None:
        the weights themselves.
    max_epochs
        The only setting that may be raised later, to go on (not with "cosine"). The default is the paper's: 1.5 h, 64 s
        an epoch.
    monitor, patience
        The best epoch, whose weights are kept, has the lowest validation "loss" or the highest "accuracy" or "auc"
        (of equal ones the lowest loss). Stop after so many epochs without a better one; None trains ``max_epochs``.
    precision
        "float32", or "bf16" for the convolutions of the training step; the rest and validation stay float32.
    save_memory
        Never form the gradient of the largest linear layer (`factored.factored_gradient`), and return freed memory.
    shard
        Spread the parameters over the processes; the network is left spread.
    seed
        All that is random in an epoch comes from it and the epoch's number.
    """

    batch_size: int = 8
    learning_rate: float = 1e-4
    fan_in: int | None = None
    optimiser: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    decay_epochs: int = 10
    decay_factor: float = 0.1
    warmup_epochs: int = 0
    loss: str = "cross_entropy"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weights: str | Sequence[float] | None = None
    sampling: str = "shuffled"
    accumulate: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    max_epochs: int = 84
    monitor: str = "loss"
    patience: int | None = None
    precision: Precision = "float32"
    save_memory: bool = False
    shard: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, choices in (
            ("precision", get_args(Precision)), ("optimiser", OPTIMISERS), ("schedule", SCHEDULES), ("loss", LOSSES),
            ("monitor", MONITORS), ("sampling", SAMPLINGS),
        ):  # fmt: skip
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"training.{name} is {value!r}, expected one of {', '.join(choices)}.")
        for name, holds, expected in (
            ("fan_in", self.fan_in is None or self.fan_in > 0, "null, or 1 or more inputs"),
            ("momentum", 0 <= self.momentum < 1, "0 or more and less than 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("decay_epochs", self.decay_epochs >= 1, "1 or more"),
            ("decay_factor", 0 < self.decay_factor < 1, "more than 0 and less than 1"),
            ("warmup_epochs", self.warmup_epochs >= 0, "0 or more"),
            ("focal_gamma", 0 <= self.focal_gamma < math.inf, "0 or more"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more and less than 1"),
            ("class_weights", self._has_weights(), "null, balanced, or two numbers of more than 0, as in [1,3]"),
            ("accumulate", self.accumulate >= 1, "1 or more"),
            ("clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "null or more than 0"),
            ("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "null, or more than 0 and less than 1"),
        ):
            if not holds:
                raise InputError(f"training.{name} is {getattr(self, name)}, expected {expected}.")
        for names, both, instead in (
            ("save_memory and training.shard", self.save_memory and self.shard, "one of them to false"),
            ("save_memory and training.accumulate", self.save_memory and self.accumulate > 1, "accumulate to 1"),
            ("save_memory and training.clip_norm", self.save_memory and self.clip_norm, "clip_norm to null"),
            ("shard and training.ema_decay", self.shard and self.ema_decay, "ema_decay to null"),
            ("shard and training.clip_norm", self.shard and self.clip_norm, "clip_norm to null"),
            ("shard and a schedule", self.shard and (self.schedule != "constant" or self.warmup_epochs),
             "schedule to constant and warmup_epochs to 0"),
            ("loss=focal and training.label_smoothing", self.loss == "focal" and self.label_smoothing,
             "label_smoothing to 0"),
        ):  # fmt: skip
            if both:
                raise InputError(f"training.{names} exclude each other; set {instead}.")

    def _has_weights(self) -> bool:
        weights = self.class_weights
        if isinstance(weights, (str, type(None))):
            return weights in (None, "balanced")
        if not isinstance(weights, Sequence) or len(weights) != CLASSES:
            return False
        return all(isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in weights)

    @property
    def copies(self) -> int:
        """How many tensors of the size of the weights the state of a training has."""
        moments = 2 if self.optimiser != "sgd" else int(self.momentum > 0)
        return 1 + moments + (self.ema_decay is not None)

    def make_optimiser(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """PyTorch's optimiser for these parameters, in its fused form, with a group of them for each rate."""
        groups: dict[float, list[Tensor]] = {}
        for parameter in parameters:
            inputs = math.prod(parameter.shape[1:])  # 1 for a bias
            slower = 1.0 if self.fan_in is None else min(1.0, self.fan_in / inputs)
            groups.setdefault(self.learning_rate * slower, []).append(parameter)
        own: dict[str, Any] = {"momentum": self.momentum} if self.optimiser == "sgd" else {}
        kind = OPTIMISERS[self.optimiser]
        rates = [{"params": group, "lr": rate} for rate, group in sorted(groups.items(), reverse=True)]
        return kind(rates, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True, **own)

    def make_schedulers(self, optimiser: torch.optim.Optimizer) -> list[lr_scheduler.LRScheduler]:
        """What changes an optimiser's rate after each epoch: PyTorch's, whose factors multiply."""
        main = {
            "constant": lambda: [],
            "cosine": lambda: [lr_scheduler.CosineAnnealingLR(optimiser, self.max_epochs)],
            "step": lambda: [lr_scheduler.StepLR(optimiser, self.decay_epochs, self.decay_factor)],
            "plateau": lambda: [
                lr_scheduler.ReduceLROnPlateau(
                    optimiser, MONITORS[self.monitor], self.decay_factor, self.decay_epochs  # pyright: ignore
                )
            ],
        }[self.schedule]()
        n = self.warmup_epochs
        return [*main, lr_scheduler.LinearLR(optimiser, 1 / (n + 1), 1, n)] if n else main

    def make_loss(self, labels: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """From logits [n, 2] and labels [n] to the sum of the losses; ``labels`` are those of the training set."""
        weights = self.class_weights
        if weights == "balanced":
            weights = (len(labels) / CLASSES / count_classes(labels, "class_weights=balanced")).tolist()
        numbers = None if weights is None else torch.tensor(weights)

        def entropy(logits: Tensor, labels: Tensor, reduction: str = "sum") -> Tensor:
            weight = None if numbers is None else numbers.to(logits)
            return F.cross_entropy(
                logits, labels, weight=weight, reduction=reduction, label_smoothing=self.label_smoothing
            )

        def focal(logits: Tensor, labels: Tensor) -> Tensor:
            p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
            return ((1 - p) ** self.focal_gamma * entropy(logits, labels, "none")).sum()

        return focal if self.loss == "focal" else entropy

    def make_order(self, labels: Sequence[int]) -> Callable[[np.random.Generator], list[int]]:
        """From an epoch's random numbers to the order of its cases; ``labels`` are those of the training set."""
        if self.sampling == "shuffled":
            return lambda rng: rng.permutation(len(labels)).tolist()
        chances = (1 / count_classes(labels, "sampling=balanced"))[list(labels)].tolist()
        draw = partial(WeightedRandomSampler, chances, len(labels))
        return lambda rng: list(draw(generator=torch.Generator().manual_seed(int(rng.integers(2**63)))))

    def score(self, row: Mapping[str, float]) -> tuple[float, float]:
        """How good an epoch was, by its row of the history: the larger, the better."""
        sign = 1 if MONITORS[self.monitor] == "max" else -1
        return sign * row[f"validation_{self.monitor}"], -row["validation_loss"]


def count_classes(labels: Sequence[int], needed_by: str) -> np.ndarray:
    """How many cases of each class; `InputError` where one has none."""
    counts = np.bincount(labels, minlength=CLASSES)
    if not counts.all():
        raise InputError(
            f"training.{needed_by}: the set has {counts[0]} normal and {counts[1]} reduced cases, expected some of "
            f"both; change the split or the setting."
        )
    return counts
