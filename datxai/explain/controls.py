"""Control maps that are independent of the network: no measure of explanations should prefer them."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def uptake(x: Tensor, seed: int) -> Tensor:
    """The inputs [n, 1, X, Y, Z] themselves, [n, X, Y, Z]."""
    return x[:, 0]


def noise(x: Tensor, seed: int) -> Tensor:
    """Normal random numbers [n, X, Y, Z] for inputs [n, 1, X, Y, Z], different for each input."""
    return torch.stack([_draw(case, seed) for case in x[:, 0]])


CONTROLS = {"uptake": uptake, "noise": noise}


def _draw(case: Tensor, seed: int) -> Tensor:
    content = case.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(content, seed))
    return torch.randn(case.shape, generator=generator, dtype=torch.float32, device="cpu").to(case)
