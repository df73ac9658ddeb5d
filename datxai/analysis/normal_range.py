"""What a healthy person of some age and sex is expected to have: linear regression over a cohort's normal cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COVERAGE = 0.95  # of the prediction interval
MIN_CASES = 10  # with fewer, or with fewer of a sex, there is no regression
PIVOT_AGE = 65.0  # years; from which ages count, so that the normal equations are well posed
SEXES = {"M": 0.0, "F": 1.0}  # the term of sex
# What the logarithm is taken of is a measure and this: of binding ratios it is the uptake ratio, which is above zero
# where nothing binds; of other ratios they themselves. Across people both vary by factors: their residuals lean to the
# right, those of the logarithm hardly. None: the measure is taken as it is.
SHIFTS = {"ratio": 0.0, "asymmetry": None}
SHIFT_OF_BINDING = 1.0
LEAST = 1e-300  # of a probability, so that every deviate is finite
DERIVED = ("caudate_putamen_ratio_left", "caudate_putamen_ratio_right", "putamen_asymmetry")


def derive_ratios(sbr: Mapping[str, float]) -> dict[str, float | None]:
    """`DERIVED` from the binding ratios of caudate and putamen of both sides.

    The asymmetry is 200 (right - left) / (right + left), in percent: positive where the left is lower. With its sign it
    varies normally about a mean near zero. Its size alone does not, and no root or logarithm makes it: a size ends at
    zero. Where nothing binds there is no ratio: None.
    """
    left, right = sbr["putamen_left"], sbr["putamen_right"]
    ratios = {
        f"caudate_putamen_ratio_{side}": sbr[f"caudate_{side}"] / putamen
        if min(putamen, sbr[f"caudate_{side}"]) > 0
        else None
        for side, putamen in (("left", left), ("right", right))
    }
    return {**ratios, "putamen_asymmetry": 200 * (right - left) / (right + left) if right + left > 0 else None}


@dataclass(frozen=True)
class Regression:
    """Ordinary least squares over ``n`` cases, residuals normal and of one standard deviation ``sd``.

    ``terms`` are some of ``age`` and ``sex``; ``coefficients`` are those of a constant and of each term, ``inverse`` is
    (X'X)^-1 of the design matrix X, row by row.
    """

    terms: tuple[str, ...]
    n: int
    coefficients: tuple[float, ...]
    inverse: tuple[tuple[float, ...], ...]
    sd: float

    @property
    def freedom(self) -> int:
        return self.n - len(self.coefficients)

    @classmethod
    def fit(cls, values: np.ndarray, terms: Mapping[str, np.ndarray]) -> Regression | None:
        """The regression of ``values`` (n,) on ``terms`` (n,); cases without one are left out. None if too few are
        left, or if they do not determine it."""
        known = np.isfinite([values, *terms.values()]).all(axis=0)
        values, columns = values[known], [column[known] for column in terms.values()]
        sexes = [np.count_nonzero(terms["sex"][known] == value) for value in SEXES.values()] if "sex" in terms else []
        design = np.column_stack([np.ones(len(values)), *columns])
        if min([len(values), *sexes]) < MIN_CASES or np.linalg.matrix_rank(design) < design.shape[1]:
            return None
        inverse = np.linalg.inv(design.T @ design)
        coefficients = inverse @ (design.T @ values)
        residuals = values - design @ coefficients
        n, rank = design.shape
        sd = float(np.sqrt(residuals @ residuals / (n - rank)))
        return cls(tuple(terms), n, tuple(coefficients.tolist()), tuple(map(tuple, inverse.tolist())), sd)


@dataclass(frozen=True)
class Expected:
    """What one more normal case is expected to have: a t distribution of ``freedom`` about ``centre``, wider by
    ``scale``, from ``n`` cases and the regression on ``terms``; of the logarithm of the measure and ``shift`` where
    there is such."""

    centre: float
    scale: float
    freedom: int
    n: int
    terms: tuple[str, ...]
    shift: float | None

    @property
    def median(self) -> float:
        return self._measure(self.centre)

    @property
    def limits(self) -> tuple[float, float]:
        """The prediction interval."""
        from scipy.special import stdtrit

        reach = float(stdtrit(self.freedom, (1 + COVERAGE) / 2)) * self.scale
        return self._measure(self.centre - reach), self._measure(self.centre + reach)

    def _measure(self, place: float) -> float:
        """The measure that lies at a place of the distribution."""
        return place if self.shift is None else float(np.exp(place)) - self.shift

    def score(self, value: float) -> tuple[float, float]:
        """z, the standard normal deviate of where a value stands, and its percentile.

        Of normal cases to come, \\|z\\| > 1.96 in 5 % however few cases the range rests on, which the distance in
        standard deviations would not hold.
        """
        from scipy.special import ndtri, stdtr

        place = float(transform(np.array(value), self.shift))
        off = -np.inf if np.isnan(place) else place - self.centre
        distance = off / self.scale if self.scale else np.inf * np.sign(off) if off else 0.0  # all have one value
        tail = max(float(stdtr(self.freedom, -abs(distance))), LEAST)  # of the nearer side: of the other 1 is left
        z = float(-ndtri(tail) * np.sign(distance))
        return z + 0.0, 100 * (tail if distance < 0 else 1 - tail)

    def describe(self, value: float | None) -> dict:
        """``low, median, high`` of the interval, ``n``, ``terms``; and of a value ``z`` and ``percentile``."""
        low, high = self.limits
        told = {"low": low, "median": self.median, "high": high, "n": self.n, "terms": list(self.terms)}
        z, percentile = (None, None) if value is None else self.score(value)
        return {**told, "z": z, "percentile": percentile}


@dataclass(frozen=True)
class NormalRange:
    """What is expected of one measure, by age and sex: a regression for each of what may be known of a person.

    The prediction interval is that of the general linear model: x'b ± t s sqrt(1 + x' (X'X)^-1 x) (Altman and Gardner
    1988, doi:10.1136/bmj.296.6631.1238, for age alone). It holds numbers of the cohort, and no single case: `pack` and
    `unpack` take it to plain data and back. ``ages`` are the lowest and the highest, in whole years.
    """

    regressions: tuple[Regression, ...]  # those of most terms first
    ages: tuple[int, int] | None = None
    shift: float | None = None

    @classmethod
    def fit(
        cls,
        values: Sequence[float | None] | np.ndarray,
        ages: Sequence[float | None],
        sexes: Sequence[str | None],
        shift: float | None = None,
    ) -> NormalRange:
        """From one value, age in years and sex (F, M, else not known) for each normal case; None: not known. With a
        ``shift`` the logarithm of value and shift is fitted, a value that has none being left out."""
        numbers = transform(np.array(list(values), float), shift)  # None becomes NaN
        years = np.array(ages, float) - PIVOT_AGE
        female = np.array([SEXES.get(sex or "", np.nan) for sex in sexes])
        known = {"age": years, "sex": female}
        found = (
            Regression.fit(numbers, {name: known[name] for name in terms})
            for terms in (("age", "sex"), ("age",), ("sex",), ())
        )
        seen = years[np.isfinite(years) & np.isfinite(numbers)] + PIVOT_AGE
        limits = (int(np.floor(seen.min())), int(np.ceil(seen.max()))) if len(seen) else None
        return cls(tuple(filter(None, found)), limits, shift)

    def expect(self, age: float | None = None, sex: str | None = None) -> Expected | None:
        """What is expected of a person of an age in years and a sex (F or M), as far as they are known; None where
        there were too few normal cases."""
        given = {"age": None if age is None else age - PIVOT_AGE, "sex": SEXES.get(sex or "")}
        for regression in self.regressions:
            terms = [given[name] for name in regression.terms]
            if None not in terms:
                point = np.array([1.0, *terms], float)
                inverse = np.array(regression.inverse)
                scale = regression.sd * np.sqrt(1 + point @ inverse @ point)
                centre = float(point @ regression.coefficients)
                return Expected(centre, float(scale), regression.freedom, regression.n, regression.terms, self.shift)
        return None

    def trace(self, age: float | None, sex: str | None) -> dict | None:
        """The interval by age for a sex, as curves ``age, low, median, high`` over the ages of the normal cases, and on
        to ``age``; ``sex`` is None where it counts for nothing. None where there is no regression on age."""
        sample = self.expect(PIVOT_AGE, sex)
        if sample is None or self.ages is None or "age" not in sample.terms:
            return None
        shown = [*self.ages, *([] if age is None else [age])]
        ages = np.linspace(min(shown), max(shown), 50)
        told = [self.expect(one, sex) for one in ages.tolist()]
        limits = np.array([(*one.limits, one.median) for one in told if one])
        low, high, median = limits.T
        return {"age": ages, "low": low, "median": median, "high": high, "sex": sex if "sex" in sample.terms else None}

    def pack(self) -> dict:
        """Plain data, as JSON holds it."""
        rows = [
            {
                "terms": list(one.terms), "n": one.n, "coefficients": list(one.coefficients),
                "inverse": [list(row) for row in one.inverse], "sd": one.sd,
            }
            for one in self.regressions
        ]  # fmt: skip
        return {"regressions": rows, "ages": None if self.ages is None else list(self.ages), "shift": self.shift}

    @classmethod
    def unpack(cls, data: Mapping) -> NormalRange:
        """From what `pack` gave."""
        regressions = (
            Regression(
                tuple(row["terms"]), row["n"], tuple(row["coefficients"]), tuple(map(tuple, row["inverse"])), row["sd"]
            )
            for row in data["regressions"]
        )
        return cls(tuple(regressions), data["ages"] and (data["ages"][0], data["ages"][1]), data["shift"])


def transform(values: np.ndarray, shift: float | None) -> np.ndarray:
    """The logarithm of values and shift, NaN where there is none; the values themselves without a shift."""
    if shift is None:
        return values
    return np.log(values + shift, out=np.full(values.shape, np.nan), where=values > -shift)


def shift_of(name: str) -> float | None:
    """The shift of a measure: see `SHIFTS`."""
    return next((shift for part, shift in SHIFTS.items() if part in name), SHIFT_OF_BINDING)


def fit_ranges(normals: Sequence[Mapping]) -> dict[str, NormalRange]:
    """The range of each measure that normal cases hold beside ``age`` (years), ``sex`` (F or M; both None where not
    known) and ``subject``; a measure that some of them lack is None there."""
    names = dict.fromkeys(name for case in normals for name in case if name not in ("subject", "age", "sex"))
    ages, sexes = [case["age"] for case in normals], [case["sex"] for case in normals]
    return {
        name: NormalRange.fit([case.get(name) for case in normals], ages, sexes, shift_of(name)) for name in names
    }


def judge_measures(
    ranges: Mapping[str, NormalRange], measures: Mapping[str, float | None], age: float | None, sex: str | None
) -> dict[str, dict | None]:
    """What is expected of a person in each measure, and where the measure stands: see `Expected.describe`; None where
    no range is known."""
    judged = {}
    for name, value in measures.items():
        expected = ranges[name].expect(age, sex) if name in ranges else None
        judged[name] = expected and expected.describe(value)
    return judged


def describe_range(
    ranges: Mapping[str, NormalRange], judged: Mapping[str, Mapping | None], age: float | None, sex: str | None
) -> str:
    """What says where the ranges of `judge_measures` come from; empty where there is none. That an age lies beyond
    those of the normal cases is said too."""
    told = next(filter(None, judged.values()), None)
    if told is None:
        return ""
    who = {"F": "woman", "M": "man"}[sex or ""] if "sex" in told["terms"] else "person"
    when = f"of {age:g} years" if "age" in told["terms"] else "of any age"
    known = [one.ages for one in ranges.values() if one.ages]
    beyond = ""
    if age is not None and known:
        low, high = min(low for low, _ in known), max(high for _, high in known)
        if not low <= age <= high:
            beyond = f" Their ages are {low} to {high} years, so that this is an extrapolation."
    return f"95 % prediction interval of {told['n']} normal cases of the run, for a {who} {when}.{beyond}"
