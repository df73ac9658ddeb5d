"""Reconstruction: projections of a parallel-hole camera to a volume, by filtered back projection.

Geometry, as in DICOM PS3.3 C.8.4.12: the axis of rotation is z. The angle of a view is the position of the detector:
0 degrees at the patient's back, 90 at the left side, 180 in front, 270 at the right. A frame is the view from the
detector: rows run from the head downwards, bins to the viewer's right. In the volume's RAS+ world, with the axis at
x = y = 0, bin b of a view therefore sees the line x cos(angle) - y sin(angle) = (b - centre) * pixel_mm.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from scipy import fft, ndimage, sparse

from datxai.errors import InputError
from datxai.volume import Volume

BUTTERWORTH_ORDER = 5
LARGEST_GAP_DEG = 30.0  # a larger gap between neighbouring views is a missing arc; opposite views count as the same
HAZE_MM = 12.0  # width of the strips at the ends of a row from which its level of scatter is estimated
CHANG_DIRECTIONS = 32
CHANG_SMOOTHING_MM = 4.0  # sigma of the smoothing before the head's outline is found

# Gain at frequency f, in units of the cutoff. Beyond the cutoff all but Butterworth are zero.
_WINDOWS = {
    "ramp": np.ones_like,
    "shepp-logan": lambda f: np.sinc(f / 2.0),
    "hann": lambda f: 0.5 + 0.5 * np.cos(np.pi * f),
    "butterworth": lambda f: 1.0 / np.sqrt(1.0 + f ** (2 * BUTTERWORTH_ORDER)),
}
Filter = Literal["ramp", "shepp-logan", "hann", "butterworth", "none"]
FILTERS = get_args(Filter)


def reconstruct(
    projections: np.ndarray,
    angles_deg: np.ndarray,
    pixel_mm: float,
    row_spacing_mm: float | None = None,
    filter: Filter = "shepp-logan",
    cutoff_per_cm: float = 1.25,
    centre: float | np.ndarray | None = None,
    attenuation_per_cm: float | None = None,
    post_filter_mm: float = 0.0,
    equivalent_mm: float | None = None,
) -> Volume:
    """Filtered back projection of all slices at once.

    The defaults are those of Nazari et al. 2022 (doi 10.1007/s00259-021-05569-9): Shepp-Logan, 1.25 cycles per cm, no
    attenuation correction. The sum of a slice is the mean count of its views.

    Parameters
    ----------
    projections : array (views, rows, bins)
        Counts; see the module docstring for the order of views, rows and bins.
    angles_deg : array (views,)
        Any order and start, full or half turn; unevenly spaced views are weighted by the arc they represent.
    pixel_mm, row_spacing_mm : float
        Size of a bin and distance between rows (the size of a bin if left out), which become the voxel size.
    filter
        The window of the ramp filter; "none" is plain back projection.
    cutoff_per_cm : float
        In cycles per cm. It is limited to the bins' Nyquist frequency (5 / pixel_mm); the history records the value
        used.
    centre : float or array (views,), optional
        The bin, counted from 0, on which the axis of rotation projects; (bins - 1) / 2 if left out.
    attenuation_per_cm : float, optional
        Chang's first-order correction (doi 10.1109/TNS.1978.4329385) with this coefficient; none if left out.
    post_filter_mm : float
        FWHM of a three-dimensional Gaussian filter of the volume.
    equivalent_mm : float, optional
        Smooth a volume of finer voxels until it is as smooth as one with voxels of this size. Noise raises percentiles
        and the mean of the hottest voxels, more so on a finer matrix. A voxel of edge h averages over itself (variance
        h^2 / 12 along an axis) and is interpolated (h^2 / 6); a Gaussian adds the missing variance.

    Returns
    -------
    Volume
        Shape (bins, bins, rows), RAS+, zero outside the circle that all views see. The world's origin is on the axis,
        half-way between the first and the last row.
    """
    projections = np.asarray(projections, np.float32)
    angles = np.asarray(angles_deg, float).ravel()
    row_spacing_mm = pixel_mm if row_spacing_mm is None else row_spacing_mm
    _require_counts(projections, angles)
    _require_settings(pixel_mm, row_spacing_mm, filter, cutoff_per_cm)
    views, _, bins = projections.shape
    centres = np.broadcast_to((bins - 1) / 2.0 if centre is None else np.asarray(centre, float), views).tolist()
    nyquist = 5.0 / pixel_mm
    used = min(cutoff_per_cm, nyquist)

    if filter == "none":
        filtered = projections
    else:
        filtered = _filter(_remove_haze(projections, pixel_mm), filter, used * pixel_mm / 10.0)
    data = _back_project(filtered, angles, tuple(centres))
    affine = np.diag([pixel_mm, pixel_mm, row_spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(data.shape) - 1) / 2.0 * affine.diagonal()[:3]
    volume = Volume(data, affine).after(
        "reconstruct",
        np.ascontiguousarray(data),
        method="filtered back projection",
        filter=filter,
        cutoff_per_cm=used,
        cutoff_requested_per_cm=cutoff_per_cm,
        views=views,
        centre_bin=centres[0] if len({*centres}) == 1 else centres,
    )
    if attenuation_per_cm:
        volume = correct_attenuation(volume, attenuation_per_cm)
    if equivalent_mm and (volume.grid.spacing < equivalent_mm).any():
        sigma = np.sqrt(np.clip(equivalent_mm**2 - volume.grid.spacing**2, 0.0, None)) / 2.0 / volume.grid.spacing
        data = ndimage.gaussian_filter(volume.data, sigma)
        volume = volume.after("match_voxels", data, equivalent_mm=equivalent_mm)
    if post_filter_mm:
        sigma = post_filter_mm / np.sqrt(8.0 * np.log(2.0)) / volume.grid.spacing
        volume = volume.after("post_filter", ndimage.gaussian_filter(volume.data, sigma), fwhm_mm=post_filter_mm)
    return volume


def _back_project(filtered: np.ndarray, angles: np.ndarray, centres: tuple[float, ...]) -> np.ndarray:
    """Sum of all views, each weighted by the arc it represents, float32 (X, Y, Z)."""
    views, rows, bins = filtered.shape
    weighted = filtered * _arcs(angles).astype(np.float32)[:, None, None]
    columns = np.ascontiguousarray(weighted.transpose(0, 2, 1)).reshape(views * bins, rows)
    inside, matrix = _back_projector(tuple(angles.tolist()), bins, centres)
    data = np.zeros((bins * bins, rows), np.float32)
    data[inside] = matrix @ columns
    return data.reshape(bins, bins, rows)[:, :, ::-1]


def correct_attenuation(volume: Volume, coefficient_per_cm: float) -> Volume:
    """Chang's first-order correction: divide by the mean attenuation over all directions within the slice.

    The head's outline is one ellipse per slice, from the moments of the voxels that are closer to the mean of the head
    than to that of its surroundings, with holes filled. Slices without a head and voxels outside it are unchanged. The
    volume's axes must be those of the camera.
    """
    spacing = volume.grid.spacing
    smooth = ndimage.gaussian_filter(volume.data, CHANG_SMOOTHING_MM / spacing)
    head = smooth > _halfway(smooth)
    x, y = volume.grid.world_coordinates()[:, :, 0, :2].transpose(2, 0, 1)
    angles = np.arange(CHANG_DIRECTIONS) * 2.0 * np.pi / CHANG_DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)])
    factor = np.ones(volume.shape)
    for k in range(volume.shape[2]):
        mask = np.asarray(ndimage.binary_fill_holes(head[:, :, k]), bool)
        if np.count_nonzero(mask) < 8:
            continue
        points = np.stack([x[mask], y[mask]])
        centre = points.mean(axis=1, keepdims=True)
        # Within the ellipse q(p) = p' S p < 1; a filled ellipse has the covariance S^-1 / 4.
        shape = np.linalg.inv(4.0 * np.cov(points))
        offset = np.stack([x.ravel(), y.ravel()]) - centre
        within = np.einsum("ip,ij,jp->p", offset, shape, offset) < 1.0
        offset = offset[:, within]
        a = np.einsum("id,ij,jd->d", directions, shape, directions)
        b = directions.T @ shape @ offset
        c = np.einsum("ip,ij,jp->p", offset, shape, offset) - 1.0
        path_cm = (np.sqrt(b**2 - a[:, None] * c) - b) / a[:, None] / 10.0
        slab = factor[:, :, k].ravel()
        slab[within] = 1.0 / np.exp(-coefficient_per_cm * path_cm).mean(axis=0)
        factor[:, :, k] = slab.reshape(x.shape)
    return volume.after("correct_attenuation", volume.data * factor, method="Chang", per_cm=coefficient_per_cm)


def _halfway(data: np.ndarray) -> float:
    """The threshold half-way between the means above and below it (Ridler and Calvard, 10.1109/TSMC.1978.4310039)."""
    threshold, previous = float(data.mean()), np.inf
    while abs(threshold - previous) > 1e-4 * abs(threshold):
        above = data > threshold
        previous, threshold = threshold, float(data[above].mean() + data[~above].mean()) / 2.0
    return threshold


def _filter(projections: np.ndarray, name: str, cutoff: float) -> np.ndarray:
    """Ramp times window along the bins; ``cutoff`` in cycles per bin.

    The ramp is the transform of its band-limited kernel, which preserves the mean (Kak and Slaney 1988, eq. 3.61).
    """
    bins = projections.shape[-1]
    size: int = fft.next_fast_len(2 * bins, real=True)  # pyright: ignore[reportAssignmentType]  # its stub says None
    n = np.minimum(np.arange(size), size - np.arange(size))
    kernel = np.where(n % 2, -1.0 / (np.pi * np.maximum(n, 1)) ** 2, 0.0)
    kernel[0] = 0.25
    relative = fft.rfftfreq(size) / cutoff
    gain = np.real(np.asarray(fft.rfft(kernel))) * _WINDOWS[name](relative)
    if name != "butterworth":
        gain[relative > 1.0 + 1e-9] = 0.0
    spectrum = fft.rfft(projections, size, axis=-1)
    return np.asarray(fft.irfft(spectrum * gain.astype(np.float32), size, axis=-1))[..., :bins]


def _remove_haze(projections: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Subtract the constant level of scattered photons from each row.

    Scatter continues beyond the field of view. The ramp filter removes a constant, but not the step at the edge of the
    field, which would raise the whole slice, and more so in a narrow field. The level of a row is extrapolated from
    its ends, averaged over all views: the mean of the outermost strip minus the rise to the next strip inwards. Bins
    without any count are outside the field of view. If the field is narrower than the matrix, twice the rise is
    subtracted, so that the level is zero for an object that ends there.
    """
    filled = np.flatnonzero(projections.any(axis=(0, 1)))
    field = slice(filled[0], filled[-1] + 1) if filled.size else slice(None)
    profile = projections[..., field].mean(axis=0, dtype=np.float64)  # (rows, bins)
    n = max(1, round(HAZE_MM / pixel_mm))
    if profile.shape[1] < 4 * n:
        return projections
    outermost, inner = (
        (profile[:, i:j].mean(axis=1) + profile[:, ::-1][:, i:j].mean(axis=1)) / 2 for i, j in ((0, n), (n, 2 * n))
    )
    drops = 1 if filled.size == projections.shape[-1] else 2
    level = np.clip(outermost - drops * (inner - outermost), 0.0, None)
    cleared = np.zeros_like(projections)
    cleared[..., field] = projections[..., field] - level[:, None].astype(np.float32)
    return cleared


def _arcs(angles: np.ndarray) -> np.ndarray:
    """The weight of each view: the arc in radians, modulo half a turn, that is nearer to it than to any other view."""
    half = np.mod(angles, 180.0)
    order = np.argsort(half, kind="stable")
    gaps = np.diff(half[order], append=half[order][0] + 180.0)
    arcs = np.empty_like(half)
    arcs[order] = (gaps + np.roll(gaps, 1)) / 2.0
    return np.deg2rad(arcs)


@lru_cache(maxsize=2)
def _back_projector(
    angles: tuple[float, ...], bins: int, centres: tuple[float, ...]
) -> tuple[np.ndarray, sparse.csr_array]:
    """Indices of pixels (x, y) inside the circle of view, and the matrix (pixels x views * bins) that fills them."""
    position = np.arange(bins) - (bins - 1) / 2.0
    x, y = np.meshgrid(position, position, indexing="ij")
    inside = np.flatnonzero(np.hypot(x, y) <= bins / 2.0)
    x, y = x.ravel()[inside, None], y.ravel()[inside, None]
    theta = np.deg2rad(angles)
    bin_ = x * np.cos(theta) - y * np.sin(theta) + np.array(centres)
    lower = np.clip(np.floor(bin_).astype(np.int32), 0, bins - 2)
    upper_share = bin_ - lower
    seen = (bin_ >= 0.0) & (bin_ <= bins - 1.0)
    weights = np.stack([(1.0 - upper_share) * seen, upper_share * seen], axis=-1).astype(np.float32)
    first = lower + bins * np.arange(theta.size, dtype=np.int32)
    indices = np.stack([first, first + 1], axis=-1)
    starts = np.arange(inside.size + 1, dtype=np.int32) * (2 * theta.size)
    shape = (inside.size, theta.size * bins)
    return inside, sparse.csr_array((weights.ravel(), indices.ravel(), starts), shape=shape)


def _require_counts(projections: np.ndarray, angles: np.ndarray) -> None:
    if projections.ndim != 3:
        raise InputError(
            f"projections: have shape {projections.shape}, expected (views, rows, bins); pass one frame per view."
        )
    if len(angles) != len(projections):
        raise InputError(
            f"projections: {len(projections)} views but {len(angles)} angles, expected one angle per view; "
            f"check the rotation information."
        )
    if not (np.isfinite(projections).all() and np.isfinite(angles).all()):
        raise InputError("projections: some counts or angles are NaN or infinite, expected numbers; export them again.")
    if not projections.any():
        raise InputError("projections: every count is zero, expected an acquisition; export it again.")
    half = np.sort(np.mod(angles, 180.0))
    gap = np.diff(half, append=half[0] + 180.0).max()
    if gap > LARGEST_GAP_DEG:
        raise InputError(
            f"angles_deg: the views leave a gap of {gap:.0f} degrees, expected at most {LARGEST_GAP_DEG:.0f}; "
            f"pass all views of a full or half turn."
        )


def _require_settings(pixel_mm: float, row_spacing_mm: float, filter: str, cutoff_per_cm: float) -> None:
    for name, length in (("pixel_mm", pixel_mm), ("row_spacing_mm", row_spacing_mm)):
        if not length > 0:
            raise InputError(f"{name}: {length} is not a length, expected more than 0 mm; check the header.")
    if filter not in FILTERS:
        raise InputError(
            f"reconstruction.filter: {filter!r} is not known, expected one of {', '.join(FILTERS)}; choose one of them."
        )
    if not cutoff_per_cm > 0:
        raise InputError(
            f"reconstruction.cutoff_per_cm: {cutoff_per_cm} is not a frequency, expected more than 0 cycles per cm; "
            f"the usual is 1.25."
        )
