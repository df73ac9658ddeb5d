"""Canonizers by name: they rewrite a network, while it is explained, into layers that rules can be given to."""

import torch
from torch import Tensor, nn
from torchvision.models.video import resnet as video_resnet

from datxai.explain._zennit import ResNetCanonizer, canonizers, layer


class VideoResNetBlockCanonizer(canonizers.AttributeCanonizer):
    """Makes the additions in the residual blocks of torchvision's three-dimensional ResNets layers of type Sum."""

    def __init__(self):
        super().__init__(self._attributes)

    @staticmethod
    def _attributes(name: str, module: nn.Module) -> dict | None:
        if not isinstance(module, (video_resnet.BasicBlock, video_resnet.Bottleneck)):
            return None
        return {"forward": _with_sum.__get__(module), "canonizer_sum": layer.Sum()}


def _with_sum(block: nn.Module, x: Tensor) -> Tensor:
    branch = block.conv2(block.conv1(x))
    if isinstance(block, video_resnet.Bottleneck):
        branch = block.conv3(branch)
    shortcut = x if block.downsample is None else block.downsample(x)
    return block.relu(block.canonizer_sum(torch.stack([shortcut, branch], dim=-1)))


class VideoResNetCanonizer(canonizers.CompositeCanonizer):
    """For torchvision's three-dimensional ResNets: merges batch norms, and makes residual additions layers."""

    def __init__(self):
        super().__init__((canonizers.SequentialMergeBatchNorm(), VideoResNetBlockCanonizer()))


CANONIZERS = {
    "sequential_merge_batch_norm": canonizers.SequentialMergeBatchNorm,
    "resnet": ResNetCanonizer,
    "resnet3d": VideoResNetCanonizer,
}
