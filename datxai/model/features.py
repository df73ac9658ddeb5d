"""What a network makes of a scan before it decides: the input of its last fully connected layer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

MOST = 1024  # features of a case; a layer that takes more is given a picture, not features


@contextmanager
def watching_features(model: nn.Module) -> Iterator[list[np.ndarray]]:
    """Yield a list that grows, while ``model`` runs in this thread, by the features of each batch, float32 [n, d].

    It stays empty for a network without a fully connected layer, or whose last one takes anything else than [n, d] with
    d up to `MOST`. What the network computes is not changed.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found: list[np.ndarray] = []
    thread = threading.get_ident()

    def look(_: nn.Module, given: tuple) -> None:
        if threading.get_ident() == thread and given and given[0].ndim == 2 and given[0].shape[1] <= MOST:
            found.append(given[0].detach().to("cpu", torch.float32, copy=True).numpy())

    handle = layers[-1].register_forward_pre_hook(look) if layers else None
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()
