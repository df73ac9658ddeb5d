"""Affine registration of a DAT-SPECT scan to the template, by least squares over the template's ingredients.

A scan is modelled as a weighted sum of bases (brain, its dimming by attenuation, the parts of the striatum, scalp,
glands) plus a constant, moved by an affine map. Weights and map are found together by Levenberg-Marquardt steps from
coarse to fine (the principle of Friston et al. 1995, doi 10.1002/hbm.460030303). Because the weights are free, a
scan whose striatum is dark or whose glands outshine the brain is fitted as well as a healthy one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from scipy import ndimage, sparse

from datxai.errors import InputError
from datxai.imaging.atlas import STRIATUM
from datxai.volume import Grid, Volume, resample

# FWHM of the smoothing of scan and bases, coarse to fine. Points no farther than this from the brain take
# part: the scalp helps to find the head, but the fine fit is to see nothing of the glands, which lie
# elsewhere in every person.
LEVELS_MM = (16.0, 8.0, 4.0)
PITCHES_DEG = (-24.0, -12.0, 0.0, 12.0, 24.0)  # chin down, chin up: the starts that are tried
LIFTS_MM = (-50.0, -25.0, 0.0, 25.0)  # along the patient's axis: scans that show more or less of the neck
TRIAL_STEPS = 4  # of each start
EDGE = 0.4  # of the median inside: where a head or brain ends
STEPS = 25  # at most, per level
CONVERGED = 1e-4  # a level ends when a step lowers the unexplained variance by less than this part of it
# Below the coarsest level, a point at the striatum counts 1 + EMPHASIS times as much as one far from it (Gaussian
# with this reach): no affine map fits a whole brain, and here it matters.
EMPHASIS, REACH_MM = 5.0, 25.0
NECK_MM = -60.0  # z in the template's space below which overlap does not count
HEAD_LITRES = (0.4, 12.0)  # smaller or larger things are no head
CLEARLY = 0.75  # another orientation is believed if it leaves less than this part of the variance unexplained


# The ways to lay a head along the axes, upright first; mirrored ones look the same, for a head is symmetric.
TURNS = [
    turn
    for order in permutations(range(3))
    for signs in product((1.0, -1.0), repeat=3)
    if np.linalg.det(turn := np.diag(signs)[list(order)]) > 0
]


@dataclass(frozen=True, eq=False)
class Registration:
    """How a scan lies in the template's space.

    ``affine`` (4 x 4) maps world mm of the template to world mm of the scan, as `resample` takes it; its inverse takes
    the scan to the template. ``weights`` are those of the bases in units of the scan. ``orientation`` is empty,
    or says how the scan seems to be stored, if it fits the template clearly better that way than as its header says:
    "upside down". Left and right cannot be told apart.
    """

    affine: np.ndarray
    weights: dict[str, float]
    orientation: str = ""


def register(volume: Volume, bases: Mapping[str, Volume]) -> Registration:
    """Find the affine map with 12 parameters that takes the template's space to the scan's.

    Parameters
    ----------
    volume : Volume
        A scan of the head, any lattice and resolution.
    bases : mapping of str to Volume
        What the scan is a weighted sum of, as `datxai.imaging.atlas.make_template_bases` gives them.

    Raises `InputError` if the scan has no head in it that could be told from its background. Whether the result is
    to be trusted, `datxai.imaging.quality` says.
    """
    scan, centre = _find_head(volume)
    templates = _make_templates(tuple(bases.items()))
    coarse, *finer = (_Problem(t, scan, centre) for t in templates)
    middle = coarse.template.centre
    upright = coarse.search(_start(middle, centre, *turn) for turn in product(PITCHES_DEG, LIFTS_MM))
    turned = coarse.search(_start(middle, centre, 0.0, lift, turn) for turn, lift in product(TURNS[1:], LIFTS_MM))
    orientation = _describe(turned.pose)
    if orientation and turned.unexplained < CLEARLY * upright.unexplained:
        return Registration(np.linalg.inv(turned.pose), {}, orientation)
    fits = [upright if orientation else min(upright, turned, key=lambda fit: fit.unexplained)]
    for problem in finer:
        fits.append(problem.fit(fits[-1].pose, _AFFINE))
    weights = dict(zip(bases, (finer[-1].unit * fits[-1].weights).tolist()))
    return Registration(np.linalg.inv(fits[-1].pose), weights)


def prepare(bases: Mapping[str, Volume]) -> None:
    """Work out now what `register` and `compare` need of these bases, which the first scan would else wait for."""
    _make_templates(tuple(bases.items()))


def compare(volume: Volume, bases: Mapping[str, Volume], affine: np.ndarray) -> tuple[float, float, float]:
    """Likeness of a scan and the template fitted to it, both smoothed by 16 mm so that noise does not count.

    ``affine`` is that of a `Registration`, or the identity for a scan in the template's space. Returns the correlation
    over brain and scalp; the Dice overlap of the head in both, above the neck and within the field of view; and the
    drift: how far, in mm, a fit that begins there moves the striatum, which is next to nothing if it lies well.
    """
    coarse, fine, _ = _make_templates(tuple(bases.items()))
    scan = resample(volume, _coarsen(volume.grid, 4.0))
    pose = np.linalg.inv(affine)
    problem = _Problem(coarse, scan, coarse.centre)
    fitted = _Problem(fine, scan, coarse.centre).fit(problem.fit(pose, _RIGID_AND_ZOOM).pose, _AFFINE).pose
    striatum = np.column_stack([fine.striatum, np.ones(len(fine.striatum))])
    drift = np.linalg.norm((striatum @ (fitted @ affine).T - striatum)[:, :3], axis=1).mean()
    return (*problem.compare(pose), float(drift))


@dataclass(frozen=True)
class _Fit:
    pose: np.ndarray  # world mm of the scan -> world mm of the template
    unexplained: float  # part of the scan's variance
    weights: np.ndarray


# Directions in the space of 3 x 4 matrices [linear | translation], shape (n, 3, 4).
_AFFINE = np.eye(12).reshape(12, 3, 4)
_ZOOM = _AFFINE[0] + _AFFINE[5] + _AFFINE[10]
_ROTATIONS = _AFFINE[[1, 2, 6]] - _AFFINE[[4, 8, 9]]
_RIGID_AND_ZOOM = np.stack([*_AFFINE[[3, 7, 11]], *_ROTATIONS, _ZOOM])
_RADIUS_MM = 70.0  # of a head: brings linear parameters and translations to one scale
# The ways to lay a head along the axes, as it is first. Mirrored ones look the same, for a head is symmetric.
_CORNERS = np.array(list(product((0, 1), repeat=3)))
_TRUNCATE = 4.0  # standard deviations at which smoothing ends
_MARGIN = 2  # empty voxels around a template, so that points outside need no care


class _Template:
    """The bases at one resolution, side by side in one array (voxels, bases), zero around them.

    Two Laplacians, of the brain and of the striatum, come with them: what a scan gains where it is sharper or more
    blurred. Without, a blurred head would be taken for one of another size.
    """

    def __init__(self, bases: Mapping[str, Volume], level: float, near_striatum: Future[Volume]):
        self.level = level
        grid = _coarsen(bases["brain"].grid, max(level / 4, 2.0))
        smooth = {name: _blur(resample(basis, grid), level).data for name, basis in bases.items()}
        self.count = len(bases)
        columns = [
            *smooth.values(),
            ndimage.laplace(smooth["brain"]),
            ndimage.laplace(sum(smooth[name] for name in STRIATUM)),
        ]
        self.support = ndimage.distance_transform_edt(~_find_bright(smooth["brain"]), grid.spacing) <= level
        self.centre = grid.index_to_mm(ndimage.center_of_mass(self.support))
        self.striatum = bases["brain"].grid.index_to_mm(np.argwhere(_find_striatum(bases)))
        self.shape = np.array(grid.shape) + 2 * _MARGIN
        self.strides = np.array([self.shape[1] * self.shape[2], self.shape[2], 1], np.int32)
        stack = np.zeros((*self.shape, len(columns)), np.float32)
        for column, place in zip(columns, np.moveaxis(stack[(slice(_MARGIN, -_MARGIN),) * 3], -1, 0)):
            box = _bound(column)  # most columns are small things in much that is empty
            place[box] = column[box]
        self.stack = stack.reshape(-1, len(columns))
        self.emphasis = np.ones(grid.shape, np.float32)
        if level < LEVELS_MM[0]:
            self.emphasis += EMPHASIS * resample(near_striatum.result(), grid).data
        self.to_index = np.linalg.inv(grid.affine)


@lru_cache(maxsize=4)
def _make_templates(bases: tuple[tuple[str, Volume], ...]) -> list[_Template]:
    """One per level, made side by side; kept, because a cohort is registered to the same bases."""
    with ThreadPoolExecutor(1 + len(LEVELS_MM)) as pool:
        near_striatum = pool.submit(_measure_nearness, dict(bases))
        return list(pool.map(lambda level: _Template(dict(bases), level, near_striatum), LEVELS_MM))


def _find_striatum(bases: Mapping[str, Volume]) -> np.ndarray:
    striatum = sum(bases[name].data for name in STRIATUM)
    return striatum >= EDGE * striatum.max()


def _measure_nearness(bases: Mapping[str, Volume]) -> Volume:
    """Nearness to the striatum, 1 within it: a Gaussian of the distance."""
    outside = ndimage.distance_transform_edt(~_find_striatum(bases), bases["brain"].grid.spacing)
    return Volume(np.exp(-((outside / REACH_MM) ** 2)), bases["brain"].affine)


class _Problem:
    """A scan to be explained by a template, at one resolution."""

    def __init__(self, template: _Template, scan: Volume, centre: np.ndarray):
        self.template, self.centre = template, centre
        # At the edge of the field of view smoothing makes up what the scan does not show: leave it out.
        points = resample(_blur(scan, template.level), _coarsen(scan.grid, template.level, inset_mm=template.level))
        values = points.data.ravel().astype(np.float64)
        self.unit = values.std() or 1.0  # of the values here, so that those of the scan do not count beside a pose's
        self.values = values / self.unit
        self.positions = points.grid.world_coordinates().reshape(-1, 3)

    def search(self, starts: Iterator[np.ndarray]) -> _Fit:
        """The best of several starts, each tried by a few steps, followed to its end."""
        tried = [self.fit(start, _RIGID_AND_ZOOM, TRIAL_STEPS) for start in starts]
        return self.fit(min(tried, key=lambda fit: fit.unexplained).pose, _RIGID_AND_ZOOM)

    def fit(self, pose: np.ndarray, generators: np.ndarray, steps: int = STEPS) -> _Fit:
        """Levenberg-Marquardt from ``pose``; points near the head as it lies there take part."""
        index = self._indices(pose, self.positions)
        inside = ndimage.map_coordinates(self.template.support, index, order=0, output=bool)
        positions = self.positions[inside]
        emphasis = ndimage.map_coordinates(self.template.emphasis, index[:, inside], order=1, mode="nearest")
        row = np.sqrt(emphasis)  # every equation times the root of its weight
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
        inside = ndimage.map_coordinates(self.template.support, index, order=0, output=bool)
        if inside.sum() < 100:
            return 0.0, 0.0
        *_, weights, residual = self._explain(pose, self.positions[inside], self.values[inside])
        similarity = np.sqrt(max(1.0 - residual.var() / self.values[inside].var(), 0.0))
        fitted = self._sample(pose, self.positions)[0] @ weights[:-1]
        position = self.positions @ pose[:3, :3].T + pose[:3, 3]
        above = position[:, 2] > NECK_MM
        heads = [_find_bright(values) & above for values in (self.values - weights[-1], fitted)]
        both = sum(head.sum() for head in heads)
        return float(similarity), float(2 * (heads[0] & heads[1]).sum() / both) if both else 0.0

    def _explain(
        self, pose: np.ndarray, positions: np.ndarray, values: np.ndarray, row: np.ndarray | None = None
    ) -> tuple:
        """Bases at the points (with a constant), where they were read, their best weights, and what remains."""
        sampled, cells = self._sample(pose, positions)
        columns = np.column_stack([sampled, np.ones(len(values))])
        if row is not None:
            columns *= row[:, None]
        weights = np.linalg.lstsq(columns.T @ columns, columns.T @ values, rcond=1e-12)[0]
        return columns, cells, weights, values - columns @ weights

    def _sample(self, pose: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, sparse.csr_array]:
        """All bases at the points by trilinear interpolation, and the matrix (points, voxels) that does it."""
        template = self.template
        index = np.clip(self._indices(pose, positions).T + _MARGIN, 1, template.shape - 2.001)
        low = index.astype(np.int32)
        upper = (index - low).astype(np.float32)
        share = np.stack([1 - upper, upper])
        shares = [share[i, :, 0] * share[j, :, 1] * share[k, :, 2] for i, j, k in _CORNERS]
        voxels = (low @ template.strides)[:, None] + (_CORNERS @ template.strides).astype(np.int32)
        starts = np.arange(0, voxels.size + 1, 8, dtype=np.int32)
        shape = (len(positions), len(template.stack))
        cells = sparse.csr_array((np.stack(shares, axis=1).ravel(), voxels.ravel(), starts), shape=shape)
        return cells @ template.stack, cells

    def _slope(self, pose: np.ndarray, cells: sparse.csr_array, weights: np.ndarray) -> np.ndarray:
        """Gradient of the fitted template in the scan's space, per mm, shape (points, 3)."""
        template = self.template
        voxels, shares = cells.indices.reshape(-1, 8), cells.data.reshape(-1, 8)
        beside = np.concatenate([np.hstack([voxels + stride, voxels - stride]) for stride in template.strides])
        shares = np.tile(np.hstack([shares, -shares]), (3, 1))  # ahead less behind, of the few voxels asked for
        starts = np.arange(0, beside.size + 1, 16, dtype=np.int32)
        step = sparse.csr_array((shares.ravel(), beside.ravel(), starts), shape=(len(beside), len(template.stack)))
        slope = (step @ template.stack @ weights[:-1]).reshape(3, -1).T
        return slope / 2 @ (template.to_index @ pose)[:3, :3]

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
            "check the scan."
        )
    head = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    litres = head.sum() * coarse.grid.voxel_ml / 1000
    if not HEAD_LITRES[0] < litres < HEAD_LITRES[1]:
        raise InputError(
            f"registration: what stands out in the scan measures {litres:.2g} litres, expected a head of 2 to 8; "
            f"check the voxel size in its header."
        )
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
    data, reach = np.zeros_like(volume.data), np.rint(_TRUNCATE * sigma).astype(int) + 1
    box = _bound(volume.data, reach)  # nothing gets beyond it
    data[box] = ndimage.gaussian_filter(volume.data[box], sigma, mode="nearest", truncate=_TRUNCATE)
    return Volume(data, volume.affine)


def _bound(data: np.ndarray, margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, ...]:
    """The box of what is not zero, and a margin in voxels."""
    filled, box = data != 0, []
    for axis, extra in enumerate(margin):
        (where,) = filled.any(axis=tuple({0, 1, 2} - {axis})).nonzero()
        low, high = (where[0], where[-1] + 1) if where.size else (0, 0)
        box.append(slice(max(low - extra, 0), high + extra))
    return tuple(box)


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


def _describe(pose: np.ndarray) -> str:
    """How the head lies in the scan, in words; empty if it is upright, or turned by less than half a right angle."""
    turn = max(TURNS, key=lambda turn: (turn * pose[:3, :3]).sum())
    if (np.abs(turn) != np.eye(3)).any():
        axes = ", ".join("xyz"[i] for i in np.abs(turn).argmax(axis=1))
        return f"with its axes exchanged (left-right, back-front and foot-head of the patient along its {axes})"
    words = {2: "upside down", 1: "back to front"}
    return " and ".join(word for axis, word in words.items() if turn[axis, axis] < 0)
