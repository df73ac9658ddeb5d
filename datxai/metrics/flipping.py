"""Region flipping: how fast the score falls when the regions that a map calls relevant lose their information.

Samek et al. 2017 (doi:10.1109/TNNLS.2016.2599820), in three dimensions: patches or parcels of an atlas are replaced
in the order of their mean relevance, the most relevant first (MoRF) or the least relevant first (LeRF). What replaces
them (``fill``) decides what "information" means, and is the caller's choice:

- the mean scan of a cohort: what is special about this scan goes, and what remains is a scan like any other;
- `blur`: detail goes, the uptake around stays;
- `brain_mean`: all contrast goes. For DAT-SPECT that is no neutral choice: a striatum as dim as the rest of the brain
  looks like disease, so that the score of a reduced case may rise when its evidence is removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import CodeType, FunctionType

import numpy as np
import torch
from torch import Tensor

from datxai.errors import InputError
from datxai.metrics.inputs import Case, score_all, to_array

PATCH_MM = 16.0  # edge of a patch: a little more than the resolution of a clinical scan
STEPS = 10  # at the shares (1/10)^2, (2/10)^2, ... 1 of the volume: the decision turns within the first few percent
ORDERS = 3  # random ones
SAME = 1e-12  # relative: means of one value over regions of several sizes differ by their rounding


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores as regions are flipped; index 0 is the untouched input, the last that with all regions flipped.

    ``fractions`` [steps + 1]: of the regions' volume, what is flipped at least. ``most`` and ``least`` [steps + 1]: the
    most and the least relevant first; ``random`` [orders, steps + 1]. Float64, in units of the score; NaN for a map
    that ranks nothing.
    """

    fractions: np.ndarray
    most: np.ndarray
    least: np.ndarray
    random: np.ndarray

    def summarise(self) -> dict[str, float]:
        """Areas in units of the score, means over the steps (Samek et al. 2017, eq. 12).

        ``aopc_most`` and ``aopc_least``: how far the score falls on average; ``abpc``: the area between both curves,
        the first minus the second; ``over_random``: ``aopc_most`` minus its mean over random orders.
        """
        most, least, random = (float((curve[..., :1] - curve).mean()) for curve in (self.most, self.least, self.random))
        return {"aopc_most": most, "aopc_least": least, "abpc": most - least, "over_random": most - random}


def patch_flipping(case: Case) -> dict[str, float]:
    """Flip cubes of `PATCH_MM`, all over the grid; see `Curves.summarise`."""
    return flip(case, cut_patches(case.parcels.shape, case.spacing)).summarise()


def parcel_flipping(case: Case) -> dict[str, float]:
    """Flip the parcels of the atlas; what belongs to none is never flipped. See `Curves.summarise`.

    Raises InputError if there is no parcel.
    """
    if not (case.parcels > 0).any():
        raise InputError("parcels: there is none, expected regions numbered from 1 on.")
    return flip(case, case.parcels).summarise()


def flip(case: Case, labels: np.ndarray, steps: int = STEPS, orders: int = ORDERS) -> Curves:
    """Flipping curves of a case over regions ``labels``, int [X, Y, Z], 0 for what is never flipped.

    A region ranks by its mean relevance, sign included: what speaks against the explained output ranks last. Step i
    of n flips as few regions as make up (i/n)^2 of the volume. Random orders are drawn from the case's seed. Regions
    that tie, as those where a map is zero, come in the first of these and in its reverse, and ``most`` and ``least``
    are means of both. A map that is not finite, or by which all regions tie, ranks nothing: NaN.

    The score of every set of regions is kept in the case's memo: ends of curves, random orders, and orders on which
    maps agree, are computed once. Only the untouched input is scored each time, which tells whether the network has
    changed since.
    """
    assert labels.shape == case.parcels.shape and (labels > 0).any() and orders > 0, (labels.shape, orders)
    _, place = np.unique(labels[labels > 0], return_inverse=True)
    number = np.full(labels.shape, -1)  # of the region in each voxel
    number[labels > 0] = place
    sizes = np.bincount(place)
    fractions = (np.arange(steps + 1) / steps) ** 2
    level = _rank(np.bincount(place, case.map[labels > 0]) / sizes) if np.isfinite(case.map).all() else np.zeros(1)
    if not level.any():
        nothing = np.full((2 + orders, steps + 1), np.nan)
        return Curves(fractions, nothing[0], nothing[1], nothing[2:])
    where = torch.from_numpy(number).to(case.x.device)

    def flipped(order: np.ndarray) -> Iterator[np.ndarray]:
        """Which regions are flipped after every step, bool [regions]."""
        filled = np.cumsum(sizes[order]) / sizes.sum()
        for fraction in fractions:
            n = int(np.searchsorted(filled, fraction - 1e-9)) + 1 if fraction else 0
            regions = np.zeros(len(order) + 1, bool)  # what is in no region has number -1: the last, never flipped
            regions[order[:n]] = True
            yield regions

    def without(regions: np.ndarray) -> Tensor:
        return torch.where(torch.from_numpy(regions).to(where.device)[where], case.fill.to(case.x), case.x)

    rng = np.random.default_rng(case.seed)
    shuffled = [rng.permutation(len(sizes)) for _ in range(orders)]
    tied = level.max() + 1 < len(level)
    best = [np.lexsort((first, level)) for first in ((shuffled[0], -shuffled[0]) if tied else shuffled[:1])]
    sets = [regions for order in (*best, *(order[::-1] for order in best), *shuffled) for regions in flipped(order)]
    (start,) = score_all(case.score, [case.x])
    content, code, captured = _identify(case, labels)
    key = ("flipping", content, code, *map(_tell_apart, captured), start.tobytes())
    scores, _ = case.memo.setdefault(key, ({sets[0].tobytes(): start}, captured))  # held: no identity is reused
    unknown = {key: regions for regions in sets if (key := regions.tobytes()) not in scores}
    if unknown:
        scores.update(zip(unknown, score_all(case.score, map(without, unknown.values()))))
    curves = np.array([scores[regions.tobytes()] for regions in sets]).reshape(-1, steps + 1)
    most, least, random = np.split(curves, [len(best), 2 * len(best)])
    return Curves(fractions, most.mean(axis=0), least.mean(axis=0), random)


def _rank(means: np.ndarray) -> np.ndarray:
    """The place of each region from the most relevant, 0, down, int [regions]; regions that tie share one."""
    order = np.argsort(-means, kind="stable")
    falling = means[order]
    size = np.abs(falling)
    lower = falling[:-1] - falling[1:] > SAME * np.maximum(size[:-1], size[1:])
    level = np.empty(len(means), int)
    level[order] = np.concatenate([[0], np.cumsum(lower)])
    return level


def _identify(case: Case, labels: np.ndarray) -> tuple[bytes, CodeType | None, tuple]:
    """What scores of flipped inputs follow from: a digest of input, fill and regions, and the score.

    A function made anew for each map, by the same code around the same objects or equal ones that do not change, is the
    same score: the code, and the objects. Of a score that is no function, None and itself.
    """
    arrays = (to_array(case.x), to_array(case.fill), labels)
    content = sha256(repr([(data.shape, data.dtype) for data in arrays]).encode())
    for data in arrays:
        content.update(np.ascontiguousarray(data).data)
    if not isinstance(case.score, FunctionType):
        return content.digest(), None, (case.score,)
    captured = (*(cell.cell_contents for cell in case.score.__closure__ or ()), *(case.score.__defaults__ or ()))
    return content.digest(), case.score.__code__, captured


def _tell_apart(thing: object) -> object:
    try:
        hash(thing)
    except TypeError:  # it may change, or have no simple way to be equal
        return id(thing)
    return type(thing), thing


def cut_patches(shape: Sequence[int], spacing: Sequence[float] | np.ndarray, size_mm: float = PATCH_MM) -> np.ndarray:
    """Labels, int [X, Y, Z] from 1, of cubes of ``size_mm`` (at least a voxel) that fill a grid; smaller at its end."""
    edges = [max(1, round(size_mm / mm)) for mm in spacing]
    counts = [-(-n // edge) for n, edge in zip(shape, edges)]
    places = tuple(place // edge for place, edge in zip(np.indices(shape), edges))
    return np.asarray(np.ravel_multi_index(places, counts)) + 1


def brain_mean(x: Tensor, brain: np.ndarray) -> Tensor:
    """The mean of an input [1, 1, X, Y, Z] within the brain, everywhere [X, Y, Z]; InputError for an empty brain."""
    if not brain.any():
        raise InputError("brain_mean: the brain is empty, expected at least one voxel.")
    mask = torch.from_numpy(brain).to(x.device)
    return torch.full_like(x[0, 0], float(x[0, 0][mask].double().mean()))


def blur(x: Tensor, spacing: Sequence[float] | np.ndarray, fwhm_mm: float = 40.0) -> Tensor:
    """An input [1, 1, X, Y, Z] blurred by a Gaussian of ``fwhm_mm``, zero beyond its edges; [X, Y, Z]."""
    from scipy import ndimage

    sigma = [fwhm_mm / (mm * np.sqrt(8 * np.log(2))) for mm in spacing]
    blurred = ndimage.gaussian_filter(to_array(x[0, 0]), sigma, mode="constant")
    return torch.from_numpy(blurred).to(x)
