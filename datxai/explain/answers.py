"""Cache the answers of networks, so that the same layers do not process the same input twice."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor, nn

from datxai.explain.layers import is_plain
from datxai.explain.network import run

_SEPARATE_KEYS = {"_parameters", "_buffers", "_modules"}


class Answers:
    """Calls networks and caches their answers to each input.

    For a `torch.nn.Sequential` it caches the few outputs of the first fully connected layer, for any other network its
    outputs. `Sequential` networks with the same layers up to there, such as those of a cascading randomisation, share
    cached values, and explaining further outputs for the same inputs is free. Weights are identified by object and
    version, layers by type and settings, other networks also by object.
    """

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        """Clear the cache."""
        self._cache: dict[tuple, dict[bytes, Tensor]] = {}
        self._held: dict[int, object] = {}  # keeps objects alive, so that their ids are not reused

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        """Outputs of ``model`` [batch, ...] for inputs [batch, ...], without a gradient."""
        first, rest = _split(model)
        identity = None if first is not model else self._hold(model)
        cached = self._cache.setdefault((identity, self._describe_layer(first), x.shape[1:], x.dtype, x.device), {})
        keys = [sha256(case.contiguous().cpu().view(torch.uint8).numpy().data).digest() for case in x.detach()]
        new = {key: index for index, key in enumerate(keys) if key not in cached}
        with torch.no_grad():
            if new:
                cached.update(zip(new, run(first, x if len(new) == len(x) else x[[*new.values()]])))
            return run(rest, torch.stack([cached[key] for key in keys]))

    def _describe_layer(self, layer: nn.Module) -> tuple:
        """Type, weights and settings of a layer and its children: layers with equal descriptions compute the same."""
        tensors = {**dict(layer._parameters.items()), **dict(layer._buffers.items())}  # no dicts in a scripted module
        settings = {name: value for name, value in vars(layer).items() if name not in _SEPARATE_KEYS}
        children = layer._modules.items()
        inner = ((name, None if child is None else self._describe_layer(child)) for name, child in children)
        return type(layer), self._describe(tensors), self._describe(settings), *inner

    def _describe(self, value: object) -> object:
        if isinstance(value, Tensor):
            return self._hold(value), value._version
        if value is None or isinstance(value, (bool, int, float, str)):
            return type(value), value
        if isinstance(value, dict):
            return tuple((name, self._describe(entry)) for name, entry in value.items())
        if isinstance(value, (tuple, list)):
            return tuple(map(self._describe, value))
        if isinstance(value, (set, frozenset)):
            return frozenset(map(self._describe, value))
        return self._hold(value)

    def _hold(self, value: object) -> int:
        self._held[id(value)] = value
        return id(value)


def _split(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Split a plain Sequential after its first fully connected layer; any other network is not split."""
    if isinstance(model, nn.Sequential) and is_plain(model, nn.Sequential):
        for end, layer in enumerate(model, start=1):
            if isinstance(layer, nn.Linear):
                return model[:end], model[end:]
    return model, nn.Identity()
