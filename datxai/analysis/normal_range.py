"""Normal ranges by age and sex: linear regression over a cohort's normal cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COVERAGE = 0.95  # of the prediction interval
MIN_CASES = 10  # in all and of each sex; with fewer there is no regression
PIVOT_AGE = 65.0  # years; subtracted from ages, so that the normal equations are well conditioned
SEXES = {"M": 0.0, "F": 1.0}  # values of the sex term
# Added to a measure before its logarithm is taken. A binding ratio becomes the uptake ratio, which is positive even
# without binding; other ratios stay as they are. Both vary by factors across people: their residuals are skewed to the
# right, those of the logarithm hardly. None: no logarithm.
SHIFTS = {"ratio": 0.0, "asymmetry": None}
SHIFT_OF_BINDING = 1.0
MIN_PROBABILITY = 1e-300  # so that every deviate is finite
DERIVED = ("caudate_putamen_ratio_left", "caudate_putamen_ratio_right", "putamen_asymmetry")


def derive_ratios(sbr: Mapping[str, float]) -> dict[str, float | None]:
    """Compute `DERIVED` from the binding ratios of caudate and putamen on both sides.

    The asymmetry is 200 (right - left) / (right + left), in percent, positive if the left is lower. With its sign it is
    normally distributed about a mean near zero; its absolute value, bounded by zero, is not, and no root or logarithm
    makes it so. A ratio is None without binding.
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
    """Ordinary least squares over ``n`` cases; residuals are normal with standard deviation ``sd``.

    ``terms`` are some of ``age`` and ``sex``. ``coefficients`` are those of the constant and of each term; ``inverse``
    holds the rows of (X'X)^-1, where X is the design matrix.
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
        """Regress ``values`` (n,) on ``terms`` (n,), without the cases that lack one of them. None if too few cases are
        left, or if they do not determine the coefficients."""
        complete = np.isfinite([values, *terms.values()]).all(axis=0)
        values, columns = values[complete], [column[complete] for column in terms.values()]
        counts = [np.count_nonzero(terms["sex"][complete] == sex) for sex in SEXES.values()] if "sex" in terms else []
        design = np.column_stack([np.ones(len(values)), *columns])
        if min([len(values), *counts]) < MIN_CASES or np.linalg.matrix_rank(design) < design.shape[1]:
            return None
        inverse = np.linalg.inv(design.T @ design)
        coefficients = inverse @ (design.T @ values)
        residuals = values - design @ coefficients
        n, rank = design.shape
        sd = float(np.sqrt(residuals @ residuals / (n - rank)))
        return cls(tuple(terms), n, tuple(coefficients.tolist()), tuple(map(tuple, inverse.tolist())), sd)


@dataclass(frozen=True)
class Expected:
    """Distribution of a measure in a new normal case: t with ``freedom`` degrees of freedom, ``centre`` and ``scale``,
    from a regression on ``terms`` over ``n`` cases. With a ``shift`` it is that of log(measure + shift)."""

    centre: float
    scale: float
    freedom: int
    n: int
    terms: tuple[str, ...]
    shift: float | None

    @property
    def median(self) -> float:
        return self._back_transform(self.centre)

    @property
    def limits(self) -> tuple[float, float]:
        """The prediction interval."""
        from scipy.special import stdtrit

        half_width = float(stdtrit(self.freedom, (1 + COVERAGE) / 2)) * self.scale
        return self._back_transform(self.centre - half_width), self._back_transform(self.centre + half_width)

    def _back_transform(self, x: float) -> float:
        """The measure at a point of the distribution; inverse of `transform`."""
        return x if self.shift is None else float(np.exp(x)) - self.shift

    def score(self, value: float) -> tuple[float, float]:
        """The z score of a value (the standard normal deviate of its probability) and its percentile.

        In new normal cases, \\|z\\| > 1.96 in 5 % however few cases the range rests on; the distance in standard
        deviations lacks this property.
        """
        from scipy.special import ndtri, stdtr

        transformed = float(transform(np.array(value), self.shift))
        offset = -np.inf if np.isnan(transformed) else transformed - self.centre
        # the scale is zero if all normal cases have the same value
        distance = offset / self.scale if self.scale else np.inf * np.sign(offset) if offset else 0.0
        tail = max(float(stdtr(self.freedom, -abs(distance))), MIN_PROBABILITY)  # the smaller tail, which is accurate
        z = float(-ndtri(tail) * np.sign(distance))
        return z + 0.0, 100 * (tail if distance < 0 else 1 - tail)

    def describe(self, value: float | None) -> dict:
        """``low, median, high`` of the interval, ``n``, ``terms``, and ``z`` and ``percentile`` of a value."""
        low, high = self.limits
        interval = {"low": low, "median": self.median, "high": high, "n": self.n, "terms": list(self.terms)}
        z, percentile = (None, None) if value is None else self.score(value)
        return {**interval, "z": z, "percentile": percentile}


@dataclass(frozen=True)
class NormalRange:
    """Normal range of one measure, by age and sex: a regression for each combination of known terms.

    The prediction interval is that of the general linear model: x'b ± t s sqrt(1 + x' (X'X)^-1 x) (Altman and Gardner
    1988, doi:10.1136/bmj.296.6631.1238, for age alone). The range holds statistics of the cohort and no single case;
    `pack` and `unpack` convert it to plain data and back. ``ages`` are the lowest and the highest, in whole years.
    """

    regressions: tuple[Regression, ...]  # those with most terms first
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
        """Fit to the value, age in years and sex (F, M, else unknown) of each normal case; None: unknown. With a
        ``shift``, log(value + shift) is fitted, and values that have no logarithm are left out."""
        numbers = transform(np.array(list(values), float), shift)  # None becomes NaN
        years = np.array(ages, float) - PIVOT_AGE
        female = np.array([SEXES.get(sex or "", np.nan) for sex in sexes])
        columns = {"age": years, "sex": female}
        regressions = (
            Regression.fit(numbers, {name: columns[name] for name in terms})
            for terms in (("age", "sex"), ("age",), ("sex",), ())
        )
        used = years[np.isfinite(years) & np.isfinite(numbers)] + PIVOT_AGE
        limits = (int(np.floor(used.min())), int(np.ceil(used.max()))) if len(used) else None
        return cls(tuple(filter(None, regressions)), limits, shift)

    def expect(self, age: float | None = None, sex: str | None = None) -> Expected | None:
        """The distribution expected at an age in years and a sex (F or M), either None if unknown; None if there were
        too few normal cases."""
        person = {"age": None if age is None else age - PIVOT_AGE, "sex": SEXES.get(sex or "")}
        for regression in self.regressions:
            terms = [person[name] for name in regression.terms]
            if None not in terms:
                point = np.array([1.0, *terms], float)
                inverse = np.array(regression.inverse)
                scale = regression.sd * np.sqrt(1 + point @ inverse @ point)
                centre = float(point @ regression.coefficients)
                return Expected(centre, float(scale), regression.freedom, regression.n, regression.terms, self.shift)
        return None

    def trace(self, age: float | None, sex: str | None) -> dict | None:
        """Curves ``age, low, median, high`` of the interval for a sex, over the ages of the normal cases and as far as
        ``age``. ``sex`` in the result is None if it is no term. None if there is no regression on age."""
        sample = self.expect(PIVOT_AGE, sex)
        if sample is None or self.ages is None or "age" not in sample.terms:
            return None
        shown = [*self.ages, *([] if age is None else [age])]
        ages = np.linspace(min(shown), max(shown), 50)
        expected = [self.expect(years, sex) for years in ages.tolist()]
        limits = np.array([(*expectation.limits, expectation.median) for expectation in expected if expectation])
        low, high, median = limits.T
        return {"age": ages, "low": low, "median": median, "high": high, "sex": sex if "sex" in sample.terms else None}

    def pack(self) -> dict:
        """Plain, JSON-serialisable data."""
        rows = [
            {
                "terms": list(fit.terms), "n": fit.n, "coefficients": list(fit.coefficients),
                "inverse": [list(row) for row in fit.inverse], "sd": fit.sd,
            }
            for fit in self.regressions
        ]  # fmt: skip
        return {"regressions": rows, "ages": None if self.ages is None else list(self.ages), "shift": self.shift}

    @classmethod
    def unpack(cls, data: Mapping) -> NormalRange:
        """Restore what `pack` returned."""
        regressions = (
            Regression(
                tuple(row["terms"]), row["n"], tuple(row["coefficients"]), tuple(map(tuple, row["inverse"])), row["sd"]
            )
            for row in data["regressions"]
        )
        return cls(tuple(regressions), data["ages"] and (data["ages"][0], data["ages"][1]), data["shift"])


def transform(values: np.ndarray, shift: float | None) -> np.ndarray:
    """log(values + shift), NaN where undefined; the values themselves without a shift."""
    if shift is None:
        return values
    return np.log(values + shift, out=np.full(values.shape, np.nan), where=values > -shift)


def shift_of(name: str) -> float | None:
    """The shift of a measure (see `SHIFTS`)."""
    return next((shift for part, shift in SHIFTS.items() if part in name), SHIFT_OF_BINDING)


def fit_ranges(normals: Sequence[Mapping]) -> dict[str, NormalRange]:
    """Fit the range of each measure in rows of normal cases, which also hold ``age`` (years), ``sex`` (F or M; both
    None if unknown) and ``subject``. A measure may be missing in some rows."""
    names = dict.fromkeys(name for case in normals for name in case if name not in ("subject", "age", "sex"))
    ages, sexes = [case["age"] for case in normals], [case["sex"] for case in normals]
    return {
        name: NormalRange.fit([case.get(name) for case in normals], ages, sexes, shift_of(name)) for name in names
    }


def judge_measures(
    ranges: Mapping[str, NormalRange], measures: Mapping[str, float | None], age: float | None, sex: str | None
) -> dict[str, dict | None]:
    """The range of each measure for a person and the position of the measure in it (`Expected.describe`); None if no
    range is known."""
    judged = {}
    for name, value in measures.items():
        expected = ranges[name].expect(age, sex) if name in ranges else None
        judged[name] = expected and expected.describe(value)
    return judged


def describe_range(
    ranges: Mapping[str, NormalRange], judged: Mapping[str, Mapping | None], age: float | None, sex: str | None
) -> str:
    """A sentence on the origin of the ranges of `judge_measures`, with a warning if the age lies beyond those of the
    normal cases; empty if there is no range."""
    first = next(filter(None, judged.values()), None)
    if first is None:
        return ""
    person = {"F": "woman", "M": "man"}[sex or ""] if "sex" in first["terms"] else "person"
    years = f"of {age:g} years" if "age" in first["terms"] else "of any age"
    ages = [measure.ages for measure in ranges.values() if measure.ages]
    warning = ""
    if age is not None and ages:
        low, high = min(low for low, _ in ages), max(high for _, high in ages)
        if not low <= age <= high:
            warning = f" Their ages are {low} to {high} years, so that this is an extrapolation."
    return f"95 % prediction interval of {first['n']} normal cases of the run, for a {person} {years}.{warning}"
