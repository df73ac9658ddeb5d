"""The gradient of a large linear layer as two factors, so that it is never in memory as a whole.

The gradient of a linear layer's weight is the product of the gradient of its output, [batch, units], and its input,
[batch, features]. On the paper's grid the product is as large as the weight, 0.94 GB, and the factors are a quarter of
that at batch 8. Here the optimiser receives the product a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from datxai.model import distributed

ROWS = 4  # rows of the weight at a time: 118 MB of gradient on the paper's grid


@contextmanager
def factored_gradient(
    layer: nn.Linear, make_optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> Iterator[torch.optim.Optimizer]:
    """In this context each backward pass ends with an optimiser step on the weight of ``layer``; no gradient is kept.

    The optimiser must work element by element, as Adam does. Its step is the one on the whole gradient, but for the
    order of summation. Yields the optimiser so that its state can be saved and restored; ``step`` must not be called
    outside. The optimiser of the other parameters updates the bias. Processes exchange factors, not gradients.
    """
    rows = [nn.Parameter(block) for block in layer.weight.detach().split(ROWS)]  # views of the weight
    optimiser = make_optimiser(rows)

    def update(x: torch.Tensor, dy: torch.Tensor) -> None:
        x, dy = distributed.gather(x), distributed.gather(dy) / distributed.size()
        for block, columns in zip(rows, dy.split(ROWS, dim=1)):
            block.grad = columns.T @ x
            optimiser.step()
            block.grad = None

    def capture(_, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if not inputs[0].requires_grad:
            return
        factors = [inputs[0].detach()]
        output.register_hook(factors.append)
        # The backward pass no longer needs the weight here, and nothing needs the factors after this step.
        inputs[0].register_hook(lambda _: update(factors.pop(0), factors.pop(0)))

    hook = layer.register_forward_hook(capture)
    layer.weight.requires_grad_(False)
    try:
        yield optimiser
    finally:
        hook.remove()
        layer.weight.requires_grad_(True)
