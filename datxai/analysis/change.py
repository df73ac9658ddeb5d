"""Change of binding ratios between two scans of a person, and whether it exceeds test-retest variability."""

from __future__ import annotations

import math
from collections.abc import Mapping

# Mean absolute difference of two scans of an unchanged person, in per cent of their mean. Striatum: Booij et al. 1998
# (J Nucl Med 39:1879-1884, PMID 9829575): 7.25 % with manually drawn regions, 7.47 % with fixed ones. Parts of the
# striatum: Tsuchida et al. 2004 (doi:10.1007/BF02984583): 11.9 % in controls, 12.2 % in Parkinson's disease.
VARIABILITY = {"striatum": 7.5}
VARIABILITY_OF_PARTS = 12.2
# Normally distributed differences of mean size 1 have the standard deviation sqrt(pi / 2); 95 % are smaller than this.
LIMIT_OF_VARIABILITY = 1.959964 * math.sqrt(math.pi / 2)
SOURCE = (
    "Limits: what 95 % of repeated scans without any change stay within, from the test-retest variability of FP-CIT "
    "SPECT (striatum 7.5 %, Booij et al. 1998, J Nucl Med 39:1879; its parts 12.2 %, Tsuchida et al. 2004, "
    "doi:10.1007/BF02984583)."
)


def limits_of(region: str) -> tuple[float, float]:
    """Limits of the change of an unchanged region (such as ``striatum_left``), down and up, in per cent of the first
    scan. In per cent of the mean of both scans they have the same size."""
    share = LIMIT_OF_VARIABILITY * VARIABILITY.get(region.partition("_")[0], VARIABILITY_OF_PARTS) / 100
    return -200 * share / (2 + share), 200 * share / (2 - share)


def measure_change(
    now: Mapping[str, float | None], before: Mapping[str, float | None], years: float | None
) -> dict[str, dict]:
    """The change of each binding ratio that both scans have.

    Returns by region ``before`` and ``now``; the change in ``percent`` of before, and ``percent_per_year`` if the
    ``years`` between the scans are known; ``limits`` of the percentage (`limits_of`), and whether it ``exceeds`` them.
    The percentage is None if there was no binding before.
    """
    changes = {}
    for region, first in before.items():
        second = now.get(region)
        if first is None or second is None:
            continue
        low, high = limits_of(region)
        percent = 100 * (second - first) / first if first > 0 else None
        changes[region] = {
            "before": first,
            "now": second,
            "percent": percent,
            "percent_per_year": percent / years if percent is not None and years else None,
            "limits": [low, high],
            "exceeds": None if percent is None else not low <= percent <= high,
        }
    return changes
