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

import numpy as np
import torch
from torch import Tensor

from datxai.metrics.case import Case, score_all

PATCH_MM = 16.0  # edge of a patch: a little more than the resolution of a clinical scan
STEPS = 10  # at the shares (1/10)^2, (2/10)^2, ... 1 of the volume: the decision turns within the first few percent
ORDERS = 3  # random ones


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores as regions are flipped; index 0 is the untouched input, the last that with all regions flipped.

    ``shares`` [steps + 1] of the regions' volume that is flipped at least, ``most`` and ``least`` [steps + 1] the most
    and the least relevant first, ``random`` [orders, steps + 1]. Float64, in units of the score.
    """

    shares: np.ndarray
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
    """Flip the parcels of the atlas; what belongs to none is never flipped. See `Curves.summarise`."""
    return flip(case, case.parcels).summarise()


def flip(case: Case, labels: np.ndarray, steps: int = STEPS, orders: int = ORDERS) -> Curves:
    """Flipping curves of a case over regions ``labels``, int [X, Y, Z], 0 for what is never flipped.

    A region ranks by its mean relevance, sign included: what speaks against the explained output ranks last. Step i
    of n flips as few regions as make up (i/n)^2 of the volume. Random orders are drawn from the case's seed. The score
    of every set of regions is kept in the case's memo: ends of curves, random orders, and orders on which maps agree,
    are computed once.
    """
    assert labels.shape == case.parcels.shape and labels.any(), labels.shape
    _, place = np.unique(labels[labels > 0], return_inverse=True)
    number = np.full(labels.shape, -1)  # of the region in each voxel
    number[labels > 0] = place
    sizes = np.bincount(place)
    means = np.bincount(place, case.map[labels > 0]) / sizes
    shares = (np.arange(steps + 1) / steps) ** 2
    where = torch.from_numpy(number).to(case.x.device)

    def flipped(order: np.ndarray) -> Iterator[np.ndarray]:
        """Which regions are flipped after every step, bool [regions]."""
        filled = np.cumsum(sizes[order]) / sizes.sum()
        for share in shares:
            n = int(np.searchsorted(filled, share - 1e-9)) + 1 if share else 0
            chosen = np.zeros(len(order) + 1, bool)  # what is in no region has number -1: the last, never flipped
            chosen[order[:n]] = True
            yield chosen

    def without(chosen: np.ndarray) -> Tensor:
        return torch.where(torch.from_numpy(chosen).to(where.device)[where], case.fill.to(case.x), case.x)

    rng, best = np.random.default_rng(case.seed), np.argsort(-means, kind="stable")
    sets = [
        chosen
        for order in (best, best[::-1], *(rng.permutation(len(sizes)) for _ in range(orders)))
        for chosen in flipped(order)
    ]
    scores = case.memo.setdefault(("flipping", labels.tobytes()), {})
    unknown = {key: chosen for chosen in sets if (key := chosen.tobytes()) not in scores}
    if unknown:
        scores.update(zip(unknown, score_all(case.score, map(without, unknown.values()))))
    curves = np.array([scores[chosen.tobytes()] for chosen in sets]).reshape(2 + orders, steps + 1)
    return Curves(shares, curves[0], curves[1], curves[2:])


def cut_patches(shape: Sequence[int], spacing: Sequence[float], size_mm: float = PATCH_MM) -> np.ndarray:
    """Labels, int [X, Y, Z] from 1, of cubes of ``size_mm`` (at least a voxel) that fill a grid; smaller at its end."""
    edges = [max(1, round(size_mm / mm)) for mm in spacing]
    counts = [-(-n // edge) for n, edge in zip(shape, edges)]
    return np.ravel_multi_index(tuple(place // edge for place, edge in zip(np.indices(shape), edges)), counts) + 1


def brain_mean(x: Tensor, brain: np.ndarray) -> Tensor:
    """The mean of an input [1, 1, X, Y, Z] within the brain, everywhere [X, Y, Z]."""
    mask = torch.from_numpy(brain).to(x.device)
    return torch.full_like(x[0, 0], float(x[0, 0][mask].double().mean()))


def blur(x: Tensor, spacing: Sequence[float], fwhm_mm: float = 40.0) -> Tensor:
    """An input [1, 1, X, Y, Z] blurred by a Gaussian of ``fwhm_mm``, zero beyond its edges; [X, Y, Z]."""
    from scipy import ndimage

    sigma = [fwhm_mm / (mm * np.sqrt(8 * np.log(2))) for mm in spacing]
    blurred = ndimage.gaussian_filter(x[0, 0].detach().cpu().double().numpy(), sigma, mode="constant")
    return torch.from_numpy(blurred).to(x)
