"""How a map responds to a lesion, from maps of the same head with and without it."""

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
    """Where a map changes if the network has ``seen`` the lesion, or how much it changes there if it has not.

    Maps [X, Y, Z], float; ``lesion`` and ``brain`` bool. Only the sign of ``effect``, the effect of the lesion on the
    explained output, counts: a lesion that raises the output should raise the map, one that lowers it should lower it.
    ``seen_share`` and ``unseen_density``: see `measure_change`; ``seen_rank`` and ``seen_point``: `rank` and `point` of
    the change. Where `measure_change` returns None, rank and point are NaN.
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
    """How much a map changes within a lesion.

    ``share``: share of the map's absolute change in the brain that lies in the lesion. ``density``: the mean absolute
    change in the lesion over the mean absolute value of the lesioned brain's map, 0 for a lesion that the map does not
    show. Arrays [X, Y, Z], the last two bool. None for maps that do not change (``share``), and if the lesioned map is
    constant, zero in the brain (``density``), or either is not finite.

    Raises
    ------
    InputError
        If the lesion has no voxel in the brain.
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
