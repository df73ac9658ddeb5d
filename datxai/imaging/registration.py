"""Affine registration of a DAT-SPECT scan to the template, by least squares over the template's components.

A scan is modelled as a weighted sum of bases (brain, its dimming by attenuation, the parts of the striatum, scalp,
glands) plus a constant, moved by an affine map. Weights and map are fitted jointly by Levenberg-Marquardt steps from
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

# FWHM of the smoothing of scan and bases, coarse to fine, and the distance from the brain up to which points are
# fitted: the scalp helps to find the head, but glands lie elsewhere in every person and must not steer the fine fit.
LEVELS_MM = (HEAD_FWHM_MM, 8.0, 4.0)
PITCHES_DEG = (-24.0, -12.0, 0.0, 12.0, 24.0)  # starting poses, from chin down to chin up
LIFTS_MM = (-50.0, -25.0, 0.0, 25.0)  # starting shifts along the patient's axis: scans show more or less of the neck
TRIAL_STEPS = 4  # of Levenberg-Marquardt, for each start
KEPT_STARTS = 8  # starts fitted to convergence: with a dark striatum the best trial may lose in the end
MAX_STEPS = 25  # of a fit
CONVERGED = 1e-4  # a fit ends when a step lowers the unexplained variance by less than this fraction
# Weight of a point on all but the coarsest level: 1 far from the striatum, 1 + EMPHASIS within it, falling off as a
# Gaussian of this reach. No affine map fits a whole brain, and the fit matters most at the striatum.
EMPHASIS, REACH_MM = 5.0, 25.0
NECK_MM = -60.0  # z in the template's space below which overlap does not count
SLAB_MM = 6 * LEVELS_MM[0]  # a thinner scan cannot be registered: after smoothing, only its edges are left
# Another orientation is accepted if its unexplained variance is less than this fraction of that of the upright one, as
# the geometric mean of two levels, and on the finer level alone.
MAX_RATIO, MAX_FINE_RATIO = 0.66, 0.75
# Range of a head's size over the template's, and largest ratio between two axes. A truncated head is close to a ball,
# which a wrong orientation fits as well if it is scaled up.
SIZES, ANISOTROPY = (0.75, 1.35), 1.35


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a scan lies in the template's space.

    ``affine`` (4 x 4) maps world mm of the template to world mm of the scan, as `resample` expects it; its inverse maps
    the scan to the template. ``weights`` are those of the bases in units of the scan. ``orientation`` is empty unless
    the scan fits the template clearly better in another orientation than its header states; then it describes how the
    scan seems to be stored, such as "upside down", and ``upright`` (4 x 4) maps the scan's world to one in which it
    lies upright. Left and right cannot be distinguished and stay as in the header, unless the axes are swapped.
    """

    affine: np.ndarray
    weights: dict[str, float]
    orientation: str = ""
    upright: np.ndarray | None = None


def register(volume: Volume, bases: Mapping[str, Volume]) -> Alignment:
    """Find the affine map with 12 parameters from the template's space to the scan's.

    Parameters
    ----------
    volume : Volume
        A scan of the head, on any lattice and at any resolution.
    bases : mapping of str to Volume
        The terms of the weighted sum, as returned by `datxai.imaging.template.make_template_bases`.

    Raises `InputError` if no head stands out from the background of the scan. `datxai.imaging.quality` tells whether
    the result can be trusted.
    """
    scan, centre = find_head(volume)
    templates = _make_templates(tuple(bases.items()))
    coarse, *finer = (_Problem(t, scan, centre) for t in templates)
    middle = coarse.template.centre
    upright = coarse.search(_start(middle, centre, *turn) for turn in product(PITCHES_DEG, LIFTS_MM))
    turned = coarse.search(_start(middle, centre, 0.0, lift_mm, turn) for turn, lift_mm in product(TURNS[1:], LIFTS_MM))
    straight = [fit for fit in (upright, turned) if not describe_orientation(fit.pose)]
    askew = min((fit for fit in (upright, turned) if describe_orientation(fit.pose)), key=_rank, default=None)
    if askew and (not straight or _is_clearly_better(askew, min(straight, key=_rank), finer[0])):
        return Alignment(np.linalg.inv(askew.pose), {}, describe_orientation(askew.pose), make_upright(askew.pose))
    fits = [min(straight, key=_rank)]
    for problem in finer:
        fits.append(problem.fit(fits[-1].pose, _AFFINE))
    weights = dict(zip(bases, (finer[-1].unit * fits[-1].weights).tolist()))
    return Alignment(np.linalg.inv(fits[-1].pose), weights)


def _is_clearly_better(fit: _Fit, other: _Fit, finer: _Problem) -> bool:
    """Whether a fit leaves much less of the variance unexplained than another (`MAX_RATIO`, `MAX_FINE_RATIO`), or has
    the size and shape of a head where the other has not.

    Two levels are compared, the coarsest and a ``finer`` one: with a dark striatum all orientations look much alike on
    the coarsest level, and a wrong one may look far better there, so the finer level must agree.
    """
    coarse = fit.unexplained / other.unexplained
    implausible, other_implausible = (_rank(candidate)[0] for candidate in (fit, other))
    if implausible != other_implausible:
        return other_implausible
    if coarse >= 1:
        return False
    fine = finer.fit(fit.pose, _AFFINE).unexplained / finer.fit(other.pose, _AFFINE).unexplained
    return coarse * fine < MAX_RATIO**2 and fine < MAX_FINE_RATIO


def prepare(bases: Mapping[str, Volume]) -> None:
    """Build the templates of these bases now, so that the first scan does not wait for them."""
    _make_templates(tuple(bases.items()))


def compare(volume: Volume, bases: Mapping[str, Volume], affine: np.ndarray) -> tuple[float, float, float | None]:
    """Similarity of a scan and the template fitted to it, both smoothed by 16 mm so that noise does not count.

    ``affine`` is that of an `Alignment`, or the identity for a scan in the template's space. Returns the correlation
    over brain and scalp; the Dice overlap of the two heads, above the neck and within the field of view; and the
    drift: how far, in mm, another fit that starts at ``affine`` moves the striatum, which is hardly at all if the
    registration is right. A slab thinner than `SLAB_MM` and the template there are smoothed within the slab only; its
    drift is None.
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
    """Correlation and overlap of a slab and the template resampled to it."""
    to_scan = np.linalg.inv(affine)
    smooth = {
        name: blur(resample(basis, volume.grid, to_scan), LEVELS_MM[0]).data.astype(np.float64)
        for name, basis in bases.items()
    }
    values = blur(volume, LEVELS_MM[0]).data.astype(np.float64)
    distance = np.asarray(ndimage.distance_transform_edt(~find_bright(smooth["brain"]), volume.grid.spacing))
    near = distance <= LEVELS_MM[0]
    columns = np.stack([*smooth.values(), np.ones(volume.shape)], axis=-1)
    if not near.any() or not (variance := values[near].var()):
        return 0.0, 0.0
    weights = np.linalg.lstsq(columns[near], values[near], rcond=1e-12)[0]
    fitted = columns @ weights
    similarity = np.sqrt(max(1.0 - (values - fitted)[near].var() / variance, 0.0))
    heads = [find_bright(data - weights[-1]) for data in (values, fitted)]
    total = sum(head.sum() for head in heads)
    return float(similarity), float(2 * (heads[0] & heads[1]).sum() / total) if total else 0.0


@dataclass(frozen=True)
class _Fit:
    pose: np.ndarray  # world mm of the scan -> world mm of the template
    unexplained: float  # fraction of the scan's variance
    weights: np.ndarray


def _rank(fit: _Fit) -> tuple[bool, float]:
    """Sort key: fits with the size and shape of a head come first, then those that explain more."""
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
_MARGIN = 2  # empty voxels around a template, so that points outside it sample zero


class _Template:
    """The bases at one resolution, side by side in one array (voxels, bases), zero around them.

    Two more columns are the Laplacians of brain and striatum, which sharpen or blur the fitted template. Without them,
    a blurred scan would be fitted by a head of another size.
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
        distance = np.asarray(ndimage.distance_transform_edt(~find_bright(smooth["brain"]), grid.spacing))
        self.support = distance <= level
        self.centre = grid.index_to_mm(ndimage.center_of_mass(self.support))
        self.striatum = bases["brain"].grid.index_to_mm(np.argwhere(_find_striatum(bases)))
        self.shape = np.array(grid.shape) + 2 * _MARGIN
        self.strides = np.array([self.shape[1] * self.shape[2], self.shape[2], 1], np.int32)
        stack = np.zeros((*self.shape, len(columns)), np.float32)
        for column, target in zip(columns, np.moveaxis(stack[(slice(_MARGIN, -_MARGIN),) * 3], -1, 0)):
            box = bound_filled(column)  # most columns are nonzero in a small part only
            target[box] = column[box]
        self.stack = stack.reshape(-1, len(columns))
        self.emphasis = np.ones(grid.shape, np.float32)
        if level < LEVELS_MM[0]:
            self.emphasis += EMPHASIS * resample(near_striatum.result(), grid).data
        self.to_index = np.linalg.inv(grid.affine)


@lru_cache(maxsize=4)
def _make_templates(bases: tuple[tuple[str, Volume], ...]) -> list[_Template]:
    """One template per level, built in parallel; cached, because a whole cohort is registered to the same bases."""
    with ThreadPoolExecutor(1 + len(LEVELS_MM)) as pool:
        near_striatum = pool.submit(_measure_nearness, dict(bases))
        return list(pool.map(lambda level: _Template(dict(bases), level, near_striatum), LEVELS_MM))


def _find_striatum(bases: Mapping[str, Volume]) -> np.ndarray:
    striatum = reduce(np.add, (bases[name].data for name in STRIATUM))
    return striatum >= EDGE * striatum.max()


def _measure_nearness(bases: Mapping[str, Volume]) -> Volume:
    """Nearness to the striatum, 1 within it: a Gaussian of the distance."""
    distance = np.asarray(ndimage.distance_transform_edt(~_find_striatum(bases), bases["brain"].grid.spacing))
    return Volume(np.exp(-((distance / REACH_MM) ** 2)), bases["brain"].affine)


class _Problem:
    """A scan to be explained by a template, at one resolution."""

    def __init__(self, template: _Template, scan: Volume, centre: np.ndarray):
        self.template, self.centre = template, centre
        # Smoothed values near the edge of the field of view would depend on voxels outside it.
        points = resample(blur(scan, template.level), coarsen(scan.grid, template.level, inset_mm=template.level))
        values = points.data.ravel().astype(np.float64)
        self.unit = values.std() or 1.0  # scales the values, so that parameters do not depend on the scan's unit
        self.values = values / self.unit
        self.positions = points.grid.world_coordinates().reshape(-1, 3)

    def search(self, starts: Iterator[np.ndarray]) -> _Fit:
        """The best fit from several starts: each gets a few steps, the most promising ones run to convergence."""
        trials = sorted((self.fit(start, _RIGID_AND_ZOOM, TRIAL_STEPS) for start in starts), key=_rank)
        rigid = (self.fit(fit.pose, _RIGID_AND_ZOOM) for fit in trials[:KEPT_STARTS])
        return min((self.fit(fit.pose, _AFFINE) for fit in rigid), key=_rank)

    def fit(self, pose: np.ndarray, generators: np.ndarray, steps: int = MAX_STEPS) -> _Fit:
        """Fit by Levenberg-Marquardt steps from ``pose``, to the points that ``pose`` places near the head."""
        index = self._indices(pose, self.positions)
        inside = np.asarray(ndimage.map_coordinates(self.template.support, index, order=0, output=bool), bool)
        positions = self.positions[inside]
        emphasis = np.asarray(
            ndimage.map_coordinates(self.template.emphasis, index[:, inside], order=1, mode="nearest")
        )
        root_weight = np.sqrt(emphasis)  # weighted least squares: scale every equation by the square root of its weight
        values = self.values[inside]
        variance = (emphasis * (values - np.average(values, weights=emphasis)) ** 2).sum() if len(values) else 0.0
        if len(values) < 100 or variance == 0:
            return _Fit(pose, 1.0, np.zeros(self.template.count))
        values = values * root_weight
        relative = np.column_stack([(positions - self.centre) / _RADIUS_MM, np.ones(len(positions))])
        n = len(generators)
        directions = generators.reshape(n, 12).T
        columns, cells, weights, residual = self._explain(pose, positions, values, root_weight)
        unexplained, damping = residual @ residual / variance, 1e-3
        for _ in range(steps):
            slope = self._slope(pose, cells, weights) * root_weight[:, None]
            moved = (slope[:, :, None] * relative[:, None, :]).reshape(-1, 12) @ directions
            design = np.hstack([moved, columns])
            normal = design.T @ design
            change = design.T @ residual
            while damping < 1e6:
                damped = normal.copy()
                damped[np.arange(n), np.arange(n)] *= 1 + damping
                parameters = np.linalg.lstsq(damped, change, rcond=1e-12)[0][:n]
                candidate = pose @ self._move(parameters, generators)
                trial = self._explain(candidate, positions, values, root_weight)
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
        """Correlation and overlap of scan and fitted template, as in `compare`."""
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
        total = sum(head.sum() for head in heads)
        return float(similarity), float(2 * (heads[0] & heads[1]).sum() / total) if total else 0.0

    def _explain(
        self, pose: np.ndarray, positions: np.ndarray, values: np.ndarray, root_weight: np.ndarray | None = None
    ) -> tuple:
        """Bases and a constant at the points, the matrix that samples them, their best weights, and the residual."""
        sampled, cells = self._sample(pose, positions)
        columns = np.column_stack([sampled, np.ones(len(values))])
        if root_weight is not None:
            columns *= root_weight[:, None]
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
        signed = np.tile(np.hstack([weights, -weights]), (3, 1))  # next voxel minus previous one, along each axis
        starts = np.arange(0, neighbours.size + 1, 16, dtype=np.int32)
        shape = (len(neighbours), len(template.stack))
        step = sparse.csr_array((signed.ravel(), neighbours.ravel(), starts), shape=shape)
        slope = (step @ template.stack @ amplitudes[:-1]).reshape(3, -1).T
        return slope / 2 @ (template.to_index @ pose)[:3, :3]

    def _indices(self, pose: np.ndarray, positions: np.ndarray) -> np.ndarray:
        to_index = self.template.to_index @ pose
        return to_index[:3, :3] @ positions.T + to_index[:3, 3:]

    def _move(self, parameters: np.ndarray, generators: np.ndarray) -> np.ndarray:
        """The affine map (4 x 4) of a step's parameters, about the head's centre."""
        step = np.eye(4)
        linear, shift = np.split(np.tensordot(parameters, generators, axes=1), [3], axis=1)
        step[:3, :3] += linear / _RADIUS_MM
        step[:3, 3] = shift[:, 0] - linear @ self.centre / _RADIUS_MM
        return step


def _start(
    middle: np.ndarray, centre: np.ndarray, pitch_deg: float, lift_mm: float, turn: np.ndarray | None = None
) -> np.ndarray:
    """A pose that moves the head's centre to the template's: turned as a whole, pitched about x, and lifted."""
    c, s = np.cos(np.radians(pitch_deg)), np.sin(np.radians(pitch_deg))
    pose = np.eye(4)
    pose[1:3, 1:3] = [[c, -s], [s, c]]
    if turn is not None:
        pose[:3, :3] = pose[:3, :3] @ turn
    pose[:3, 3] = middle + np.array([0, 0, lift_mm]) - pose[:3, :3] @ centre
    return pose
