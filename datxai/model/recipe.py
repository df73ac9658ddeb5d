"""How a network is trained: PyTorch's optimiser, learning rates, loss and order of the cases."""

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
MONITORS: dict[str, Literal["min", "max"]] = {"loss": "min", "accuracy": "max", "auc": "max"}  # of the validation set
SAMPLINGS = ("shuffled", "balanced")
CLASSES = 2


@dataclass(frozen=True)
class Recipe:
    """Settings of a training, independent of network and data.

    Attributes
    ----------
    batch_size
        Cases per batch, over all processes.
    learning_rate
        Rate before schedule and warm-up.
    fan_in
        A weight with more inputs than this learns at a proportionally lower rate, as in the maximal update
        parametrisation (Yang et al. 2021, arXiv 2203.03466). If None, all weights learn at the same rate.
    optimiser, momentum, weight_decay
        "adam", "adamw" or "sgd"; only SGD uses the momentum. The decay is added to the gradient, except in AdamW.
    schedule, decay_epochs, decay_factor
        "constant"; "cosine", which reaches zero after ``max_epochs``; "step", which multiplies the rate by
        ``decay_factor`` every ``decay_epochs`` epochs; or "plateau", which does so when ``monitor`` has not improved
        for more than ``decay_epochs`` epochs.
    warmup_epochs
        Number of first epochs; epoch i of them has i / (``warmup_epochs`` + 1) of the schedule's rate.
    loss, focal_gamma
        "cross_entropy", or "focal": the cross entropy of each case times (1 - p)^gamma, where p is the probability of
        its label (Lin et al. 2017, arXiv 1708.02002).
    label_smoothing
        Share of each label that the cross entropy spreads over both classes.
    class_weights
        Weight of a case's loss by class: None, two numbers, or "balanced", which gives both classes the same total
        weight and a case a mean weight of 1. The loss is the sum over the cases divided by their number.
    sampling
        "shuffled": every case once per epoch; "balanced": as many cases, drawn with replacement, both classes alike.
    accumulate, clip_norm
        Number of batches per step; maximum norm of its gradient, which is scaled down to it if it is larger.
    ema_decay
        Validate and save exponential moving averages of weights and statistics, with this decay per step. If None, the
        weights themselves.
    max_epochs
        The only setting that may be raised later to resume (not with "cosine"). The default is the paper's: 1.5 h, 64 s
        per epoch.
    monitor, patience
        The best epoch, whose weights are kept, has the lowest validation "loss" or the highest "accuracy" or "auc"
        (ties: lowest loss). Stop after ``patience`` epochs without a better one; None trains ``max_epochs``.
    precision
        "float32", or "bf16" for the convolutions of the training step; the rest and validation stay float32.
    save_memory
        Never form the gradient of the largest linear layer (`factored.factored_gradient`), and return freed memory.
    shard
        Shard the parameters over the processes; the network stays sharded after training.
    seed
        Seed of everything random in an epoch, together with the epoch's number.
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
        for name, is_valid, expected in (
            ("fan_in", self.fan_in is None or self.fan_in > 0, "null, or 1 or more inputs"),
            ("momentum", 0 <= self.momentum < 1, "0 or more and less than 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("decay_epochs", self.decay_epochs >= 1, "1 or more"),
            ("decay_factor", 0 < self.decay_factor < 1, "more than 0 and less than 1"),
            ("warmup_epochs", self.warmup_epochs >= 0, "0 or more"),
            ("focal_gamma", 0 <= self.focal_gamma < math.inf, "0 or more"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more and less than 1"),
            ("class_weights", self._has_valid_weights(), "null, balanced, or two numbers of more than 0, as in [1,3]"),
            ("accumulate", self.accumulate >= 1, "1 or more"),
            ("clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "null or more than 0"),
            ("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "null, or more than 0 and less than 1"),
        ):
            if not is_valid:
                raise InputError(f"training.{name} is {getattr(self, name)}, expected {expected}.")
        for names, conflict, remedy in (
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
            if conflict:
                raise InputError(f"training.{names} exclude each other; set {remedy}.")

    def _has_valid_weights(self) -> bool:
        weights = self.class_weights
        if isinstance(weights, (str, type(None))):
            return weights in (None, "balanced")
        if not isinstance(weights, Sequence) or len(weights) != CLASSES:
            return False
        return all(isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in weights)

    @property
    def copies(self) -> int:
        """How many tensors of the size of the weights the training state holds."""
        moments = 2 if self.optimiser != "sgd" else int(self.momentum > 0)
        return 1 + moments + (self.ema_decay is not None)

    def make_optimiser(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """PyTorch's fused optimiser for these parameters, with one parameter group per learning rate."""
        groups: dict[float, list[Tensor]] = {}
        for parameter in parameters:
            inputs = math.prod(parameter.shape[1:])  # 1 for a bias
            scale = 1.0 if self.fan_in is None else min(1.0, self.fan_in / inputs)
            groups.setdefault(self.learning_rate * scale, []).append(parameter)
        options: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        if self.optimiser == "sgd":
            options["momentum"] = self.momentum
        by_rate = [{"params": group, "lr": rate} for rate, group in sorted(groups.items(), reverse=True)]
        return OPTIMISERS[self.optimiser](by_rate, **options)

    def make_schedulers(self, optimiser: torch.optim.Optimizer) -> list[lr_scheduler.LRScheduler]:
        """PyTorch's schedulers, which change the learning rate after each epoch; their factors multiply."""
        mode = MONITORS[self.monitor]
        schedulers = {
            "constant": lambda: [],
            "cosine": lambda: [lr_scheduler.CosineAnnealingLR(optimiser, self.max_epochs)],
            "step": lambda: [lr_scheduler.StepLR(optimiser, self.decay_epochs, self.decay_factor)],
            "plateau": lambda: [lr_scheduler.ReduceLROnPlateau(optimiser, mode, self.decay_factor, self.decay_epochs)],
        }[self.schedule]()
        n = self.warmup_epochs
        return [*schedulers, lr_scheduler.LinearLR(optimiser, 1 / (n + 1), 1, n)] if n else schedulers

    def make_loss(self, labels: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """A function of logits [n, 2] and labels [n] that sums the losses; ``labels`` are those of the training set."""
        weights = self.class_weights
        if weights == "balanced":
            weights = (len(labels) / CLASSES / count_classes(labels, "class_weights=balanced")).tolist()
        class_weights = None if weights is None else torch.tensor(weights)

        def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "sum") -> Tensor:
            weight = None if class_weights is None else class_weights.to(logits)
            return F.cross_entropy(
                logits, labels, weight=weight, reduction=reduction, label_smoothing=self.label_smoothing
            )

        def focal(logits: Tensor, labels: Tensor) -> Tensor:
            p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
            return ((1 - p) ** self.focal_gamma * cross_entropy(logits, labels, "none")).sum()

        return focal if self.loss == "focal" else cross_entropy

    def make_order(self, labels: Sequence[int]) -> Callable[[np.random.Generator], list[int]]:
        """A function of an epoch's random generator that returns its order of cases; ``labels`` of the training set."""
        if self.sampling == "shuffled":
            return lambda rng: rng.permutation(len(labels)).tolist()
        case_weights = (1 / count_classes(labels, "sampling=balanced"))[list(labels)].tolist()
        draw = partial(WeightedRandomSampler, case_weights, len(labels))
        return lambda rng: list(draw(generator=torch.Generator().manual_seed(int(rng.integers(2**63)))))

    def score(self, row: Mapping[str, float]) -> tuple[float, float]:
        """Rate an epoch by its row of the history: the larger, the better."""
        sign = 1 if MONITORS[self.monitor] == "max" else -1
        return sign * row[f"validation_{self.monitor}"], -row["validation_loss"]


def count_classes(labels: Sequence[int], needed_by: str) -> np.ndarray:
    """Number of cases per class; `InputError` if a class has none."""
    counts = np.bincount(labels, minlength=CLASSES)
    if not counts.all():
        raise InputError(
            f"training.{needed_by}: the set has {counts[0]} normal and {counts[1]} reduced cases, expected some of "
            f"both; change the split or the setting."
        )
    return counts
