"""The split: the paper's Table 1, and the laws that hold for any cohort."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datxai.cohort.split import SETS, make_table1, split
from datxai.errors import InputError

WHOLE = {(0, "F"): 296, (0, "M"): 380, (1, "F"): 246, (1, "M"): 374}
TABLE1 = {  # Nazari et al. 2022, Table 1: numbers of cases
    "train": {(0, "F"): 197, (0, "M"): 254, (1, "F"): 164, (1, "M"): 249},
    "validation": {(0, "F"): 33, (0, "M"): 42, (1, "F"): 27, (1, "M"): 42},
    "test": {(0, "F"): 66, (0, "M"): 84, (1, "F"): 55, (1, "M"): 83},
}


def make_cohort(counts, seed=0):
    """Columns subjects, labels, sexes, ages of a cohort with these numbers per (label, sex)."""
    rng = np.random.default_rng(seed)
    labels, sexes = zip(*(key for key, n in counts.items() for _ in range(n)))
    ages = rng.normal(67, 11, len(labels)).tolist()
    return [f"sub-{i:04d}" for i in range(len(labels))], list(labels), list(sexes), ages


@pytest.mark.parametrize("sizes", [(864, 144, 288), (0.66667, 0.11111, 0.22222)])
def test_numbers_of_cases_are_those_of_the_paper(sizes):
    subjects, labels, sexes, ages = make_cohort(WHOLE)
    sets = split(subjects, labels, sexes, ages, sizes, candidates=1)
    assert Counter(zip(sets, zip(labels, sexes))) == {
        (name, key): n for name, numbers in TABLE1.items() for key, n in numbers.items()
    }


def spread_of_ages(sets, labels, sexes, ages):
    """The criterion, case by case: range of mean ages over the sets, averaged over strata by size."""
    groups = defaultdict(lambda: defaultdict(list))
    for name, label, sex, age in zip(sets, labels, sexes, ages):
        groups[label, sex][name].append(age)
    ranges, weights = [], []
    for of_set in groups.values():
        means = [sum(values) / len(values) for values in of_set.values()]
        ranges.append(max(means) - min(means))
        weights.append(sum(map(len, of_set.values())))
    return float(np.average(ranges, weights=weights))


def test_numpy_2_0_0_keeps_an_axis_of_what_it_inverts(monkeypatch):
    cohort, unique = make_cohort({key: n // 8 for key, n in WHOLE.items()}), np.unique
    expected = split(*cohort, candidates=3)

    def as_2_0_0(values, axis=None, **asked):
        found = unique(values, axis=axis, **asked)
        return found if axis is None else (found[0], found[1][None])

    monkeypatch.setattr(np, "unique", as_2_0_0)
    assert split(*cohort, candidates=3) == expected


def test_best_of_candidates_by_mean_age():
    cohort = make_cohort({key: n // 8 for key, n in WHOLE.items()})
    best = spread_of_ages(split(*cohort, candidates=40), *cohort[1:])
    draws = [spread_of_ages(split(*cohort, candidates=1, seed=seed), *cohort[1:]) for seed in range(40)]
    assert best < np.percentile(draws, 20)
    spreads = [spread_of_ages(split(*cohort, candidates=n), *cohort[1:]) for n in (1, 5, 25)]
    assert spreads == sorted(spreads, reverse=True)  # more candidates contain the fewer


cohorts = st.fixed_dictionaries(
    {(label, sex): st.integers(0 if sex is None else 6, 25) for label in (0, 1) for sex in ("F", "M", None)}
)


@settings(max_examples=40, deadline=None)
@given(counts=cohorts, seed=st.integers(0, 2**32))
def test_partition_in_proportion(counts, seed):
    subjects, labels, sexes, ages = make_cohort(counts, seed)
    ages[::3] = [None] * len(ages[::3])
    fractions = np.array([0.6, 0.2, 0.2])
    sets = split(subjects, labels, sexes, ages, fractions, candidates=3, seed=seed)
    for number, name in enumerate(SETS):
        total = sets.count(name)
        assert abs(total - fractions[number] * len(labels)) < 1
        for label in (0, 1):
            of_label = sum(s == name and x == label for s, x in zip(sets, labels))
            assert abs(of_label - labels.count(label) * total / len(labels)) < 1
            for sex in ("F", "M", None):
                got = sum((s, x, y) == (name, label, sex) for s, x, y in zip(sets, labels, sexes))
                assert abs(got - counts[label, sex] * of_label / labels.count(label)) < 1


@settings(max_examples=30, deadline=None)
@given(visits=st.lists(st.integers(1, 4), min_size=40, max_size=60), seed=st.integers(0, 2**32))
def test_no_subject_in_two_sets(visits, seed):
    people = make_cohort({(0, "F"): 10, (0, "M"): 10, (1, "F"): 10, (1, "M"): len(visits) - 30}, seed)
    cases = [person for person, n in zip(zip(*people), visits) for _ in range(n)]
    subjects, labels, sexes, ages = (list(column) for column in zip(*cases))
    sets = split(subjects, labels, sexes, ages, (0.5, 0.25, 0.25), candidates=2, seed=seed)
    homes = defaultdict(set)
    for subject, name in zip(subjects, sets):
        homes[subject].add(name)
    assert all(len(names) == 1 for names in homes.values())
    for name, fraction in zip(SETS, (0.5, 0.25, 0.25)):
        assert abs(sets.count(name) - fraction * len(cases)) <= 4 * 2 * (max(visits) - 1) + 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_split_follows_names_not_rows(seed, data):
    columns = make_cohort({(0, "F"): 12, (0, "M"): 9, (1, "F"): 10, (1, "M"): 11}, seed)
    order = data.draw(st.permutations(range(len(columns[0]))))
    sets = split(*columns, candidates=4, seed=seed)
    assert sets == split(*columns, candidates=4, seed=seed)
    shuffled = [[column[i] for i in order] for column in columns]
    assert split(*shuffled, candidates=4, seed=seed) == [sets[i] for i in order]


def test_seeds_differ():
    cohort = make_cohort({(0, "F"): 20, (1, "M"): 20})
    assert split(*cohort, seed=1) != split(*cohort, seed=2)


def test_cohort_without_ages_and_sexes():
    sets = split([f"{i}" for i in range(36)], [0, 1] * 18, [None] * 36, [None] * 36)
    assert Counter(zip(sets, [0, 1] * 18)) == {
        (name, label): n for name, n in zip(SETS, (12, 2, 4)) for label in (0, 1)
    }


@pytest.mark.parametrize("sizes", [(10, 10, 10), (0.5, 0.2, 0.1), (30, 6), (50, -5, -5), (20.5, 9.5, 10)])
def test_sizes_that_do_not_add_up(sizes):
    cohort = make_cohort({(0, "F"): 20, (1, "M"): 20})
    with pytest.raises(InputError, match=r"split\.sizes: .* for 40 cases, expected three numbers"):
        split(*cohort, sizes=sizes)


def test_candidates_to_choose_from():
    with pytest.raises(InputError, match=r"split\.candidates: 0, expected 1 or more"):
        split(*make_cohort({(0, "F"): 20, (1, "M"): 20}), candidates=0)


def test_a_set_needs_both_classes():
    cohort = make_cohort({(0, "F"): 20, (1, "M"): 2})
    with pytest.raises(InputError, match="the validation set would hold no case with label 1"):
        split(*cohort, sizes=(18, 2, 2))
    with pytest.raises(InputError, match="would hold no case with label"):
        split(*make_cohort({(0, "F"): 20}))


@settings(max_examples=20, deadline=None)
@given(counts=cohorts)
def test_table1_against_numpy(counts):
    subjects, labels, sexes, ages = make_cohort(counts)
    assume(len(subjects) > 30)
    ages[0] = None
    sets = split(subjects, labels, sexes, ages, candidates=1)
    rows = make_table1(sets, labels, sexes, ages)
    assert sum(row["n"] for row in rows if row["set"] == "whole") == len(labels)
    assert sum(row["n"] for row in rows) == 2 * len(labels)
    for row in rows:
        chosen = np.array([
            np.nan if age is None else age
            for name, label, sex, age in zip(sets, labels, sexes, ages)
            if row["set"] in ("whole", name) and (label, sex) == (row["label"], row["sex"])
        ])  # fmt: skip
        assert row["n"] == len(chosen)
        if np.isfinite(chosen).any():
            assert row["age_mean"] == pytest.approx(np.nanmean(chosen))
        else:
            assert row["age_mean"] is None
        if np.isfinite(chosen).sum() > 1:
            assert row["age_sd"] == pytest.approx(np.nanstd(chosen, ddof=1))
        else:
            assert row["age_sd"] is None
