"""Canonizers by name: they rewrite a network, while it is explained, into layers that rules can be given to."""

import torch
from torch import Tensor, nn

from datxai.explain._zennit import canonizers, layer, zennit


class VideoResNetBlockCanonizer(canonizers.AttributeCanonizer):
    """Makes the additions in the residual blocks of torchvision's three-dimensional ResNets layers of type Sum."""

    def __init__(self):
        super().__init__(self._attributes)

    @staticmethod
    def _attributes(name: str, module: nn.Module) -> dict | None:
        from torchvision.models.video import resnet

        if not isinstance(module, (resnet.BasicBlock, resnet.Bottleneck)):
            return None
        return {"forward": _with_sum.__get__(module), "canonizer_sum": layer.Sum()}


def _with_sum(block: nn.Module, x: Tensor) -> Tensor:
    branch = block.conv2(block.conv1(x))
    if hasattr(block, "conv3"):  # a bottleneck
        branch = block.conv3(branch)
    shortcut = x if block.downsample is None else block.downsample(x)
    return block.relu(block.canonizer_sum(torch.stack([shortcut, branch], dim=-1)))


class VideoResNetCanonizer(canonizers.CompositeCanonizer):
    """For torchvision's three-dimensional ResNets: merges batch norms, and makes residual additions layers."""

    def __init__(self):
        super().__init__((canonizers.SequentialMergeBatchNorm(), VideoResNetBlockCanonizer()))


CANONIZERS = {
    "sequential_merge_batch_norm": canonizers.SequentialMergeBatchNorm,
    "resnet": lambda: zennit.torchvision.ResNetCanonizer(),
    "resnet3d": VideoResNetCanonizer,
}
