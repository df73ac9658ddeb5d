"""Simulated scans of one subject: projections, or by a short cut a reconstructed volume."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

from datxai.phantom.anatomy import place
from datxai.phantom.camera import COLLIMATORS, FWHM_OF_SIGMA, Camera, acquire
from datxai.phantom.population import Subject
from datxai.photons import average_transmission
from datxai.volume import Grid, Volume

VOXEL_MM, HEAD_SHAPE = 4.0, (64, 64, 64)  # of the activity that is projected
TRANSMISSION_VOXEL_MM = 12.0
PROJECTIONS, _VOLUME = 1, 2  # random number streams of a subject


def simulate_projections(subject: Subject, device: str = "cpu", **settings) -> tuple[np.ndarray, Camera]:
    """Counts of a subject's scan, float32 (views, rows, bins), and the camera used (`subject_camera`)."""
    camera = subject_camera(subject, **settings)
    activity, attenuation = place(subject.head, subject.uptake, centred_grid(HEAD_SHAPE, VOXEL_MM))
    rng = np.random.default_rng([*subject.seed, PROJECTIONS])
    return acquire(activity, attenuation, camera, rng, device), camera


def subject_camera(subject: Subject, **settings) -> Camera:
    """The camera with the subject's counts, radius, collimator and motion; ``settings`` take precedence."""
    scan = subject.acquisition
    acquired = {
        "counts": scan.counts,
        "radius_mm": scan.radius_mm,
        "collimator": COLLIMATORS[scan.collimator],
        "motion_mm": scan.motion_mm,
    }
    return Camera(**(acquired | settings))


def centred_grid(shape: tuple[int, int, int], voxel_mm: float) -> Grid:
    """A grid of cubic voxels along the axes, centred on the world's origin."""
    return Grid.axis_aligned(shape, 3 * [voxel_mm], [-(n - 1) / 2.0 * voxel_mm for n in shape])


def simulate_volume(subject: Subject, **settings) -> Volume:
    """Approximate a subject's scan after filtered back projection, in a fraction of the time.

    Activity is attenuated by the mean over all directions, blurred by the resolution at the axis, scatter and
    penetration, given the noise of a ramp filter (power proportional to frequency in the transaxial plane), and
    smoothed as at the subject's site. ``settings`` are those of `subject_camera`.
    """
    camera = subject_camera(subject, **settings)
    shape = (camera.bins, camera.bins, camera.rows)
    grid = centred_grid(shape, camera.pixel_mm)
    activity, attenuation = place(subject.head, subject.uptake, grid)
    data = activity.data * _transmission(attenuation)
    data *= camera.counts / camera.views / data.sum()

    # padding keeps the broad blurs from wrapping around
    padded: list[int] = [fft.next_fast_len(int(1.5 * n), real=True) for n in shape]  # pyright: ignore[reportAssignmentType]
    frequency = np.stack(np.meshgrid(*map(fft.fftfreq, padded[:2]), fft.rfftfreq(padded[2]), indexing="ij"))
    radial = np.hypot(frequency[0], frequency[1])
    squared = (frequency**2).sum(axis=0)

    def blur(fwhm_mm: float | np.ndarray) -> np.ndarray:
        return np.exp(-2.0 * (np.pi * fwhm_mm / FWHM_OF_SIGMA / camera.pixel_mm) ** 2 * squared)

    resolution = np.hypot(camera.collimator.fwhm_mm(camera.radius_mm), camera.motion_mm)
    broad = [(1.0, 0.0), *camera.haze]
    transfer = blur(resolution) * sum(ratio * blur(fwhm) for ratio, fwhm in broad) / sum(ratio for ratio, _ in broad)
    window = np.sinc(radial) * (radial <= 0.5) * blur(float(subject.acquisition.reconstruction["post_filter_mm"]))
    rays = data.sum(axis=1)
    level = (rays**2).sum() / rays.sum() / camera.views  # mean counts of a bin that looks through the head
    noise = np.random.default_rng([*subject.seed, _VOLUME]).standard_normal(padded, np.float32)
    spectrum = np.asarray(fft.rfftn(data, padded)) * transfer
    spectrum = spectrum + np.asarray(fft.rfftn(noise)) * np.sqrt(np.pi * level * radial)
    image = np.asarray(fft.irfftn(spectrum * window, padded))[: shape[0], : shape[1], : shape[2]]
    return Volume(image, grid.affine, ({"step": "simulate_volume", "participant_id": subject.participant_id},))


def _transmission(attenuation: Volume) -> np.ndarray:
    """Fraction of photons that leave the head, mean over all transaxial directions, per voxel."""
    fine = attenuation.shape
    zoom = attenuation.grid.spacing[0] / TRANSMISSION_VOXEL_MM
    coarse = np.asarray(ndimage.zoom(attenuation.data, zoom, order=1, grid_mode=True, mode="nearest"))
    passed = average_transmission(coarse * (TRANSMISSION_VOXEL_MM / 10.0))
    ratio = np.array(fine) / coarse.shape
    return np.asarray(ndimage.zoom(passed, ratio, order=1, grid_mode=True, mode="nearest"))
