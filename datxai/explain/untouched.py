"""A network is worked on while it is explained, and is afterwards what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import nn

from datxai.errors import InputError


class State:
    """What a network was when this was made, for `restore`: its modules' attributes, and which memory tensors use.

    No weight is copied: canonizers put other memory behind a parameter and leave the old as it was. Buffers are, for
    networks that count or average what they are asked.
    """

    def __init__(self, model: nn.Module):
        self.modules = list(model.modules())
        self.held = [[held.copy() for held in _holders(module)] for module in self.modules]
        self.tensors = [(tensor, tensor.data) for tensor in chain(model.parameters(), model.buffers())]
        counting = (tensor for tensor in model.buffers() if not tensor.is_inference())
        self.buffers = [(tensor, tensor._version, tensor.detach().clone()) for tensor in counting]

    def restore(self) -> None:
        """Make the network what it was."""
        for module, copies in zip(self.modules, self.held):
            for held, copy in zip(_holders(module), copies):
                for key in held.keys() - copy.keys():
                    del held[key]
                held.update(copy)
        for tensor, data in self.tensors:
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data
        for tensor, version, content in self.buffers:
            if tensor._version != version:
                tensor.data.copy_(content)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients; afterwards the network is what it was, also after an exception."""
    before = State(model)
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters() if not parameter.is_inference()]
    try:
        _evaluate(model)
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        before.restore()
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:
        raise InputError(
            f"the network, a {type(model).__name__}, cannot be put into evaluation mode ({error}), as those of "
            f"torch.export cannot; hand over the network that it was made from."
        ) from error
    for module in model.modules():
        module.training = False  # also where ``train`` is overridden


_OWN = [name for name, value in vars(nn.Module()).items() if isinstance(value, dict)]  # hooks among them


def _holders(module: nn.Module) -> tuple[dict, ...]:
    """Where a module keeps its state: canonizers, rules and hooks replace entries of these."""
    return vars(module), *(vars(module)[name] for name in _OWN if name in vars(module))
