"""What a healthy person of some age is expected to have: linear regression on age of the normal cases of a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

COVERAGE = 0.95  # of the prediction interval
MIN_CASES = 10  # with fewer, no range is told


def expect_ratios(normals: Sequence[Mapping], names: Sequence[str], age: float | None) -> dict[str, dict | None]:
    """The range of each of ``names`` at an age in years, see `fit_normal_range`.

    ``normals`` hold ``age`` (years or None) and a value of each name.
    """
    ages = [case["age"] for case in normals]
    return {name: fit_normal_range([case[name] for case in normals], ages, age) for name in names}


def describe_range(
    expected: Mapping[str, Mapping | None], age: float | None, ages: Sequence[float | None] = ()
) -> str:
    """What says where the ranges of `expect_ratios` come from; empty where there is none.

    ``ages`` are those of the normal cases: that an age lies beyond them is said too.
    """
    cases = {normal_range["n"] for normal_range in expected.values() if normal_range}
    if not cases:
        return ""
    place = "regardless of age, which is not known" if age is None else f"at {age:g} years"
    known = [one for one in ages if one is not None]
    beyond = ""
    if age is not None and known and not min(known) <= age <= max(known):
        beyond = f" Their ages are {min(known):.0f} to {max(known):.0f} years, so that this is an extrapolation."
    return f"95 % prediction interval of {max(cases)} normal cases of the run {place}.{beyond}"


def fit_normal_range(
    values: ArrayLike, ages: Sequence[float | None], age: float | None = None
) -> dict[str, float] | None:
    """The prediction interval for one more normal case.

    Ordinary least squares of ``values`` on age, residuals normal and of one standard deviation (Altman and Gardner
    1988, doi:10.1136/bmj.296.6631.1238): fit ± t s sqrt(1 + 1/n + (age - mean)² / Σ(ages - mean)²). Without an age,
    or where all cases have one age, mean and standard deviation of the values take the place of the regression.

    Parameters
    ----------
    values : one per normal case
    ages : of the same cases, years; None: not known, and left out where ``age`` is given
    age : years

    Returns
    -------
    dict with ``low, median, high`` in the unit of ``values``, and ``n``, the cases it rests on; None if these are
    fewer than `MIN_CASES`.
    """
    from scipy.special import stdtrit

    years, values = np.array(ages, float), np.asarray(values, float)  # None becomes NaN
    if age is not None:
        years, values = years[np.isfinite(years)], values[np.isfinite(years)]
    n = len(values)
    if n < MIN_CASES:
        return None
    deviations = years - years.mean() if age is not None else np.zeros(n)
    spread = float(deviations @ deviations)
    slope, offset, freedom = 0.0, 0.0, n - 1
    if age is not None and spread > 0:
        slope, offset, freedom = float(deviations @ values) / spread, age - years.mean(), n - 2
    median = values.mean() + slope * offset
    residuals = values - values.mean() - slope * deviations
    sd = np.sqrt(residuals @ residuals / freedom)
    leverage = 1 / n + (offset**2 / spread if spread > 0 else 0.0)
    reach = stdtrit(freedom, (1 + COVERAGE) / 2) * sd * np.sqrt(1 + leverage)
    return {"low": float(median - reach), "median": float(median), "high": float(median + reach), "n": n}
