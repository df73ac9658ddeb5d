"""Restore a network after it was modified to explain it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import nn

from datxai.errors import InputError


class State:
    """A snapshot of a network for `restore`: the attributes of its modules, and the memory of its tensors.

    Weights are not copied, since canonizers give a parameter new memory and leave the old unchanged. Buffers are, for
    networks that count or average their inputs.
    """

    def __init__(self, model: nn.Module):
        self.modules = list(model.modules())
        self.attributes = [[attributes.copy() for attributes in _attribute_dicts(module)] for module in self.modules]
        self.tensors = [(tensor, tensor.data) for tensor in chain(model.parameters(), model.buffers())]
        mutable = (tensor for tensor in model.buffers() if not tensor.is_inference())
        self.buffers = [(tensor, tensor._version, tensor.detach().clone()) for tensor in mutable]

    def restore(self) -> None:
        """Restore the network to the snapshot."""
        for module, copies in zip(self.modules, self.attributes):
            for attributes, copy in zip(_attribute_dicts(module), copies):
                for key in attributes.keys() - copy.keys():
                    del attributes[key]
                attributes.update(copy)
        for tensor, data in self.tensors:
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data
        for tensor, version, content in self.buffers:
            if tensor._version != version:
                tensor.data.copy_(content)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Evaluate without parameter gradients, and restore the network afterwards, also after an exception."""
    before = State(model)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters() if not parameter.is_inference()]
    try:
        _evaluate(model)
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        before.restore()
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:
        raise InputError(
            f"the network, a {type(model).__name__}, cannot be put into evaluation mode ({error}), as those of "
            f"torch.export cannot; pass the network that was exported."
        ) from error
    for module in model.modules():
        module.training = False  # also where ``train`` is overridden


_DICTS = [name for name, value in vars(nn.Module()).items() if isinstance(value, dict)]  # hooks among them


def _attribute_dicts(module: nn.Module) -> tuple[dict, ...]:
    """The dicts that hold a module's state, in which canonizers, rules and hooks replace entries."""
    return vars(module), *(vars(module)[name] for name in _DICTS if name in vars(module))
