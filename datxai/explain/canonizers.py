"""Canonizers by name: they temporarily rewrite a network into one that rules can be applied to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain._zennit import canonizers, layer, zennit
from datxai.explain.functional import FunctionalCanonizer


class SequentialMergeBatchNorm(canonizers.SequentialMergeBatchNorm):
    """Zennit's, made exact: the batch norm becomes the identity; weight and bias may be missing."""

    def register(self, linears: Sequence[nn.Module], batch_norm: Any) -> None:
        """Merge the batch norm into ``linears``; `remove` undoes it."""
        if batch_norm.running_var is None:
            raise InputError("a batch norm without running statistics (track_running_stats=False) cannot be merged")
        self.missing = [key for key in ("weight", "bias") if getattr(batch_norm, key) is None]
        for key in self.missing:
            value = torch.full_like(batch_norm.running_var, key == "weight")
            setattr(batch_norm, key, nn.Parameter(value, requires_grad=False))
        self.eps = batch_norm.eps
        super().register(linears, batch_norm)
        batch_norm.eps = 0.0  # Zennit 0.5 keeps it, which leaves a factor of 1 / sqrt(1 + eps)

    def remove(self) -> None:
        """Restore the batch norm."""
        super().remove()
        batch_norm: Any = self.batch_norm
        batch_norm.eps = self.eps
        for key in self.missing:
            vars(batch_norm).pop(key, None)  # where Zennit 1.0 puts it
            setattr(batch_norm, key, None)


class SiblingMergeBatchNorm(SequentialMergeBatchNorm):
    """Merges a batch norm into the layer before it in the same module.

    A layer defined before it in another module need not run before it, as in a DenseNet, whose blocks begin with batch
    norms. Batch norms without running statistics are not merged.
    """

    def apply(self, root_module: nn.Module) -> list:
        """Merge consecutive children of each module."""
        merged = []
        for parent in root_module.modules():
            for layer_before, norm in pairwise(parent.children()):
                fits = isinstance(layer_before, self.linear_type) and isinstance(norm, self.batch_norm_type)
                if fits and getattr(norm, "running_var", None) is not None:
                    merged.append(self.copy())
                    merged[-1].register((layer_before,), norm)
        return merged


class VideoResNetBlockCanonizer(canonizers.AttributeCanonizer):
    """Turns the additions in residual blocks of torchvision's three-dimensional ResNets into layers of type Sum."""

    def __init__(self):
        super().__init__(self._attributes)

    @staticmethod
    def _attributes(name: str, module: nn.Module) -> dict | None:
        from torchvision.models.video import resnet

        if not isinstance(module, (resnet.BasicBlock, resnet.Bottleneck)):
            return None
        return {"forward": _with_sum.__get__(module), "canonizer_sum": layer.Sum()}


def _with_sum(block: Any, x: Tensor) -> Tensor:
    branch = block.conv2(block.conv1(x))
    if hasattr(block, "conv3"):  # a bottleneck
        branch = block.conv3(branch)
    shortcut = x if block.downsample is None else block.downsample(x)
    return block.relu(block.canonizer_sum(torch.stack([shortcut, branch], dim=-1)))


class VideoResNetCanonizer(canonizers.CompositeCanonizer):
    """For torchvision's three-dimensional ResNets: merges batch norms and turns residual additions into layers."""

    def __init__(self):
        super().__init__((SequentialMergeBatchNorm(), VideoResNetBlockCanonizer()))


def _resnet_canonizer() -> canonizers.Canonizer:
    """Zennit's canonizer for ResNets, with the exact merge."""
    composite = zennit.torchvision.ResNetCanonizer()
    composite.canonizers = [
        SequentialMergeBatchNorm() if isinstance(canonizer, canonizers.SequentialMergeBatchNorm) else canonizer
        for canonizer in composite.canonizers
    ]
    return composite


CANONIZERS = {
    "sequential_merge_batch_norm": SequentialMergeBatchNorm,
    "batch_norm": SiblingMergeBatchNorm,
    "resnet": _resnet_canonizer,
    "resnet3d": VideoResNetCanonizer,
    "functional": FunctionalCanonizer,
}
