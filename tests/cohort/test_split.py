"""The split: the paper's Table 1, and the laws that hold for any cohort."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datxai.cohort.split import SETS, Cases, make_table1, split, split_by_column, split_folds
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
    sets = split(Cases.of(subjects, labels, sexes, ages), sizes, candidates=1)
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
    expected = split(Cases.of(*cohort), candidates=3)

    def as_2_0_0(values, axis=None, **asked):
        found = unique(values, axis=axis, **asked)
        return found if axis is None else (found[0], found[1][None])

    monkeypatch.setattr(np, "unique", as_2_0_0)
    assert split(Cases.of(*cohort), candidates=3) == expected


def test_best_of_candidates_by_mean_age():
    cohort = make_cohort({key: n // 8 for key, n in WHOLE.items()})
    best = spread_of_ages(split(Cases.of(*cohort), candidates=40), *cohort[1:])
    draws = [spread_of_ages(split(Cases.of(*cohort), candidates=1, seed=seed), *cohort[1:]) for seed in range(40)]
    assert best < np.percentile(draws, 20)
    spreads = [spread_of_ages(split(Cases.of(*cohort), candidates=n), *cohort[1:]) for n in (1, 5, 25)]
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
    sets = split(Cases.of(subjects, labels, sexes, ages), fractions, candidates=3, seed=seed)
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
    sets = split(Cases.of(subjects, labels, sexes, ages), (0.5, 0.25, 0.25), candidates=2, seed=seed)
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
    sets = split(Cases.of(*columns), candidates=4, seed=seed)
    assert sets == split(Cases.of(*columns), candidates=4, seed=seed)
    shuffled = [[column[i] for i in order] for column in columns]
    assert split(Cases.of(*shuffled), candidates=4, seed=seed) == [sets[i] for i in order]


def test_seeds_differ():
    cohort = make_cohort({(0, "F"): 20, (1, "M"): 20})
    assert split(Cases.of(*cohort), seed=1) != split(Cases.of(*cohort), seed=2)


def test_cohort_without_ages_and_sexes():
    sets = split(Cases.of([f"{i}" for i in range(36)], [0, 1] * 18, [None] * 36, [None] * 36))
    assert Counter(zip(sets, [0, 1] * 18)) == {
        (name, label): n for name, n in zip(SETS, (12, 2, 4)) for label in (0, 1)
    }


@pytest.mark.parametrize("sizes", [(10, 10, 10), (0.5, 0.2, 0.1), (30, 6), (50, -5, -5), (20.5, 9.5, 10)])
def test_sizes_that_do_not_add_up(sizes):
    cohort = make_cohort({(0, "F"): 20, (1, "M"): 20})
    with pytest.raises(InputError, match=r"split\.sizes: .* for 40 cases, expected three numbers"):
        split(Cases.of(*cohort), sizes=sizes)


def test_candidates_to_choose_from():
    with pytest.raises(InputError, match=r"split\.candidates: 0, expected 1 or more"):
        split(Cases.of(*make_cohort({(0, "F"): 20, (1, "M"): 20})), candidates=0)


def test_a_set_needs_both_classes():
    cohort = make_cohort({(0, "F"): 20, (1, "M"): 2})
    with pytest.raises(InputError, match="the validation set would hold no case with label 1"):
        split(Cases.of(*cohort), sizes=(18, 2, 2))
    with pytest.raises(InputError, match="would hold no case with label"):
        split(Cases.of(*make_cohort({(0, "F"): 20})))


@settings(max_examples=20, deadline=None)
@given(counts=cohorts)
def test_table1_against_numpy(counts):
    subjects, labels, sexes, ages = make_cohort(counts)
    assume(len(subjects) > 30)
    ages[0] = None
    sets = split(Cases.of(subjects, labels, sexes, ages), candidates=1)
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


def make_visits(visits, seed=0):
    """Cases of a cohort whose people have these numbers of visits, in turn."""
    rare = len(visits) // 4
    people = make_cohort({(0, "F"): rare, (0, "M"): rare, (1, "F"): rare, (1, "M"): len(visits) - 3 * rare}, seed)
    return Cases.of(*map(list, zip(*(person for person, n in zip(zip(*people), visits) for _ in range(n)))))


@settings(max_examples=20, deadline=None)
@given(
    visits=st.lists(st.integers(1, 3), min_size=60, max_size=90),
    folds=st.integers(2, 6),
    seed=st.integers(0, 2**32),
    repeat=st.integers(0, 3),
)
def test_folds_test_each_case_once_and_keep_subjects_whole(visits, folds, seed, repeat):
    cases = make_visits(visits, seed)
    tested = np.zeros(len(cases.labels), int)
    for fold in range(folds):
        sets = np.array(split_folds(cases, folds, fold, 0.25, candidates=2, seed=seed, repeat=repeat))
        tested += sets == "test"
        for subject in range(len(cases.names)):
            assert len(set(sets[cases.subject == subject])) == 1
        of_fold, rest = sets == "test", sets != "test"
        slack = 4 * 2 * (max(visits) - 1) + 1
        assert abs(of_fold.sum() - len(sets) / folds) <= slack
        assert abs((sets == "validation").sum() - 0.25 * rest.sum()) <= slack
    assert (tested == 1).all()


def test_folds_are_in_proportion():
    cases = Cases.of(*make_cohort(WHOLE))
    for fold in range(5):
        tested = np.array(split_folds(cases, 5, fold, 0.125, candidates=1)) == "test"
        for (label, sex), n in WHOLE.items():
            of_stratum = (cases.labels == label) & (cases.sexes == sex)
            assert abs((tested & of_stratum).sum() - n / 5) <= 1


def test_another_repeat_has_other_folds_and_the_same_one_the_same():
    cases = Cases.of(*make_cohort({key: n // 8 for key, n in WHOLE.items()}))
    first = split_folds(cases, 5, 0, 0.125, repeat=0)
    assert first == split_folds(cases, 5, 0, 0.125, repeat=0)
    assert first != split_folds(cases, 5, 0, 0.125, repeat=1)


def test_more_folds_than_cases_of_a_label():
    cases = Cases.of(*make_cohort({(0, "F"): 20, (1, "M"): 4}))
    with pytest.raises(InputError, match=r"split\.folds: 5, expected 2 to 4, for every fold needs both labels"):
        split_folds(cases, 5, 0, 0.25)


def test_a_column_says_the_sets():
    names, labels, sexes, ages = make_cohort({(0, "F"): 20, (1, "M"): 20})
    values = ["train", "validation", "test", "train"] * 10
    assert split_by_column(Cases.of(names, labels, sexes, ages), values, "set", [], 0.1) == values


def test_one_site_is_left_out():
    cases = Cases.of(*make_cohort({(0, "F"): 40, (1, "M"): 40}))
    sites = np.array(["A", "B", "C", "D"] * 20)
    sets = np.array(split_by_column(cases, sites, "site", ["B"], 0.2))
    assert ((sets == "test") == (sites == "B")).all()
    assert Counter(zip(sets[sites != "B"], cases.labels[sites != "B"])) == {
        ("train", 0): 24, ("train", 1): 24, ("validation", 0): 6, ("validation", 1): 6
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "test", "said"),
    [
        (["train", "validation", "tested"] * 10, [], r"says 'tested' for sub-0002, expected train, validation or test"),
        (["A", "B", "C"] * 10, ["D"], r"split\.test: no case has 'D' in the column 'site', expected any of A, B, C"),
        (["A", "A", "A"] * 10, ["A"], r"every case would be tested"),
        (["train", "train", "test"] * 10, [], r"the validation set would hold no case with label 0 \(0 cases in it"),
    ],
)
def test_columns_that_say_no_sets(values, test, said):
    cases = Cases.of(*make_cohort({(0, "F"): 15, (1, "M"): 15}))
    with pytest.raises(InputError, match=said):
        split_by_column(cases, values, "site", test, 0.2)


def test_a_subject_in_two_sets():
    _, labels, sexes, ages = make_cohort({(0, "F"): 15, (1, "M"): 15})
    cases = Cases.of([f"sub-{i // 2}" for i in range(30)], labels, sexes, ages)
    with pytest.raises(InputError, match="sub-0 would be in two sets, train and validation, by the column 'set'"):
        split_by_column(cases, ["train", "validation", "test"] * 10, "set", [], 0.2)
