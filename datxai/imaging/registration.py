"""Affine registration of a DAT-SPECT scan to the template, by least squares over the template's ingredients.

A scan is modelled as a weighted sum of bases (brain, each caudate and putamen, scalp, glands) plus a
constant, moved by an affine map. Weights and map are found together by Levenberg-Marquardt steps from
coarse to fine (the principle of Friston et al. 1995, doi 10.1002/hbm.460030303). Because the weights are
free, a scan whose striatum is dark or whose glands outshine the brain is fitted as well as a healthy one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage

from datxai.errors import InputError
from datxai.volume import Grid, Volume, resample

# FWHM of the smoothing of scan and bases, coarse to fine. Points no farther than this from the brain take
# part: the scalp helps to find the head, but the fine fit is to see nothing of the glands, which lie
# elsewhere in every person.
LEVELS_MM = (16.0, 8.0, 4.0)
PITCHES_DEG = (-24.0, -12.0, 0.0, 12.0, 24.0)  # chin down, chin up: the starts that are tried
LIFTS_MM = (-25.0, 0.0, 25.0)  # along the patient's axis: scans that show more or less of the neck
EDGE = 0.4  # of the median inside: where a head or brain ends
STEPS = 25  # at most, per level
CONVERGED = 1e-4  # a level ends when a step lowers the unexplained variance by less than this part of it

MIN_SIMILARITY = 0.75  # noisy scans come down to 0.84; gross failures only: a head the wrong way round may reach 0.9
ZOOMS = (0.75, 1.3)  # of a head relative to the template along any axis
MAX_ROTATION_DEG = 60.0


@dataclass(frozen=True, eq=False)
class Registration:
    """How a scan lies in the template's space.

    ``affine`` (4 x 4) maps world mm of the template to world mm of the scan, as `resample` takes it.
    ``similarity`` is the correlation of scan and fitted template over the head, both smoothed by 16 mm so
    that noise does not count; ``weights`` are those of the bases in units of the scan, ``iterations``
    counts the accepted steps. ``plausible`` says whether the result may be used, ``reason`` why not.
    """

    affine: np.ndarray
    similarity: float
    weights: dict[str, float]
    iterations: int
    plausible: bool
    reason: str = ""


def register(volume: Volume, bases: Mapping[str, Volume]) -> Registration:
    """Find the affine map with 12 parameters that takes the template's space to the scan's.

    Parameters
    ----------
    volume : Volume
        A scan of the head, any lattice and resolution.
    bases : mapping of str to Volume
        What the scan is a weighted sum of, all on one grid around the head. The first shows the whole
        brain; a single template will do, but not follow a diseased striatum as well.

    Raises `InputError` if the scan has no head in it that could be told from its background. A poor fit is
    no exception: see `Registration.plausible`.
    """
    scan, centre = _find_head(volume)
    templates = _make_templates(tuple(bases.values()))
    coarse, *finer = (_Problem(t, scan, centre, level) for t, level in zip(templates, LEVELS_MM))
    starts = (_start(coarse.template.centre, centre, *turn) for turn in product(PITCHES_DEG, LIFTS_MM))
    tried = [coarse.fit(start, _RIGID_AND_ZOOM, steps=4) for start in starts]
    fits = [coarse.fit(min(tried, key=lambda fit: fit.unexplained).pose, _RIGID_AND_ZOOM)]
    for problem in finer:
        fits.append(problem.fit(fits[-1].pose, _AFFINE))
    affine = np.linalg.inv(fits[-1].pose)
    similarity = float(np.sqrt(1.0 - coarse.fit(fits[-1].pose, _AFFINE, steps=0).unexplained))
    weights = dict(zip(bases, fits[-1].weights.tolist()))
    reason = _find_fault(affine, similarity)
    return Registration(affine, similarity, weights, sum(fit.steps for fit in fits), not reason, reason)


@dataclass(frozen=True)
class _Fit:
    pose: np.ndarray  # world mm of the scan -> world mm of the template
    unexplained: float  # part of the scan's variance
    weights: np.ndarray
    steps: int


# Directions in the space of 3 x 4 matrices [linear | translation], shape (n, 3, 4).
_AFFINE = np.eye(12).reshape(12, 3, 4)
_ZOOM = _AFFINE[0] + _AFFINE[5] + _AFFINE[10]
_ROTATIONS = _AFFINE[[1, 2, 6]] - _AFFINE[[4, 8, 9]]
_RIGID_AND_ZOOM = np.stack([*_AFFINE[[3, 7, 11]], *_ROTATIONS, _ZOOM])
_RADIUS_MM = 70.0  # of a head: brings linear parameters and translations to one scale


class _Template:
    """The bases at one resolution, each with its Laplacian: what it gains where a scan is sharper or more blurred.

    Without, a blurred head would be taken for one of another size.
    """

    def __init__(self, bases: Sequence[Volume], level: float):
        grid = _coarsen(bases[0].grid, max(level / 4, 2.0))
        smooth = [_blur(resample(basis, grid), level) for basis in bases]
        self.bases = [basis.data.astype(np.float64) for basis in smooth]
        self.bases += [ndimage.laplace(basis) for basis in self.bases]
        self.support = ndimage.distance_transform_edt(~_find_bright(self.bases[0]), grid.spacing) <= level
        self.centre = grid.index_to_mm(ndimage.center_of_mass(self.support))
        self.to_index = np.linalg.inv(grid.affine)


@lru_cache(maxsize=4)
def _make_templates(bases: tuple[Volume, ...]) -> list[_Template]:
    """One per level; kept, because a cohort is registered to the same bases."""
    return [_Template(bases, level) for level in LEVELS_MM]


class _Problem:
    """A scan to be explained by a template, at one resolution."""

    def __init__(self, template: _Template, scan: Volume, centre: np.ndarray, level: float):
        self.template, self.centre = template, centre
        # At the edge of the field of view smoothing makes up what the scan does not show: leave it out.
        points = resample(_blur(scan, level), _coarsen(scan.grid, level, inset_mm=level))
        self.values = points.data.ravel().astype(np.float64)
        self.positions = points.grid.world_coordinates().reshape(-1, 3)

    def fit(self, pose: np.ndarray, generators: np.ndarray, steps: int = STEPS) -> _Fit:
        """Levenberg-Marquardt from ``pose``; points near the head as it lies there take part."""
        index = self._indices(pose, self.positions)
        inside = ndimage.map_coordinates(self.template.support, index, order=0, output=bool)
        positions, values = self.positions[inside], self.values[inside]
        variance = values.var()
        if inside.sum() < 100 or variance == 0:
            return _Fit(pose, 1.0, np.zeros(len(self.template.bases)), 0)
        relative = np.column_stack([(positions - self.centre) / _RADIUS_MM, np.ones(len(positions))])
        columns, weights, residual = self._explain(pose, positions, values)
        unexplained, damping, accepted = residual.var() / variance, 1e-3, 0
        for _ in range(steps):
            slope = self._slope(pose, positions, weights)
            moved = np.einsum("ni,kij,nj->nk", slope, generators, relative, optimize=True)
            design = np.column_stack([moved, columns])
            normal = design.T @ design
            change = design.T @ residual
            n = len(generators)
            while damping < 1e6:
                damped = normal.copy()
                damped[np.arange(n), np.arange(n)] *= 1 + damping
                parameters = np.linalg.lstsq(damped, change, rcond=1e-12)[0][:n]
                candidate = pose @ self._move(parameters, generators)
                trial = self._explain(candidate, positions, values)
                gain = unexplained - trial[2].var() / variance
                if gain > 0:
                    break
                damping *= 10
            else:
                break
            pose, (columns, weights, residual) = candidate, trial
            unexplained, damping, accepted = unexplained - gain, damping / 10, accepted + 1
            if gain < CONVERGED * unexplained:
                break
        return _Fit(pose, float(unexplained), weights[:-1], accepted)

    def _explain(self, pose: np.ndarray, positions: np.ndarray, values: np.ndarray) -> tuple:
        """Bases at the points (with a constant), their best weights, and what remains of the scan."""
        index = self._indices(pose, positions)
        columns = [ndimage.map_coordinates(b, index, order=1, prefilter=False) for b in self.template.bases]
        columns = np.column_stack([*columns, np.ones(len(values))])
        weights = np.linalg.lstsq(columns.T @ columns, columns.T @ values, rcond=1e-12)[0]
        return columns, weights, values - columns @ weights

    def _slope(self, pose: np.ndarray, positions: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Gradient of the fitted template in the scan's space, per mm, shape (points, 3)."""
        fitted = sum(weight * basis for weight, basis in zip(weights, self.template.bases))
        index = self._indices(pose, positions)
        slope = np.empty((len(positions), 3))
        for axis in range(3):
            ahead, behind = index.copy(), index.copy()
            ahead[axis] += 1
            behind[axis] -= 1
            slope[:, axis] = ndimage.map_coordinates(fitted, ahead, order=1, prefilter=False)
            slope[:, axis] -= ndimage.map_coordinates(fitted, behind, order=1, prefilter=False)
        return slope / 2 @ (self.template.to_index @ pose)[:3, :3]

    def _indices(self, pose: np.ndarray, positions: np.ndarray) -> np.ndarray:
        to_index = self.template.to_index @ pose
        return to_index[:3, :3] @ positions.T + to_index[:3, 3:]

    def _move(self, parameters: np.ndarray, generators: np.ndarray) -> np.ndarray:
        """The affine map of a step, about the centre of the head."""
        step = np.eye(4)
        linear, shift = np.split(np.tensordot(parameters, generators, axes=1), [3], axis=1)
        step[:3, :3] += linear / _RADIUS_MM
        step[:3, 3] = shift[:, 0] - linear @ self.centre / _RADIUS_MM
        return step


def _find_head(volume: Volume) -> tuple[Volume, np.ndarray]:
    """The scan cropped to the head and sampled at 4 mm, and the head's centre of mass in mm."""
    coarse = _blur(resample(volume, _coarsen(volume.grid, 8.0)), LEVELS_MM[0])
    head = _find_bright(coarse.data)
    labels, count = ndimage.label(head)
    if not count or head.all():
        raise InputError(
            "registration: no head stands out from the background of the scan, expected a whole head; "
            "check the scan or set registration=none."
        )
    head = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    centre = coarse.grid.index_to_mm(ndimage.center_of_mass(head))
    (box,) = ndimage.find_objects(head.view(np.uint8))
    margin = np.ceil(24.0 / coarse.grid.spacing)
    low = np.maximum([s.start for s in box] - margin, 0)
    high = np.minimum([s.stop for s in box] + margin, coarse.shape)
    affine = coarse.affine.copy()
    affine[:3, 3] = coarse.grid.index_to_mm(low)
    return resample(volume, _coarsen(Grid(tuple((high - low).astype(int)), affine), 4.0)), centre


def _find_bright(data: np.ndarray) -> np.ndarray:
    """What is brighter than `EDGE` of the median of what lies above the mean: hot spots change little."""
    bright = data[data > max(data.mean(), 0)]
    return data > EDGE * np.median(bright) if bright.size else np.zeros(data.shape, bool)


def _coarsen(grid: Grid, spacing: float, inset_mm: float = 0.0) -> Grid:
    """The lattice of the same axes and extent, less ``inset_mm`` on all sides, with voxels of ``spacing`` mm."""
    extent = np.asarray(grid.shape) * grid.spacing - 2 * inset_mm
    shape = np.maximum(1, np.floor(extent / spacing + 1e-6)).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] *= spacing / grid.spacing
    middle = grid.index_to_mm((np.asarray(grid.shape) - 1) / 2)
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(int(n) for n in shape), affine)


def _blur(volume: Volume, fwhm_mm: float) -> Volume:
    sigma = fwhm_mm / np.sqrt(8 * np.log(2)) / volume.grid.spacing
    return Volume(ndimage.gaussian_filter(volume.data, sigma, mode="nearest"), volume.affine)


def _start(middle: np.ndarray, centre: np.ndarray, pitch_deg: float, lift_mm: float) -> np.ndarray:
    """A pose that brings the head's centre to the template's, turned about the left-right axis and lifted."""
    c, s = np.cos(np.radians(pitch_deg)), np.sin(np.radians(pitch_deg))
    pose = np.eye(4)
    pose[1:3, 1:3] = [[c, -s], [s, c]]
    pose[:3, 3] = middle + np.array([0, 0, lift_mm]) - pose[:3, :3] @ centre
    return pose


def _find_fault(affine: np.ndarray, similarity: float) -> str:
    """Why a result cannot be right; empty if it may be."""
    left, zooms, right = np.linalg.svd(affine[:3, :3])
    if np.linalg.det(affine[:3, :3]) <= 0:
        return "the map mirrors the head"
    if zooms.min() < ZOOMS[0] or zooms.max() > ZOOMS[1]:
        return f"the head would be {zooms.min():.2f} to {zooms.max():.2f} times the template's size"
    angle = np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1)))
    if angle > MAX_ROTATION_DEG:
        return f"the head would be turned by {angle:.0f} degrees"
    if similarity < MIN_SIMILARITY:
        return f"the correlation with the template is {similarity:.2f}, expected at least {MIN_SIMILARITY}"
    return ""
