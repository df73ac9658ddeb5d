"""Affine registration of a DAT-SPECT scan to the template, by least squares over the template's ingredients.

A scan is modelled as a weighted sum of bases (brain, its dimming by attenuation, the parts of the striatum, scalp,
glands) plus a constant, moved by an affine map. Weights and map are found together by Levenberg-Marquardt steps from
coarse to fine (the principle of Friston et al. 1995, doi 10.1002/hbm.460030303). Because the weights are free, a
scan whose striatum is dark or whose glands outshine the brain is fitted as well as a healthy one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product

import numpy as np
from scipy import ndimage, sparse

from datxai.imaging.head import AROUND_MM, EDGE, HEAD_FWHM_MM, blur, bound_filled, coarsen, find_bright, find_head
from datxai.imaging.orientation import TURNS, describe_orientation, make_upright
from datxai.imaging.template import STRIATUM
from datxai.volume import Volume, field_of_view, resample

# FWHM of the smoothing of scan and bases, coarse to fine, and the distance from the brain up to which points take part
# in the fit: the scalp helps to find the head, but glands lie elsewhere in every person and must not steer the fine
# fit.
LEVELS_MM = (HEAD_FWHM_MM, 8.0, 4.0)
PITCHES_DEG = (-24.0, -12.0, 0.0, 12.0, 24.0)  # chin down, chin up: the starts that are tried
LIFTS_MM = (-50.0, -25.0, 0.0, 25.0)  # along the patient's axis: scans that show more or less of the neck
TRIAL_STEPS = 4  # of Levenberg-Marquardt, for each start
FOLLOWED = 8  # most promising starts that are followed: with a dark striatum the best of the trial may lose in the end
STEPS = 25  # most steps of a fit
CONVERGED = 1e-4  # a fit ends when a step lowers the unexplained variance by less than this fraction
# Weight of a point, but on the coarsest level: 1 far from the striatum, 1 + EMPHASIS at it, a Gaussian of the distance
# with this reach between. No affine map fits a whole brain, and the fit matters most at the striatum.
EMPHASIS, REACH_MM = 5.0, 25.0
NECK_MM = -60.0  # z in the template's space below which overlap does not count
SLAB_MM = 6 * LEVELS_MM[0]  # a thinner scan cannot be registered: smoothing leaves nothing of it but its edges
CLEARLY = 0.66  # another orientation is believed if it leaves less than this fraction of upright's unexplained variance
CLEARLY_CLOSE = 0.75  # and, on the finer level alone, less than this
# How a head may differ from the template's along its axes: by these factors, and by this one between two axes. A head
# that is cut is a ball to which another orientation, blown up, can be fitted as well.
SIZES, ANISOTROPY = (0.75, 1.35), 1.35


@dataclass(frozen=True, eq=False)
class Registration:
    """How a scan lies in the template's space.

    ``affine`` (4 x 4) maps world mm of the template to world mm of the scan, as `resample` takes it; its inverse takes
    the scan to the template. ``weights`` are those of the bases in units of the scan. ``orientation`` is empty,
    or says how the scan seems to be stored, if it fits the template clearly better that way than as its header says:
    "upside down". Left and right cannot be told apart. ``upright`` (4 x 4) then takes the scan's world to one in which
    it lies upright. Left and right stay as the header has them, unless the axes are exchanged.
    """

    affine: np.ndarray
    weights: dict[str, float]
    orientation: str = ""
    upright: np.ndarray | None = None


def register(volume: Volume, bases: Mapping[str, Volume]) -> Registration:
    """Find the affine map with 12 parameters that takes the template's space to the scan's.

    Parameters
    ----------
    volume : Volume
        A scan of the head, any lattice and resolution.
    bases : mapping of str to Volume
        What the scan is a weighted sum of, as `datxai.imaging.template.make_template_bases` gives them.

    Raises `InputError` if the scan has no head in it that could be told from its background. Whether the result is
    to be trusted, `datxai.imaging.quality` says.
    """
    scan, centre = find_head(volume)
    templates = _make_templates(tuple(bases.items()))
    coarse, *finer = (_Problem(t, scan, centre) for t in templates)
    middle = coarse.template.centre
    upright = coarse.search(_start(middle, centre, *turn) for turn in product(PITCHES_DEG, LIFTS_MM))
    turned = coarse.search(_start(middle, centre, 0.0, lift_mm, turn) for turn, lift_mm in product(TURNS[1:], LIFTS_MM))
    straight = [fit for fit in (upright, turned) if not describe_orientation(fit.pose)]
    askew = min((fit for fit in (upright, turned) if describe_orientation(fit.pose)), key=_as_a_head, default=None)
    if askew and (not straight or _is_clearly_better(askew, min(straight, key=_as_a_head), finer[0])):
        return Registration(np.linalg.inv(askew.pose), {}, describe_orientation(askew.pose), make_upright(askew.pose))
    fits = [min(straight, key=_as_a_head)]
    for problem in finer:
        fits.append(problem.fit(fits[-1].pose, _AFFINE))
    weights = dict(zip(bases, (finer[-1].unit * fits[-1].weights).tolist()))
    return Registration(np.linalg.inv(fits[-1].pose), weights)


def _is_clearly_better(fit: _Fit, other: _Fit, closer: _Problem) -> bool:
    """Whether a fit leaves less than the fraction `CLEARLY` of the variance unexplained that another leaves, or is of
    the size and shape of a head where the other is not.

    The geometric mean of two levels counts, the coarsest and a finer one (``closer``): with a dark striatum all
    orientations look much alike on the coarsest, and a wrong one may look far better there. So the finer one has a say
    of its own.
    """
    coarse = fit.unexplained / other.unexplained
    is_none, other_is_none = (_as_a_head(one)[0] for one in (fit, other))
    if is_none != other_is_none:
        return other_is_none
    if coarse >= 1:
        return False
    ours, theirs = (closer.fit(pose, _AFFINE).unexplained for pose in (fit.pose, other.pose))
    return coarse * ours / theirs < CLEARLY**2 and ours / theirs < CLEARLY_CLOSE


def prepare(bases: Mapping[str, Volume]) -> None:
    """Make the templates of these bases now, so that the first scan does not have to wait for them."""
    _make_templates(tuple(bases.items()))


def compare(volume: Volume, bases: Mapping[str, Volume], affine: np.ndarray) -> tuple[float, float, float | None]:
    """Likeness of a scan and the template fitted to it, both smoothed by 16 mm so that noise does not count.

    ``affine`` is that of a `Registration`, or the identity for a scan in the template's space. Returns the correlation
    over brain and scalp; the Dice overlap of the head in both, above the neck and within the field of view; and the
    drift: how far, in mm, another fit that begins at ``affine`` moves the striatum, which is hardly at all if the
    registration is right. A slab thinner than `SLAB_MM` and the template at its place are smoothed within the slab
    only; its drift is None.
    """
    field = field_of_view(volume)
    if (field.spacing * field.shape).min() < SLAB_MM:
        return (*_compare_slab(resample(volume, field), bases, affine), None)
    coarse, fine, _ = _make_templates(tuple(bases.items()))
    scan = resample(volume, coarsen(volume.grid, 4.0))
    pose = np.linalg.inv(affine)
    problem = _Problem(coarse, scan, coarse.centre)
    fitted = _Problem(fine, scan, coarse.centre).fit(problem.fit(pose, _RIGID_AND_ZOOM).pose, _AFFINE).pose
    striatum = np.column_stack([fine.striatum, np.ones(len(fine.striatum))])
    drift = np.linalg.norm((striatum @ (fitted @ affine).T - striatum)[:, :3], axis=1).mean()
    return (*problem.compare(pose), float(drift))


def _compare_slab(volume: Volume, bases: Mapping[str, Volume], affine: np.ndarray) -> tuple[float, float]:
    """Correlation and overlap of a slab and the template, which is resampled to the slab."""
    to_scan = np.linalg.inv(affine)
    smooth = {
        name: blur(resample(basis, volume.grid, to_scan), LEVELS_MM[0]).data.astype(np.float64)
        for name, basis in bases.items()
    }
    values = blur(volume, LEVELS_MM[0]).data.astype(np.float64)
    outside = np.asarray(ndimage.distance_transform_edt(~find_bright(smooth["brain"]), volume.grid.spacing))
    near = outside <= LEVELS_MM[0]
    columns = np.stack([*smooth.values(), np.ones(volume.shape)], axis=-1)
    if not near.any() or not (variance := values[near].var()):
        return 0.0, 0.0
    weights = np.linalg.lstsq(columns[near], values[near], rcond=1e-12)[0]
    fitted = columns @ weights
    similarity = np.sqrt(max(1.0 - (values - fitted)[near].var() / variance, 0.0))
    heads = [find_bright(data - weights[-1]) for data in (values, fitted)]
    both = sum(head.sum() for head in heads)
    return float(similarity), float(2 * (heads[0] & heads[1]).sum() / both) if both else 0.0


@dataclass(frozen=True)
class _Fit:
    pose: np.ndarray  # world mm of the scan -> world mm of the template
    unexplained: float  # part of the scan's variance
    weights: np.ndarray


def _as_a_head(fit: _Fit) -> tuple[bool, float]:
    """The rank of a fit among others: those of the size and shape of a head come first, then the better ones."""
    sizes = np.linalg.svd(fit.pose[:3, :3], compute_uv=False)
    is_head = SIZES[0] <= sizes[-1] and sizes[0] <= min(SIZES[1], ANISOTROPY * sizes[-1])
    return not is_head, fit.unexplained


# Directions in the space of 3 x 4 matrices [linear | translation], shape (n, 3, 4).
_AFFINE = np.eye(12).reshape(12, 3, 4)
_ZOOM = _AFFINE[0] + _AFFINE[5] + _AFFINE[10]
_ROTATIONS = _AFFINE[[1, 2, 6]] - _AFFINE[[4, 8, 9]]
_RIGID_AND_ZOOM = np.stack([*_AFFINE[[3, 7, 11]], *_ROTATIONS, _ZOOM])
_RADIUS_MM = 70.0  # of a head; scales linear parameters to the size of translations
_CORNERS = np.array(list(product((0, 1), repeat=3)))
_MARGIN = 2  # empty voxels around a template, so that points outside are read as zero


class _Template:
    """The bases at one resolution, side by side in one array (voxels, bases), zero around them.

    Two more columns are the Laplacians of brain and striatum: adding one makes the fitted template sharper or more
    blurred. Without them, a blurred scan would be fitted by a head of another size.
    """

    def __init__(self, bases: Mapping[str, Volume], level: float, near_striatum: Future[Volume]):
        self.level = level
        grid = coarsen(bases["brain"].grid, max(level / 4, 2.0))
        smooth = {name: blur(resample(basis, grid), level).data for name, basis in bases.items()}
        self.count = len(bases)
        columns = [
            *smooth.values(),
            ndimage.laplace(smooth["brain"]),
            ndimage.laplace(sum(smooth[name] for name in STRIATUM)),
        ]
        outside = np.asarray(ndimage.distance_transform_edt(~find_bright(smooth["brain"]), grid.spacing))
        self.support = outside <= level
        self.centre = grid.index_to_mm(ndimage.center_of_mass(self.support))
        self.striatum = bases["brain"].grid.index_to_mm(np.argwhere(_find_striatum(bases)))
        self.shape = np.array(grid.shape) + 2 * _MARGIN
        self.strides = np.array([self.shape[1] * self.shape[2], self.shape[2], 1], np.int32)
        stack = np.zeros((*self.shape, len(columns)), np.float32)
        for column, place in zip(columns, np.moveaxis(stack[(slice(_MARGIN, -_MARGIN),) * 3], -1, 0)):
            box = bound_filled(column)  # most columns are empty but for a small part
            place[box] = column[box]
        self.stack = stack.reshape(-1, len(columns))
        self.emphasis = np.ones(grid.shape, np.float32)
        if level < LEVELS_MM[0]:
            self.emphasis += EMPHASIS * resample(near_striatum.result(), grid).data
        self.to_index = np.linalg.inv(grid.affine)


@lru_cache(maxsize=4)
def _make_templates(bases: tuple[tuple[str, Volume], ...]) -> list[_Template]:
    """One template per level, made in parallel; cached, because a whole cohort is registered to the same bases."""
    with ThreadPoolExecutor(1 + len(LEVELS_MM)) as pool:
        near_striatum = pool.submit(_measure_nearness, dict(bases))
        return list(pool.map(lambda level: _Template(dict(bases), level, near_striatum), LEVELS_MM))


def _find_striatum(bases: Mapping[str, Volume]) -> np.ndarray:
    striatum = reduce(np.add, (bases[name].data for name in STRIATUM))
    return striatum >= EDGE * striatum.max()


def _measure_nearness(bases: Mapping[str, Volume]) -> Volume:
    """Nearness to the striatum, 1 within it: a Gaussian of the distance."""
    outside = np.asarray(ndimage.distance_transform_edt(~_find_striatum(bases), bases["brain"].grid.spacing))
    return Volume(np.exp(-((outside / REACH_MM) ** 2)), bases["brain"].affine)


class _Problem:
    """A scan to be explained by a template, at one resolution."""

    def __init__(self, template: _Template, scan: Volume, centre: np.ndarray):
        self.template, self.centre = template, centre
        # Near the edge of the field of view smoothed values rest on voxels that the scan lacks.
        points = resample(blur(scan, template.level), coarsen(scan.grid, template.level, inset_mm=template.level))
        values = points.data.ravel().astype(np.float64)
        self.unit = values.std() or 1.0  # scales the values, so that parameters do not depend on the unit of the scan
        self.values = values / self.unit
        self.positions = points.grid.world_coordinates().reshape(-1, 3)

    def search(self, starts: Iterator[np.ndarray]) -> _Fit:
        """The best fit of several starts: each gets a few steps, the most promising are followed to convergence."""
        tried = sorted((self.fit(start, _RIGID_AND_ZOOM, TRIAL_STEPS) for start in starts), key=_as_a_head)
        followed = (self.fit(fit.pose, _RIGID_AND_ZOOM) for fit in tried[:FOLLOWED])
        return min((self.fit(fit.pose, _AFFINE) for fit in followed), key=_as_a_head)

    def fit(self, pose: np.ndarray, generators: np.ndarray, steps: int = STEPS) -> _Fit:
        """Fit by Levenberg-Marquardt steps from ``pose``, on the points that ``pose`` places near the head."""
        index = self._indices(pose, self.positions)
        inside = np.asarray(ndimage.map_coordinates(self.template.support, index, order=0, output=bool), bool)
        positions = self.positions[inside]
        emphasis = np.asarray(
            ndimage.map_coordinates(self.template.emphasis, index[:, inside], order=1, mode="nearest")
        )
        row = np.sqrt(emphasis)  # weighted least squares: every equation times the square root of its weight
        values = self.values[inside]
        variance = (emphasis * (values - np.average(values, weights=emphasis)) ** 2).sum() if len(values) else 0.0
        if len(values) < 100 or variance == 0:
            return _Fit(pose, 1.0, np.zeros(self.template.count))
        values = values * row
        relative = np.column_stack([(positions - self.centre) / _RADIUS_MM, np.ones(len(positions))])
        n = len(generators)
        directions = generators.reshape(n, 12).T
        columns, cells, weights, residual = self._explain(pose, positions, values, row)
        unexplained, damping = residual @ residual / variance, 1e-3
        for _ in range(steps):
            slope = self._slope(pose, cells, weights) * row[:, None]
            moved = (slope[:, :, None] * relative[:, None, :]).reshape(-1, 12) @ directions
            design = np.hstack([moved, columns])
            normal = design.T @ design
            change = design.T @ residual
            while damping < 1e6:
                damped = normal.copy()
                damped[np.arange(n), np.arange(n)] *= 1 + damping
                parameters = np.linalg.lstsq(damped, change, rcond=1e-12)[0][:n]
                candidate = pose @ self._move(parameters, generators)
                trial = self._explain(candidate, positions, values, row)
                gain = unexplained - trial[-1] @ trial[-1] / variance
                if gain > 0:
                    break
                damping *= 10
            else:
                break
            pose, (columns, cells, weights, residual) = candidate, trial
            unexplained, damping = unexplained - gain, damping / 10
            if gain < CONVERGED * unexplained:
                break
        return _Fit(pose, float(unexplained), weights[: self.template.count])

    def compare(self, pose: np.ndarray) -> tuple[float, float]:
        """Correlation and overlap of scan and fitted template, as `compare` has them."""
        index = self._indices(pose, self.positions)
        inside = np.asarray(ndimage.map_coordinates(self.template.support, index, order=0, output=bool), bool)
        if inside.sum() < 100:
            return 0.0, 0.0
        *_, weights, residual = self._explain(pose, self.positions[inside], self.values[inside])
        similarity = np.sqrt(max(1.0 - residual.var() / self.values[inside].var(), 0.0))
        fitted = self._sample(pose, self.positions)[0] @ weights[:-1]
        position = self.positions @ pose[:3, :3].T + pose[:3, 3]
        near = np.linalg.norm(position - self.template.centre, axis=1) <= AROUND_MM
        near &= position[:, 2] > NECK_MM
        heads = [find_bright(values[near]) for values in (self.values - weights[-1], fitted)]
        both = sum(head.sum() for head in heads)
        return float(similarity), float(2 * (heads[0] & heads[1]).sum() / both) if both else 0.0

    def _explain(
        self, pose: np.ndarray, positions: np.ndarray, values: np.ndarray, row: np.ndarray | None = None
    ) -> tuple:
        """The bases and a constant at the points, the matrix that samples them, their best weights, the residual."""
        sampled, cells = self._sample(pose, positions)
        columns = np.column_stack([sampled, np.ones(len(values))])
        if row is not None:
            columns *= row[:, None]
        weights = np.linalg.lstsq(columns.T @ columns, columns.T @ values, rcond=1e-12)[0]
        return columns, cells, weights, values - columns @ weights

    def _sample(self, pose: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, sparse.csr_array]:
        """All bases at the points by trilinear interpolation, and its sparse matrix (points, voxels)."""
        template = self.template
        index = np.clip(self._indices(pose, positions).T + _MARGIN, 1, template.shape - 2.001)
        low = index.astype(np.int32)
        upper = (index - low).astype(np.float32)
        sides = np.stack([1 - upper, upper])
        weights = [sides[i, :, 0] * sides[j, :, 1] * sides[k, :, 2] for i, j, k in _CORNERS]
        voxels = (low @ template.strides)[:, None] + (_CORNERS @ template.strides).astype(np.int32)
        starts = np.arange(0, voxels.size + 1, 8, dtype=np.int32)
        shape = (len(positions), len(template.stack))
        cells = sparse.csr_array((np.stack(weights, axis=1).ravel(), voxels.ravel(), starts), shape=shape)
        return cells @ template.stack, cells

    def _slope(self, pose: np.ndarray, cells: sparse.csr_array, amplitudes: np.ndarray) -> np.ndarray:
        """Gradient of the fitted template in the scan's space, per mm, shape (points, 3)."""
        template = self.template
        voxels, weights = cells.indices.reshape(-1, 8), np.asarray(cells.data, np.float32).reshape(-1, 8)
        neighbours = np.concatenate([np.hstack([voxels + stride, voxels - stride]) for stride in template.strides])
        signed = np.tile(np.hstack([weights, -weights]), (3, 1))  # the next voxel less the one before, along each axis
        starts = np.arange(0, neighbours.size + 1, 16, dtype=np.int32)
        shape = (len(neighbours), len(template.stack))
        step = sparse.csr_array((signed.ravel(), neighbours.ravel(), starts), shape=shape)
        slope = (step @ template.stack @ amplitudes[:-1]).reshape(3, -1).T
        return slope / 2 @ (template.to_index @ pose)[:3, :3]

    def _indices(self, pose: np.ndarray, positions: np.ndarray) -> np.ndarray:
        to_index = self.template.to_index @ pose
        return to_index[:3, :3] @ positions.T + to_index[:3, 3:]

    def _move(self, parameters: np.ndarray, generators: np.ndarray) -> np.ndarray:
        """The affine map (4 x 4) of a step's parameters, about the centre of the head."""
        step = np.eye(4)
        linear, shift = np.split(np.tensordot(parameters, generators, axes=1), [3], axis=1)
        step[:3, :3] += linear / _RADIUS_MM
        step[:3, 3] = shift[:, 0] - linear @ self.centre / _RADIUS_MM
        return step


def _start(
    middle: np.ndarray, centre: np.ndarray, pitch_deg: float, lift_mm: float, turn: np.ndarray | None = None
) -> np.ndarray:
    """A pose that brings the head's centre to the template's: turned as a whole, pitched about x, and lifted."""
    c, s = np.cos(np.radians(pitch_deg)), np.sin(np.radians(pitch_deg))
    pose = np.eye(4)
    pose[1:3, 1:3] = [[c, -s], [s, c]]
    if turn is not None:
        pose[:3, :3] = pose[:3, :3] @ turn
    pose[:3, 3] = middle + np.array([0, 0, lift_mm]) - pose[:3, :3] @ centre
    return pose
