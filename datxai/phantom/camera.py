"""Camera: the counts of a SPECT camera with a parallel-hole collimator.

Geometry, as in DICOM PS3.3 C.8.4.12: the axis of rotation is z of the scan's world. The angle of a view is the
position of the detector: 0 degrees at the patient's back, 90 at the left side, 180 in front. A frame is the view from
the detector: rows run from the head downwards, bins to the viewer's right, so that the centre of bin b sees the line
x cos(angle) - y sin(angle) = (b - (bins - 1) / 2) * pixel_mm.

The model includes attenuation, resolution that falls with distance, motion and Poisson noise. Scatter in the head,
scatter in the collimator and penetration of its septa are broad blurs of the projections that are added to them (Cot
et al. 2006, IEEE Trans Nucl Sci 53:198, find Gaussians adequate). It leaves out dead time, decay during the scan, the
depth dependence of scatter, and the lower attenuation of photons above 500 keV, which cause most of the penetration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from datxai.volume import Grid, Volume

FWHM_OF_SIGMA = float(np.sqrt(8.0 * np.log(2.0)))


class Collimator(NamedTuple):
    """Parallel holes and the crystal behind them: hole diameter, effective hole length, intrinsic FWHM, all in mm."""

    hole_mm: float
    length_mm: float
    intrinsic_mm: float

    def fwhm_mm(self, distance_mm: np.ndarray | float) -> np.ndarray:
        """Resolution at a distance from the collimator's face (Anger 1964)."""
        return np.hypot(self.intrinsic_mm, self.hole_mm * (1.0 + np.maximum(distance_mm, 0.0) / self.length_mm))


# Low-energy high-resolution collimators of three makes. Effective length: minus twice the mean path of 159 keV in lead.
COLLIMATORS = {
    "lehr_24mm": Collimator(1.11, 23.03, 3.8),
    "lehr_27mm": Collimator(1.22, 26.0, 3.4),
    "lehr_35mm": Collimator(1.50, 34.0, 3.8),
}


@dataclass(frozen=True)
class Camera:
    """One acquisition: a full turn in equal steps on a circle. Lengths are in mm, ratios relative to the direct counts.

    ``scatter`` (in the head), ``collimator_scatter`` and ``penetration`` are added counts and the FWHM of their spread.
    Of the photons in a 20 % window at 159 keV behind a low-energy collimator, 39 % came through the holes, 18 % were
    scattered by the collimator and 43 % penetrated it (Monte Carlo figures for a Siemens LEHR). The width of their
    spread is an assumption; photons outside the field of view are not counted.
    """

    views: int = 60
    rows: int = 64
    bins: int = 64
    pixel_mm: float = 4.0
    radius_mm: float = 135.0
    counts: float = 2.0e6
    collimator: Collimator = COLLIMATORS["lehr_24mm"]
    motion_mm: float = 0.0
    start_angle_deg: float = 180.0
    scatter: tuple[float, float] = (0.30, 90.0)
    collimator_scatter: tuple[float, float] = (0.18 / 0.39, 150.0)
    penetration: tuple[float, float] = (0.43 / 0.39, 300.0)

    @property
    def haze(self) -> tuple[tuple[float, float], ...]:
        """Ratio and FWHM of each component that is added to the direct counts."""
        return self.scatter, self.collimator_scatter, self.penetration

    @property
    def angles_deg(self) -> np.ndarray:
        """Angle of each view in [0, 360), increasing from the back to the patient's left, front and right."""
        return (self.start_angle_deg + 360.0 * np.arange(self.views) / self.views) % 360.0


def acquire(
    activity: Volume, attenuation: Volume, camera: Camera, rng: np.random.Generator, device: str = "cpu"
) -> np.ndarray:
    """Counts of one acquisition, integers as float32 of shape (views, rows, bins)."""
    return count(project(activity, attenuation, camera, device), camera.counts, rng)


def count(expected: np.ndarray, total: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson counts (float32) in the proportions of ``expected``, scaled to a mean sum of ``total``."""
    return rng.poisson(expected * (total / expected.sum(dtype=np.float64))).astype(np.float32)


@torch.no_grad()
def project(activity: Volume, attenuation: Volume, camera: Camera, device: str = "cpu") -> np.ndarray:
    """Noise-free projections of activity (per ml).

    ``activity`` and ``attenuation`` (per cm) share a grid with cubic voxels along x, y, z. A view sums activity times
    voxel volume: without attenuation, scatter and penetration, the sum of a view is the integral of the activity.
    Returns float32, shape (views, rows, bins).
    """
    grid = activity.grid
    assert grid.same_as(attenuation.grid), (activity.shape, attenuation.shape)
    voxel = float(grid.spacing[0])
    assert np.allclose(grid.affine[:3, :3], voxel * np.eye(3)), grid.affine
    maps = torch.from_numpy(np.stack([activity.data * grid.voxel_ml, attenuation.data * (voxel / 10.0)]))
    maps = maps.to(device).permute(0, 3, 2, 1)  # map, z, y, x
    depths, lateral = maps.shape[2], maps.shape[3]
    size = max(depths, lateral)
    steps = (torch.arange(size, device=device) - (size - 1) / 2.0) * voxel  # towards the detector, and laterally

    z = torch.from_numpy(grid.affine[2, 3] + voxel * np.arange(grid.shape[2])).float().to(device)
    fwhm = camera.collimator.fwhm_mm(camera.radius_mm - steps.cpu().numpy())
    sigma = torch.from_numpy(np.hypot(fwhm, camera.motion_mm) / FWHM_OF_SIGMA).float().to(device)
    # Linear interpolation adds a variance of 0 to voxel^2 / 4, depending on how a source lies between the lines of the
    # rotated lattice. To average voxel^2 / 6 in views along the axes too, two lattices half a voxel apart alternate.
    lattices = [steps + shift * voxel for shift in (-0.25, 0.25)]
    bins = _edges(camera.bins, camera.pixel_mm, device)
    across = [_spread(lateral, bins, _subtract_interpolation(sigma, voxel)) for lateral in lattices]
    along = _spread(-z, _edges(camera.rows, camera.pixel_mm, device), sigma).transpose(1, 2)

    views = torch.empty(camera.views, camera.rows, camera.bins, device=device)
    for view, angle in enumerate(np.deg2rad(camera.angles_deg)):
        activity_seen, thickness = _turn(maps, angle, steps, lattices[view % 2], grid)  # each (depth, z, lateral)
        beyond = thickness.flip(0).cumsum(0).flip(0) - 0.5 * thickness  # half of the voxel's own
        planes = torch.bmm(activity_seen * torch.exp(-beyond), across[view % 2])  # depth, z, bins
        views[view] = torch.bmm(along, planes).sum(0)  # summed over depth last: independent of the number of threads
    direct = views
    for ratio, fwhm in camera.haze:
        if ratio:
            width = torch.tensor([fwhm / FWHM_OF_SIGMA], device=device)
            rows, bins = (
                _spread(_centres(n, camera.pixel_mm, device), _edges(n, camera.pixel_mm, device), width)[0]
                for n in (camera.rows, camera.bins)
            )
            views = views + ratio * (rows.T @ direct @ bins)
    return views.cpu().numpy()


def _turn(maps: torch.Tensor, angle: float, depth: torch.Tensor, lateral: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Maps (2, z, y, x) rotated to a view: each map of shape (depth towards the detector, z, lateral)."""
    depth, lateral = torch.meshgrid(depth, lateral, indexing="ij")
    sine, cosine = float(np.sin(angle)), float(np.cos(angle))
    x = lateral * cosine - depth * sine
    y = -lateral * sine - depth * cosine
    voxel = float(grid.spacing[0])
    u = 2.0 * (x - grid.affine[0, 3]) / (voxel * (grid.shape[0] - 1)) - 1.0
    v = 2.0 * (y - grid.affine[1, 3]) / (voxel * (grid.shape[1] - 1)) - 1.0
    turned = functional.grid_sample(
        maps.flatten(0, 1)[None], torch.stack([u, v], dim=-1)[None], mode="bilinear", align_corners=True
    )[0]
    return turned.unflatten(0, maps.shape[:2]).permute(0, 2, 1, 3)


def _spread(positions: torch.Tensor, edges: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Shares of Gaussians between edges: shape (len(sigma), len(positions), len(edges) - 1)."""
    scaled = (edges[None, None] - positions[None, :, None]) / (sigma[:, None, None] * 2.0**0.5)
    return 0.5 * torch.erf(scaled).diff(dim=-1)


def _subtract_interpolation(sigma: torch.Tensor, voxel: float) -> torch.Tensor:
    """Subtract the blur of rotation by linear interpolation, on average a variance of voxel^2 / 6."""
    return (sigma**2 - voxel**2 / 6.0).clamp(min=(voxel / 4.0) ** 2).sqrt()


def _centres(n: int, pixel: float, device: str) -> torch.Tensor:
    return (torch.arange(n, device=device) - (n - 1) / 2.0) * pixel


def _edges(n: int, pixel: float, device: str) -> torch.Tensor:
    return (torch.arange(n + 1, device=device) - n / 2.0) * pixel
