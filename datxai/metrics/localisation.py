"""Where the relevance lies: mass, rank and pointing game for anatomical regions or a known lesion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datxai.metrics.inputs import Case, says_nothing

TOLERANCE_MM = 8.0  # of the pointing game: a clinical scan shows positions only to within half its resolution


def relevance_mass(case: Case) -> dict[str, float]:
    """`mass` in every region and in the truth, by name."""
    return {name: mass(case.map, mask) for name, mask in case.places.items()}


def relevance_rank(case: Case) -> dict[str, float]:
    """`rank` in every region and in the truth, by name."""
    return {name: rank(case.map, mask) for name, mask in case.places.items()}


def pointing_game(case: Case) -> dict[str, float]:
    """`point` within `TOLERANCE_MM` of every region and of the truth, by name."""
    return {name: point(case.map, mask, case.spacing) for name, mask in case.places.items()}


def mass(relevance: np.ndarray, mask: np.ndarray) -> float:
    """Share of the positive relevance that lies in ``mask`` (relevance mass accuracy, Arras et al. 2022).

    doi:10.1016/j.inffus.2021.11.008. NaN for an empty mask, or a map that is constant, not finite or nowhere positive.
    """
    if not mask.any() or says_nothing(relevance):
        return float("nan")
    positive = np.maximum(relevance, 0, dtype=float)
    total = positive.sum()
    return float(positive[mask].sum() / total) if total > 0 else float("nan")


def rank(relevance: np.ndarray, mask: np.ndarray) -> float:
    """Share of the K most relevant voxels that lie in ``mask``, which has K voxels.

    Relevance rank accuracy (Arras et al. 2022, doi:10.1016/j.inffus.2021.11.008), sign included. Voxels that tie for
    the last ranks, as those of one parcel do, each count with the probability that a random choice among them
    includes it. NaN for an empty mask, or a map that is constant, which ranks nothing, or not finite.
    """
    k = int(mask.sum())
    if k == 0 or says_nothing(relevance):
        return float("nan")
    threshold = np.partition(relevance, -k, axis=None)[-k]
    above, tied = relevance > threshold, relevance == threshold
    probability = (k - above.sum()) / tied.sum()
    return float((above[mask].sum() + probability * tied[mask].sum()) / k)


def point(
    relevance: np.ndarray, mask: np.ndarray, spacing: Sequence[float] | np.ndarray, within_mm: float = TOLERANCE_MM
) -> float:
    """1 if the most relevant voxel lies ``within_mm`` of a voxel in ``mask``, centre to centre, else 0.

    The pointing game (Zhang et al. 2018, doi:10.1007/s11263-017-1059-x), sign included; of several voxels with the
    highest value, the share that hits. NaN for an empty mask, or a map that is constant, which points nowhere, or not
    finite.
    """
    from scipy import ndimage

    if not mask.any() or says_nothing(relevance):
        return float("nan")
    distance = ndimage.distance_transform_edt(~mask, spacing)
    assert isinstance(distance, np.ndarray)  # no indices were asked for
    return float((distance[relevance == relevance.max()] <= within_mm + 1e-6).mean())
