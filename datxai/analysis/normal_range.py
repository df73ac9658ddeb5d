"""What a healthy person of some age is expected to have: linear regression on age of the normal cases of a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

COVERAGE = 0.95  # of the prediction interval
MIN_CASES = 10  # with fewer, no range is told


def fit_ranges(normals: Sequence[Mapping], names: Sequence[str]) -> dict[str, dict]:
    """What the ranges of ``names`` rest on, numbers that name nobody: see `fit_line`.

    ``normals`` hold ``age`` (years or None) and a value of each name.
    """
    ages = [case["age"] for case in normals]
    return {name: fit_line([case[name] for case in normals], ages) for name in names}


def expect_ratios(ranges: Mapping[str, Mapping], age: float | None) -> dict[str, dict | None]:
    """The range of each measure at an age in years, from `fit_ranges`; see `fit_normal_range`."""
    return {name: expect(line, age) for name, line in ranges.items()}


def describe_range(
    expected: Mapping[str, Mapping | None], age: float | None, ranges: Mapping[str, Mapping] | None = None
) -> str:
    """What says where the ranges of `expect_ratios` come from; empty where there is none.

    ``ranges`` are those of `fit_ranges`: that an age lies beyond those of the normal cases is said too.
    """
    cases = {normal_range["n"] for normal_range in expected.values() if normal_range}
    if not cases:
        return ""
    place = "regardless of age, which is not known" if age is None else f"at {age:g} years"
    known, beyond = next((line["ages"] for line in (ranges or {}).values() if line["ages"]), None), ""
    if age is not None and known and not known[0] <= age <= known[1]:
        beyond = f" Their ages are {known[0]} to {known[1]} years, so that this is an extrapolation."
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
    return expect(fit_line(values, ages), age)


def fit_line(values: ArrayLike, ages: Sequence[float | None]) -> dict:
    """What `fit_normal_range` rests on, in numbers without any single case.

    Returns a dict with ``with_age`` and ``without``, regression on age and plain mean, each ``n, mean, slope, centre``
    (mean age, years), ``spread`` (sum of squared deviations of age) and ``sd`` of the residuals, or None for fewer than
    `MIN_CASES`; and ``ages``, the lowest and the highest in whole years.
    """
    years, values = np.array(ages, float), np.asarray(values, float)  # None becomes NaN
    known = np.isfinite(years)
    limits = [int(np.floor(years[known].min())), int(np.ceil(years[known].max()))] if known.any() else None
    return {
        "with_age": _fit(values[known], years[known]),
        "without": _fit(values, np.zeros(len(values))),
        "ages": limits,
    }


def _fit(values: np.ndarray, years: np.ndarray) -> dict | None:
    n = len(values)
    if n < MIN_CASES:
        return None
    deviations = years - years.mean()
    spread = float(deviations @ deviations)
    slope, freedom = (float(deviations @ values) / spread, n - 2) if spread > 0 else (0.0, n - 1)
    residuals = values - values.mean() - slope * deviations
    sd = float(np.sqrt(residuals @ residuals / freedom))
    mean, centre = float(values.mean()), float(years.mean())
    return {"n": n, "mean": mean, "slope": slope, "centre": centre, "spread": spread, "sd": sd}


def expect(line: Mapping, age: float | None) -> dict[str, float] | None:
    """The range at an age in years from what `fit_line` found, see `fit_normal_range`."""
    from scipy.special import stdtrit

    fit = line["without" if age is None else "with_age"]
    if fit is None:
        return None
    n, spread = fit["n"], fit["spread"]
    offset, freedom = (0.0, n - 1) if age is None or spread == 0 else (age - fit["centre"], n - 2)
    median = fit["mean"] + fit["slope"] * offset
    leverage = 1 / n + (offset**2 / spread if spread > 0 else 0.0)
    reach = float(stdtrit(freedom, (1 + COVERAGE) / 2)) * fit["sd"] * np.sqrt(1 + leverage)
    return {"low": float(median - reach), "median": median, "high": float(median + reach), "n": n}
