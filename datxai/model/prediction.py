"""The forward pass of training and prediction, and the metrics of its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datxai.memory import keep_freed_memory
from datxai.model import distributed
from datxai.model.batches import LabelledSet, read_batches
from datxai.model.network import LAYOUT, place


def predict(
    model: nn.Sequential, dataset: LabelledSet, batch_size: int = 8, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Logits [n, n_classes] float32 of all cases, in the order of ``dataset``, without dropout.

    The model is moved to ``device`` and keeps its mode, training or evaluation.
    """
    keep_freed_memory()
    place(model, device)
    with repeatable():
        return predict_with_labels(Forward(model), dataset, batch_size, torch.device(device))[0].numpy()


class Forward(nn.Module):
    """The forward pass from volumes [n, 1, X, Y, Z] to logits [n, n_classes], in the form that trains fastest.

    With ``precision`` "bf16" only the convolutions, and only in training mode, run in bfloat16: in the linear layers
    the loss would drift. ReLU works in place. Each of several processes receives the rows of a batch of ``n`` that
    start at ``first``; it draws dropout for the whole batch and uses its own rows, so that the result does not depend
    on the number of processes.
    """

    def __init__(self, model: nn.Sequential, precision: str = "float32"):
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, x: torch.Tensor, first: int = 0, n: int = 0) -> torch.Tensor:
        use_bf16 = self.training and self.precision == "bf16"
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
                with torch.autocast(x.device.type, torch.bfloat16, enabled=use_bf16 and isinstance(module, nn.Conv3d)):
                    x = module(x.float() if isinstance(module, nn.Linear) else x)
        return x


def predict_with_labels(
    forward: Forward, dataset: LabelledSet, batch_size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of all cases, on the CPU, in evaluation mode."""
    was_training = forward.model.training
    forward.eval()
    try:
        with torch.inference_mode():
            rows, _ = distributed.part_of(list(range(len(dataset))))
            batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
            outputs = [(forward(volumes), labels) for volumes, labels in read_batches(dataset, batches, device)]
            logits, labels = (distributed.gather(torch.cat(tensors))[: len(dataset)].cpu() for tensors in zip(*outputs))
    finally:
        forward.train(was_training)
    return logits, labels


def evaluate(name: str, logits: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> dict:
    """Mean loss, accuracy and AUC of logits [n, 2], as columns of the history prefixed with ``name``."""
    return {
        f"{name}_loss": (loss(logits, labels) / len(labels)).item(),
        f"{name}_accuracy": (logits.argmax(1) == labels).double().mean().item(),
        f"{name}_auc": _measure_auc(logits, labels),
    }


def _measure_auc(logits: Tensor, labels: Tensor) -> float | None:
    """The area under the ROC curve of the difference of the logits; None if all cases are of one class."""
    margins = (logits[:, 1] - logits[:, 0]).double()
    higher = margins[labels == 1][:, None] - margins[labels == 0]  # of each pair of a reduced and a normal case
    return ((higher.sign() + 1) / 2).mean().item() if higher.numel() else None


@contextmanager
def repeatable() -> Iterator[None]:
    """Make a GPU return the same numbers every time, in full float32: by default cuDNN convolves in TF32."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
