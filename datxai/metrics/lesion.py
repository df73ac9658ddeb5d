"""How a map answers to a lesion, from the maps of one head with and without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datxai.errors import InputError
from datxai.metrics.inputs import says_nothing
from datxai.metrics.localisation import point, rank


def follow_lesion(
    lesioned: np.ndarray,
    healthy: np.ndarray,
    lesion: np.ndarray,
    brain: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    effect: float,
    seen: bool,
) -> dict[str, float | None]:
    """Where a map changes, if the network has ``seen`` the lesion, or how much it does there, if it has not.

    Maps [X, Y, Z], float; ``lesion`` and ``brain`` bool; ``effect`` of the lesion on what is explained, of which the
    sign counts: the change has to raise the map where a lesion raises the output, and to lower it where it lowers it.
    ``seen_share``: see `measure_change`; ``seen_rank`` and ``seen_point``: `rank` and `point` of the change.
    ``unseen_density``: see `measure_change`. Maps of which `measure_change` says None have NaN as rank and point.
    """
    change_in_lesion = measure_change(lesioned, healthy, lesion, brain)
    if not seen:
        return {"unseen_density": change_in_lesion["density"]}
    comparable = _are_comparable(lesioned, healthy)
    change = np.sign(effect) * (lesioned - healthy) if comparable else np.zeros(lesion.shape)
    return {
        "seen_share": change_in_lesion["share"],
        "seen_rank": rank(change, lesion),
        "seen_point": point(change, lesion, spacing),
    }


def measure_change(
    lesioned: np.ndarray, healthy: np.ndarray, lesion: np.ndarray, brain: np.ndarray
) -> dict[str, float | None]:
    """How far a map changes within a lesion.

    ``share``: of the brain's absolute change of the map, what lies in the lesion. ``density``: the mean absolute change
    in the lesion over the mean absolute value of the lesioned brain's map, 0 for a lesion that the map does not
    show. Absolute values; arrays [X, Y, Z], the last two bool. None for maps that do not change (``share``), and if the
    lesioned map is constant, zero in the brain (``density``), or either is not finite.

    Raises
    ------
    InputError
        For a lesion without a voxel in the brain.
    """
    lesion = lesion & brain
    if not lesion.any():
        raise InputError("the lesion has no voxel in the brain, expected at least one.")
    if not _are_comparable(lesioned, healthy):
        return {"share": None, "density": None}
    change = np.abs(lesioned.astype(float) - healthy)
    level, total = float(np.abs(lesioned[brain]).mean(dtype=float)), float(change[brain].sum())
    return {
        "share": float(change[lesion].sum()) / total if total else None,
        "density": float(change[lesion].mean()) / level if level else None,
    }


def _are_comparable(lesioned: np.ndarray, healthy: np.ndarray) -> bool:
    return not says_nothing(lesioned) and bool(np.isfinite(healthy).all())
