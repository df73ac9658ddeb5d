"""Features of a scan on which the network decides: the input of its last fully connected layer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

MOST = 1024  # features of a case; the input of a layer that takes more is an image rather than features


@contextmanager
def watching_features(model: nn.Module) -> Iterator[list[np.ndarray]]:
    """Yield a list to which each batch that ``model`` runs in this thread adds its features, float32 [n, d].

    It stays empty if the network has no fully connected layer, or if the last one takes anything but [n, d] with d up
    to `MOST`. The outputs of the network do not change.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    features: list[np.ndarray] = []
    thread = threading.get_ident()

    def record(_: nn.Module, inputs: tuple) -> None:
        if threading.get_ident() == thread and inputs and inputs[0].ndim == 2 and inputs[0].shape[1] <= MOST:
            features.append(inputs[0].detach().to("cpu", torch.float32, copy=True).numpy())

    handle = layers[-1].register_forward_pre_hook(record) if layers else None
    try:
        yield features
    finally:
        if handle is not None:
            handle.remove()
