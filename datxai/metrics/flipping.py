"""Region flipping: how fast the score falls when the regions that a map calls relevant lose their information.

Samek et al. 2017 (doi:10.1109/TNNLS.2016.2599820), in three dimensions: patches or parcels of an atlas are replaced
in the order of their mean relevance, the most relevant first (MoRF) or the least relevant first (LeRF). The caller
chooses what replaces them (``fill``), which defines what "information" means:

- the mean scan of a cohort removes what is special about this scan;
- `blur` removes detail and keeps the surrounding uptake;
- `brain_mean` removes all contrast. For DAT-SPECT that is not neutral: a striatum as dim as the rest of the brain
  looks like disease, so the score of a reduced case may rise when its evidence is removed.
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
STEPS = 10  # up to (1/10)^2, (2/10)^2, ... 1 of the volume: the decision turns within the first few percent
ORDERS = 3  # number of random orders
TIE_TOLERANCE = 1e-12  # relative: means of one value over regions of several sizes differ by rounding


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores as regions are flipped, from the untouched input (index 0) to all regions flipped (the last).

    ``fractions`` [steps + 1]: the least share of the regions' volume that is flipped. ``most`` and ``least``
    [steps + 1]: scores with the most and the least relevant first; ``random`` [orders, steps + 1]. Float64, in units
    of the score; NaN for a map that ranks nothing.
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
    """Flip cubes of edge `PATCH_MM` that fill the grid; see `Curves.summarise`."""
    return flip(case, cut_patches(case.parcels.shape, case.spacing)).summarise()


def parcel_flipping(case: Case) -> dict[str, float]:
    """Flip the parcels of the atlas; voxels outside them are never flipped. See `Curves.summarise`.

    Raises InputError if there is no parcel.
    """
    if not (case.parcels > 0).any():
        raise InputError("parcels: there are none, expected regions numbered from 1.")
    return flip(case, case.parcels).summarise()


def flip(case: Case, labels: np.ndarray, steps: int = STEPS, orders: int = ORDERS) -> Curves:
    """Flipping curves of a case over regions ``labels``, int [X, Y, Z], 0 for voxels that are never flipped.

    Regions are ranked by mean relevance, sign included: evidence against the explained output ranks last. Step i of n
    flips the fewest regions that make up (i/n)^2 of the volume. Random orders are drawn from the case's seed. Tied
    regions, such as those where a map is zero, follow the first of these orders and then its reverse; ``most`` and
    ``least`` are means of both. A map that is not finite, or for which all regions tie, ranks nothing: NaN.

    The case's memo caches the score of every set of regions, so that ends of curves, random orders, and orders on which
    maps agree are computed once. Only the untouched input is scored each time, to detect a network that has changed.
    """
    assert labels.shape == case.parcels.shape and (labels > 0).any() and orders > 0, (labels.shape, orders)
    _, inverse = np.unique(labels[labels > 0], return_inverse=True)
    region_index = np.full(labels.shape, -1)  # -1 where nothing is ever flipped
    region_index[labels > 0] = inverse
    sizes = np.bincount(inverse)
    fractions = (np.arange(steps + 1) / steps) ** 2
    ranks = _rank(np.bincount(inverse, case.map[labels > 0]) / sizes) if np.isfinite(case.map).all() else np.zeros(1)
    if not ranks.any():
        undefined = np.full((2 + orders, steps + 1), np.nan)
        return Curves(fractions, undefined[0], undefined[1], undefined[2:])
    index = torch.from_numpy(region_index).to(case.x.device)

    def flipped(order: np.ndarray) -> Iterator[np.ndarray]:
        """Which regions are flipped after each step, bool [regions + 1]."""
        cumulative = np.cumsum(sizes[order]) / sizes.sum()
        for fraction in fractions:
            n = int(np.searchsorted(cumulative, fraction - 1e-9)) + 1 if fraction else 0
            regions = np.zeros(len(order) + 1, bool)  # index -1 of voxels outside regions is the last, never flipped
            regions[order[:n]] = True
            yield regions

    def flip_regions(regions: np.ndarray) -> Tensor:
        return torch.where(torch.from_numpy(regions).to(index.device)[index], case.fill.to(case.x), case.x)

    rng = np.random.default_rng(case.seed)
    shuffled = [rng.permutation(len(sizes)) for _ in range(orders)]
    has_ties = ranks.max() + 1 < len(ranks)
    tie_breakers = (shuffled[0], -shuffled[0]) if has_ties else shuffled[:1]
    best = [np.lexsort((tie_breaker, ranks)) for tie_breaker in tie_breakers]
    sets = [regions for order in (*best, *(order[::-1] for order in best), *shuffled) for regions in flipped(order)]
    (start,) = score_all(case.score, [case.x])
    digest, code, captured = _identify(case, labels)
    key = ("flipping", digest, code, *map(_make_hashable, captured), start.tobytes())
    scores, _ = case.memo.setdefault(key, ({sets[0].tobytes(): start}, captured))  # kept alive, so no id is reused
    missing = {key: regions for regions in sets if (key := regions.tobytes()) not in scores}
    if missing:
        scores.update(zip(missing, score_all(case.score, map(flip_regions, missing.values()))))
    curves = np.array([scores[regions.tobytes()] for regions in sets]).reshape(-1, steps + 1)
    most, least, random = np.split(curves, [len(best), 2 * len(best)])
    return Curves(fractions, most.mean(axis=0), least.mean(axis=0), random)


def _rank(means: np.ndarray) -> np.ndarray:
    """Rank of each region, int [regions], from 0 for the most relevant; tied regions share a rank."""
    order = np.argsort(-means, kind="stable")
    falling = means[order]
    size = np.abs(falling)
    is_lower = falling[:-1] - falling[1:] > TIE_TOLERANCE * np.maximum(size[:-1], size[1:])
    ranks = np.empty(len(means), int)
    ranks[order] = np.concatenate([[0], np.cumsum(is_lower)])
    return ranks


def _identify(case: Case, labels: np.ndarray) -> tuple[bytes, CodeType | None, tuple]:
    """Identify scores of flipped inputs: a digest of input, fill and regions, and the code and objects of the score.

    Functions made anew for each map are the same score if they have the same code and captured objects that are the
    same or, if immutable, equal. If the score is not a function, the code is None and the only object the score.
    """
    arrays = (to_array(case.x), to_array(case.fill), labels)
    hasher = sha256(repr([(data.shape, data.dtype) for data in arrays]).encode())
    for data in arrays:
        hasher.update(np.ascontiguousarray(data).data)
    if not isinstance(case.score, FunctionType):
        return hasher.digest(), None, (case.score,)
    captured = (*(cell.cell_contents for cell in case.score.__closure__ or ()), *(case.score.__defaults__ or ()))
    return hasher.digest(), case.score.__code__, captured


def _make_hashable(value: object) -> object:
    try:
        hash(value)
    except TypeError:  # mutable, or without simple equality
        return id(value)
    return type(value), value


def cut_patches(shape: Sequence[int], spacing: Sequence[float] | np.ndarray, size_mm: float = PATCH_MM) -> np.ndarray:
    """Label cubes of ``size_mm`` (at least a voxel) that fill a grid, int [X, Y, Z] from 1; smaller at its end."""
    edges = [max(1, round(size_mm / mm)) for mm in spacing]
    counts = [-(-n // edge) for n, edge in zip(shape, edges)]
    positions = tuple(index // edge for index, edge in zip(np.indices(shape), edges))
    return np.asarray(np.ravel_multi_index(positions, counts)) + 1


def brain_mean(x: Tensor, brain: np.ndarray) -> Tensor:
    """The mean of an input [1, 1, X, Y, Z] within the brain, in all voxels [X, Y, Z]; InputError for an empty brain."""
    if not brain.any():
        raise InputError("brain_mean: the brain is empty, expected at least one voxel.")
    mask = torch.from_numpy(brain).to(x.device)
    return torch.full_like(x[0, 0], float(x[0, 0][mask].double().mean()))


def blur(x: Tensor, spacing: Sequence[float] | np.ndarray, fwhm_mm: float = 40.0) -> Tensor:
    """Blur an input [1, 1, X, Y, Z] with a Gaussian of ``fwhm_mm``, zero beyond the edges; returns [X, Y, Z]."""
    from scipy import ndimage

    sigma = [fwhm_mm / (mm * np.sqrt(8 * np.log(2))) for mm in spacing]
    blurred = ndimage.gaussian_filter(to_array(x[0, 0]), sigma, mode="constant")
    return torch.from_numpy(blurred).to(x)
