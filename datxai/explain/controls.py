"""Maps that know nothing of a network: what a measure of explanations must not prefer."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def uptake(x: Tensor, seed: int) -> Tensor:
    """The inputs [n, 1, X, Y, Z] themselves, [n, X, Y, Z]."""
    return x[:, 0]


def noise(x: Tensor, seed: int) -> Tensor:
    """Normal random numbers [n, X, Y, Z] for inputs [n, 1, X, Y, Z], others for every input."""
    return torch.stack([_draw(case, seed) for case in x[:, 0]])


CONTROLS = {"uptake": uptake, "noise": noise}


def _draw(case: Tensor, seed: int) -> Tensor:
    content = case.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(content, seed))
    return torch.randn(case.shape, generator=generator, dtype=torch.float32, device="cpu").to(case)
