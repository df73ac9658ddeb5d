"""Training, validation and test sets: at random, by folds or by a column of the table; and the table of ages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from datxai.errors import InputError

SETS = ("train", "validation", "test")
PAPER_FRACTIONS = (2 / 3, 1 / 9, 2 / 9)
FRACTION_TOLERANCE = 1e-3  # how far the sum of user-given fractions may be from 1
TABLE1_COLUMNS = ("set", "label", "sex", "n", "age_mean", "age_sd")


class Cases(NamedTuple):
    """The variables of a split: names of the subjects; for each case the index of its subject, label, sex, and age.

    An unknown sex is "", an unknown age NaN.
    """

    names: np.ndarray
    subject: np.ndarray
    labels: np.ndarray
    sexes: np.ndarray
    ages: np.ndarray

    @classmethod
    def of(
        cls,
        subjects: ArrayLike,
        labels: ArrayLike,
        sexes: Iterable[str | None],
        ages: Iterable[float | None],
    ) -> Cases:
        """Cases from columns of equal length, one entry per case; an unknown sex or age is None."""
        names, subject = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
        years = np.array([np.nan if age is None else age for age in ages], dtype=float)
        return cls(names, subject, np.asarray(labels), np.asarray([sex or "" for sex in sexes]), years)

    def take(self, kept: np.ndarray) -> Cases:
        """A subset of the cases."""
        return Cases.of(self.names[self.subject[kept]], self.labels[kept], self.sexes[kept], self.ages[kept])


def split(cases: Cases, sizes: ArrayLike = PAPER_FRACTIONS, candidates: int = 100, seed: int = 0) -> list[str]:
    """The set ('train', 'validation' or 'test') of every case.

    The split is stratified by label and sex, with unknown sex as a separate stratum: first the labels, then the sexes
    within each label are distributed over the sets in proportion, rounded so that all totals are exact. Of
    ``candidates`` random splits, the one is chosen whose strata differ least in mean age between the sets (Nazari et
    al. 2022, doi:10.1007/s00259-021-05569-9): the criterion is the difference between the highest and the lowest of
    the three mean ages, averaged over the strata, weighted by their numbers of cases. Unknown ages are ignored.

    All cases of a subject are in the same set; a subject belongs to the stratum of its first case. With one case per
    subject the sizes are exact; with up to k cases, a set may miss its share of a stratum by up to 2 (k - 1) cases.
    The split depends on the subjects' names, not on the order of the rows.

    Parameters
    ----------
    sizes : three numbers
        Numbers of cases that add up to the total, or fractions that add up to 1.

    Raises
    ------
    InputError
        If the sizes do not add up, there are no candidates, or a set would lack one of the labels.
    """
    return _name_sets(_divide(cases, _count_sizes(sizes, len(cases.labels)), candidates, (seed,)), cases.labels)


def split_folds(
    cases: Cases, folds: int, fold: int, validation: float, candidates: int = 100, seed: int = 0, repeat: int = 0
) -> list[str]:
    """The set of every case where fold ``fold`` (0, 1, ...) of ``folds`` is tested.

    The folds are stratified, matched by age and made of whole subjects like the sets of `split`, and so is the share
    ``validation`` of the cases that are not tested. All folds of a ``repeat`` come from the same partition of the
    cases, so that each case is tested once.

    Raises `InputError` if there are too few cases for the number of folds.
    """
    fewest = min((cases.labels == label).sum() for label in (0, 1))
    if not 2 <= folds <= fewest:
        raise InputError(
            f"split.folds: {folds}, expected 2 to {fewest}, for every fold needs both labels ({fewest} cases have the "
            "rarer one)."
        )
    totals = _round_table(np.array([len(cases.labels)]), np.full(folds, len(cases.labels) / folds))[0]
    tested = _divide(cases, totals, candidates, (seed, repeat)) == fold
    return _name_sets(_hold_out(cases, tested, validation, candidates, (seed, repeat, fold)), cases.labels)


def split_by_column(
    cases: Cases,
    values: Sequence[str],
    column: str,
    test: Sequence[str],
    validation: float,
    candidates: int = 100,
    seed: int = 0,
) -> list[str]:
    """The set of every case according to the ``values`` of a ``column`` of the table.

    Without ``test``, the column holds the sets themselves: train, validation, test. Otherwise the cases with one of
    these values (of a site, for example) are tested, and the share ``validation`` of the others, chosen as in `split`,
    is the validation set.

    Raises `InputError` for a value that is not a set or that no case has, a subject in two sets, or a set without one
    of the labels.
    """
    column_values = np.asarray(values, dtype=str)
    listed = ", ".join(sorted(set(column_values)))
    if not test:
        for subject, value in zip(cases.names[cases.subject], column_values.tolist()):
            if value not in SETS:
                raise InputError(
                    f"split.column: the column {column!r} says {value!r} for {subject}, expected train, validation or "
                    f"test; correct it, or name the values that are tested with split.test=[...] ({listed})."
                )
        drawn = np.array([SETS.index(value) for value in column_values])
    else:
        for value in test:
            if value not in column_values:
                raise InputError(
                    f"split.test: no case has {value!r} in the column {column!r}, expected any of {listed}."
                )
        drawn = _hold_out(cases, np.isin(column_values, list(test)), validation, candidates, (seed,))
    for subject in np.unique(cases.subject):
        sets = sorted({SETS[number] for number in drawn[cases.subject == subject]})
        if len(sets) > 1:
            raise InputError(
                f"split.column: {cases.names[subject]} would be in two sets, {' and '.join(sets)}, by the column "
                f"{column!r}; expected all scans of a person in one."
            )
    return _name_sets(drawn, cases.labels)


def _divide(cases: Cases, totals: np.ndarray, candidates: int, seed: tuple[int, ...]) -> np.ndarray:
    """The set (0, 1, ...) of every case, ``totals`` cases in each: the best of the candidates, see `split`."""
    if candidates < 1:
        raise InputError(f"split.candidates: {candidates}, expected 1 or more random splits to choose from.")
    names, first, subject = np.unique(cases.subject, return_index=True, return_inverse=True)
    weights = np.bincount(subject)  # cases per subject
    strata, stratum = np.unique(
        np.stack([cases.labels[first].astype(str), cases.sexes[first]]), axis=1, return_inverse=True
    )
    stratum = stratum.ravel()  # NumPy 2.0.0 keeps an axis
    counts = np.bincount(stratum, weights).astype(int)
    quotas = _share_out(strata, counts, totals)

    best, smallest = np.empty(0, int), np.inf
    for candidate in range(candidates):
        rng = np.random.default_rng([*seed, candidate])
        drawn = np.empty(len(names), dtype=int)
        for number, quota in enumerate(quotas):
            members = np.flatnonzero(stratum == number)
            drawn[members] = _draw(weights[members], quota, rng)
        difference = _age_difference(drawn[subject], stratum[subject], cases.ages, counts, len(totals))
        if difference < smallest:
            best, smallest = drawn[subject], difference
    return best


def _hold_out(
    cases: Cases, tested: np.ndarray, validation: float, candidates: int, seed: tuple[int, ...]
) -> np.ndarray:
    """The set of every case, given which are tested."""
    drawn = np.full(len(tested), SETS.index("test"))
    untested = np.flatnonzero(~tested)
    if not len(untested):
        raise InputError("split: every case would be tested, expected some to be left for training.")
    totals = _round_table(np.array([len(untested)]), len(untested) * np.array([1 - validation, validation]))[0]
    drawn[untested] = _divide(cases.take(untested), totals, candidates, seed)
    return drawn


def _name_sets(drawn: np.ndarray, labels: np.ndarray) -> list[str]:
    """The sets by name; `InputError` if one of them lacks a label."""
    for number, name in enumerate(SETS):
        for label in (0, 1):
            if not (labels[drawn == number] == label).any():
                raise InputError(
                    f"split: the {name} set would hold no case with label {label} ({int((drawn == number).sum())} "
                    f"cases in it, {int((labels == label).sum())} of {len(labels)} have that label); "
                    "enlarge it or add cases."
                )
    return [SETS[number] for number in drawn]


def make_table1(
    sets: Sequence[str], labels: Sequence[int], sexes: Sequence[str | None], ages: Sequence[float | None]
) -> list[dict]:
    """Rows (`TABLE1_COLUMNS`) of age in the whole sample and per set, by label and sex: the paper's Table 1.

    Means and sample standard deviations (divisor n - 1) are over the known ages, None if there are too few.
    """
    cases = list(zip(sets, labels, sexes, ages))
    groups = sorted({(label, sex or "") for _, label, sex, _ in cases})
    rows = []
    for name in ("whole", *SETS):
        for label, sex in groups:
            ages_in_group = [
                case[3]
                for case in cases
                if name in ("whole", case[0]) and (case[1], case[2] or "") == (label, sex)
            ]
            known_ages = [age for age in ages_in_group if age is not None]
            rows.append({
                "set": name,
                "label": label,
                "sex": sex or None,
                "n": len(ages_in_group),
                "age_mean": float(np.mean(known_ages)) if known_ages else None,
                "age_sd": float(np.std(known_ages, ddof=1)) if len(known_ages) > 1 else None,
            })  # fmt: skip
    return rows


def _count_sizes(sizes: ArrayLike, n: int) -> np.ndarray:
    """Number of cases per set, adding up to ``n``."""
    sizes = np.asarray(sizes, dtype=float)
    if sizes.shape == (len(SETS),) and (sizes >= 0).all():
        if sizes.sum() == n and (sizes == np.rint(sizes)).all():
            return sizes.astype(int)
        if abs(sizes.sum() - 1.0) <= FRACTION_TOLERANCE:
            return _round_table(np.array([n]), sizes / sizes.sum() * n)[0]
    raise InputError(
        f"split.sizes: {sizes.tolist()} for {n} cases, expected three numbers of cases (train, validation, "
        f"test) that add up to {n}, or three fractions that add up to 1."
    )


def _share_out(strata: np.ndarray, counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Number of cases per stratum and set: labels are divided among the sets, then sexes within these numbers."""
    labels, label = np.unique(strata[0], return_inverse=True)
    per_label = _round_table(np.bincount(label, counts).astype(int), totals)
    quotas = np.zeros((len(counts), len(totals)), dtype=int)
    for number in range(len(labels)):
        quotas[label == number] = _round_table(counts[label == number], per_label[number])
    return quotas


def _round_table(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The integer table with these margins that is nearest to the proportional one, within 1 in every cell.

    ``columns`` may be fractional if there is one row: this is the largest remainder method.
    """
    from scipy.optimize import linprog

    exact = np.outer(rows, columns) / max(rows.sum(), 1)
    floor = np.floor(exact + 1e-9)
    if len(rows) == 1:
        up = np.zeros_like(floor)
        up[0, np.argsort(floor[0] - exact[0], kind="stable")[: int(rows[0] - floor.sum())]] = 1
    else:  # Which cells to round up is a transportation problem, which has whole-number solutions.
        n_rows, n_columns = exact.shape
        margins = np.vstack(
            [np.kron(np.eye(n_rows), np.ones(n_columns)), np.kron(np.ones(n_rows), np.eye(n_columns))]
        )
        missing = np.concatenate([rows - floor.sum(axis=1), columns - floor.sum(axis=0)])
        up = np.rint(linprog((floor - exact).ravel(), A_eq=margins, b_eq=missing, bounds=(0, 1)).x)
    table = (floor + up.reshape(floor.shape)).astype(int)
    assert (table.sum(axis=1) == rows).all()
    return table


def _draw(weights: np.ndarray, quota: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random set of every subject of a stratum; ``weights`` are numbers of cases, ``quota`` cases per set.

    Subjects with several cases come first; a set is drawn with probability proportional to its remaining places.
    Subjects with one case fill the rest, so that every arrangement is equally likely if all have one.
    """
    drawn = np.empty(len(weights), dtype=int)
    remaining = quota.copy()
    order = rng.permutation(len(weights))
    for member in order[np.argsort(-weights[order], kind="stable")]:
        if weights[member] == 1:
            break
        odds = np.cumsum(np.maximum(remaining, 0))
        drawn[member] = np.searchsorted(odds, rng.integers(odds[-1]), side="right")
        remaining[drawn[member]] -= weights[member]
    single = weights == 1
    sets = rng.permutation(np.repeat(np.arange(len(quota)), np.maximum(remaining, 0)))
    drawn[single] = sets[: single.sum()]
    return drawn


def _age_difference(
    sets: np.ndarray, stratum: np.ndarray, ages: np.ndarray, counts: np.ndarray, n_sets: int
) -> float:
    """Range of the sets' mean ages in years, averaged over strata weighted by ``counts``."""
    has_age = ~np.isnan(ages)
    cell = (stratum * n_sets + sets)[has_age]
    number = np.bincount(cell, minlength=len(counts) * n_sets).reshape(-1, n_sets)
    total = np.bincount(cell, ages[has_age], minlength=number.size).reshape(number.shape)
    mean = np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
    spread = np.fmax.reduce(mean, axis=1) - np.fmin.reduce(mean, axis=1)
    return float(np.nan_to_num(spread) @ counts / counts.sum())
