"""A network is worked on while it is explained, and is afterwards what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import nn


class State:
    """What a network was when this was made, for `restore`: its modules' attributes, and which memory tensors use.

    Nothing is copied: canonizers put other memory behind a parameter and leave the old as it was.
    """

    def __init__(self, model: nn.Module):
        self.modules = list(model.modules())
        self.held = [[held.copy() for held in _holders(module)] for module in self.modules]
        self.tensors = [(tensor, tensor.data) for tensor in chain(model.parameters(), model.buffers())]

    def restore(self) -> None:
        for module, copies in zip(self.modules, self.held):
            for held, copy in zip(_holders(module), copies):
                for key in held.keys() - copy.keys():
                    del held[key]
                held.update(copy)
        for tensor, data in self.tensors:
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients; afterwards the network is what it was, also after an exception."""
    before = State(model)
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        before.restore()
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def _holders(module: nn.Module) -> tuple[dict, ...]:
    """Where a module keeps its state: canonizers and rules of some Zennit versions replace entries of these."""
    return vars(module), module._parameters, module._buffers, module._modules
