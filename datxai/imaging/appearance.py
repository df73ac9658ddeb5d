"""Appearance of a scan in MNI space outside the striatum: its texture (noise and sharpness) and where its uptake is.

Scans from the same camera look alike in these measures, whatever their striatal binding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import fft, ndimage

FWHM_OF_SIGMA = float(np.sqrt(8.0 * np.log(2.0)))
PERIODS_MM = (24.0, 20.0, 17.0, 15.0, 13.0, 11.0, 9.5, 8.0, 6.5)  # edges of the bands; beyond is the brain's anatomy
NOISE_MM = 13.0  # bands of shorter periods hold little but noise
MIN_WAVES = 20  # in a band, for an estimate of its power
EDGE_MM = 6.0  # standard deviation of the Gaussian that softens the region's edge, which would count as texture
NEIGHBOURHOOD_MM = 22.0  # FWHM of the Gaussian over which uptake is averaged
STEP_MM = 10.0  # between the centres of neighbourhoods
MIN_INSIDE = 0.4  # smallest part of a neighbourhood that must lie within the region


@dataclass(frozen=True, eq=False)
class Appearance:
    """Measures of scans on one grid, scaled by the reference region.

    Attributes
    ----------
    region : bool array (X, Y, Z), the brain that is measured: none of it receives spill-over from the striatum
    spacing : of the grid, mm
    """

    region: np.ndarray
    spacing: Sequence[float] | np.ndarray

    def measure_texture(self, data: np.ndarray, moved: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Noise and sharpness of a scan (X, Y, Z).

        ``moved`` (4 x 4, or its linear part A) maps the grid back to the scan as it was before registration; None: the
        scan was not moved. Periods are measured in the scan's own millimetres, because noise and sharpness come from
        camera and reconstruction, whatever the size of the head: a wave vector k on the grid is (A^T)^-1 k in the scan.
        Noise is the mean, over bands of periods below `NOISE_MM`, of the log of the mean power in the band; shape (1,).
        Sharpness is the log power of each band between `PERIODS_MM` minus the noise. Bands that the grid cannot
        resolve are left out.
        """
        spectrum = np.asarray(fft.rfftn(data * self._window))
        band = self._find_bands(np.eye(3) if moved is None else np.asarray(moved, float)[:3, :3])
        waves = np.bincount(band, minlength=len(PERIODS_MM) + 1)[self._resolved]
        power = np.bincount(band, (np.abs(spectrum) ** 2).ravel(), len(PERIODS_MM) + 1)[self._resolved]
        level = np.log(np.maximum(power / np.maximum(waves, 1), np.finfo(np.float32).tiny))
        noise = level[[PERIODS_MM[band - 1] <= NOISE_MM for band in self._resolved]].mean(keepdims=True)
        return noise, level - noise

    def average_uptake(self, data: np.ndarray) -> np.ndarray:
        """Uptake of a scan (X, Y, Z), averaged over neighbourhoods of `NEIGHBOURHOOD_MM` that lie `STEP_MM` apart and
        within the region; float64."""
        return self._smooth(data)[self._points] / self._weight[self._points]

    def _smooth(self, data: np.ndarray) -> np.ndarray:
        within = np.where(self.region, data, np.float32(0)).astype(np.float64)
        sigma = NEIGHBOURHOOD_MM / FWHM_OF_SIGMA / np.asarray(self.spacing)
        return np.asarray(ndimage.gaussian_filter(within, sigma, truncate=3.0, mode="constant"))

    @cached_property
    def _weight(self) -> np.ndarray:
        return self._smooth(np.ones(self.region.shape, np.float32))

    @cached_property
    def _points(self) -> np.ndarray:
        steps = [max(1, round(STEP_MM / mm)) for mm in self.spacing]
        lattice = np.zeros(self.region.shape, bool)
        lattice[tuple(slice((n - 1) % step // 2, None, step) for n, step in zip(lattice.shape, steps))] = True
        return lattice & self.region & (self._weight >= MIN_INSIDE * self._weight.max())

    @cached_property
    def _window(self) -> np.ndarray:
        """The region with a soft edge."""
        soft = ndimage.gaussian_filter(self.region.astype(np.float32), EDGE_MM / np.asarray(self.spacing))
        return np.where(self.region, soft, np.float32(0))

    def _find_bands(self, linear: np.ndarray) -> np.ndarray:
        """The number of the band of each wave of the transform, from 1; 0: longer than the longest period."""
        (x, y, z), (a, b, c) = self.region.shape, self.spacing
        axes = fft.fftfreq(x, a)[:, None, None], fft.fftfreq(y, b)[:, None], fft.rfftfreq(z, c)
        metric = np.linalg.inv(linear.T @ linear)  # gives the squared length of a wave vector
        squared = sum((metric[i, j] * axes[i] * axes[j] for i in range(3) for j in range(3)), np.zeros((x, y, 1)))
        return np.searchsorted(1 / np.array(PERIODS_MM) ** 2, squared.ravel(), "right")

    @cached_property
    def _resolved(self) -> np.ndarray:
        """Numbers of the bands that the grid resolves."""
        waves = np.bincount(self._find_bands(np.eye(3)), minlength=len(PERIODS_MM) + 1)
        return np.flatnonzero(waves[1:] >= MIN_WAVES) + 1
