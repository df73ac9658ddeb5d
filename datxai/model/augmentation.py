"""Training augmentation: variants of a volume as another camera or another acquisition would give them.

A network trained on sharp and blurred images classifies both alike, which fixed binding ratio thresholds do not:
Wenzel et al., Eur J Nucl Med Mol Imaging 2019;46:2800 (doi 10.1007/s00259-019-04502-5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional as F

from datxai.errors import InputError

FWHM = math.sqrt(8 * math.log(2))  # of a Gaussian of unit standard deviation
NOISE_FWHM_MM = 8.0  # reconstruction correlates the noise of neighbouring voxels
TRUNCATE = 3.0  # length of Gaussian kernels, in standard deviations


@dataclass(frozen=True)
class Augmenter:
    """Random variation of volumes with voxels of ``spacing`` mm; zeros, the defaults, change nothing.

    Each value is the upper limit of a uniform draw: rotation about each axis and translation along it (plus or minus),
    FWHM of the blur, and standard deviation of the noise. The noise refers to an uptake of 1, that of the reference
    region, and grows with the square root of the uptake, as counting noise does.
    """

    spacing: tuple[float, float, float]
    blur_fwhm_mm: float = 0.0
    noise: float = 0.0
    rotation_deg: float = 0.0
    translation_mm: float = 0.0

    def __post_init__(self):
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"training.augmentation.{field.name} is {value}, expected zero (off) or more.")

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self)[1:])

    def vary(self, volume: torch.Tensor, seed: Sequence[int]) -> torch.Tensor:
        """A variant of ``volume``, float32 [1, X, Y, Z], determined by ``seed`` alone."""
        rng = np.random.default_rng(list(seed))
        angles = np.radians(rng.uniform(-1, 1, 3) * self.rotation_deg)
        shift = rng.uniform(-1, 1, 3) * self.translation_mm
        fwhm, noise = rng.uniform(0, 1, 2) * (self.blur_fwhm_mm, self.noise)
        if angles.any() or shift.any():
            volume = move(volume, self.spacing, angles, shift)
        if fwhm:
            volume = blur(volume, self.spacing, fwhm)
        if noise:
            generator = torch.Generator(volume.device).manual_seed(int(rng.integers(2**63)))
            white = torch.randn(volume.shape, generator=generator, device=volume.device)
            # Blurring white noise of unit variance leaves a variance of the sum of the squared weights.
            gain = math.prod(kernel.square().sum().item() for kernel in kernels(self.spacing, NOISE_FWHM_MM)) ** 0.5
            volume = volume + noise / gain * blur(white, self.spacing, NOISE_FWHM_MM) * volume.clamp(min=0).sqrt()
        return volume


def move(volume: torch.Tensor, spacing: ArrayLike, angles: ArrayLike, shift: ArrayLike) -> torch.Tensor:
    """Rotate ``volume`` [1, X, Y, Z] about its centre by ``angles`` (radians), then translate it by ``shift`` mm.

    Rotations are about x, then y, then z. Linear interpolation; beyond the border the nearest voxel.
    """
    cosines, sines = np.cos(angles), np.sin(angles)
    rotation = np.eye(3)
    for axis, (c, s) in enumerate(zip(cosines, sines)):
        turn = np.eye(3)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        rotation = turn @ rotation
    # From each voxel to its source, in units of half the grid, with the axes reversed as `affine_grid` expects.
    half = np.array(volume.shape[1:]) * spacing / 2
    offset = -rotation.T @ np.asarray(shift) / half
    inverse = np.concatenate([rotation.T * half / half[:, None], offset[:, None]], axis=1)
    theta = torch.from_numpy(inverse[::-1, [2, 1, 0, 3]].astype(np.float32)).to(volume.device)
    grid = F.affine_grid(theta[None], [1, *volume.shape], align_corners=False)
    return F.grid_sample(volume[None], grid, padding_mode="border", align_corners=False)[0]


def blur(volume: torch.Tensor, spacing: Sequence[float], fwhm: float) -> torch.Tensor:
    """Convolve ``volume`` [1, X, Y, Z] with a Gaussian of ``fwhm`` mm; beyond the border the nearest voxel counts.

    Each axis is multiplied by the convolution matrix, which is many times faster than three one-channel convolutions.
    """
    for axis, weights in enumerate(kernels(spacing, fwhm), start=1):
        n, radius = volume.shape[axis], len(weights) // 2
        neighbours = (torch.arange(n)[:, None] + torch.arange(-radius, radius + 1)).clamp(0, n - 1)
        matrix = torch.zeros(n, n).scatter_add_(1, neighbours, weights.expand(n, -1)).to(volume.device)
        blurred = torch.tensordot(volume, matrix, dims=([axis], [1]))  # pyright: ignore[reportArgumentType]  # a stub
        volume = blurred.movedim(-1, axis)
    return volume


def kernels(spacing: Sequence[float], fwhm: float) -> list[torch.Tensor]:
    """The Gaussian of ``fwhm`` mm along each axis, sampled at the voxels, with sum 1."""
    sampled = []
    for mm in spacing:
        sigma = fwhm / FWHM / mm
        offsets = torch.arange(-round(TRUNCATE * sigma), round(TRUNCATE * sigma) + 1)
        weights = torch.exp(-0.5 * (offsets / max(sigma, 1e-9)) ** 2)
        sampled.append(weights / weights.sum())
    return sampled
