"""Two cohorts side by side, computed a second way: by hand, by closed forms, by every pair of cases."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from datxai.analysis.calibration import measure_reliability, probability, score
from datxai.analysis.classification import fit_cart, follow_tree, summarise
from datxai.analysis.cohorts import (
    compare_auc,
    compare_calibration,
    compare_calls,
    compare_means,
    compare_proportions,
    compare_shares,
    describe_calibration,
    describe_calls,
    describe_share,
)

ROUNDING = 1e-9


def wilson(hits, n):
    z = stats.norm.ppf(0.975)
    middle, reach = hits + z**2 / 2, z * math.sqrt(hits * (n - hits) / n + z**2 / 4)
    return (middle - reach) / (n + z**2), (middle + reach) / (n + z**2)


@pytest.mark.parametrize(
    "counts", [(56, 70, 48, 80), (9, 10, 3, 10), (10, 10, 20, 20), (0, 10, 5, 9), (53, 53, 19, 20)]
)
def test_the_difference_of_proportions_is_newcombes(counts):
    hits_a, n_a, hits_b, n_b = counts
    found = compare_proportions(*counts)
    a, b, (la, ua), (lb, ub) = hits_a / n_a, hits_b / n_b, wilson(hits_a, n_a), wilson(hits_b, n_b)
    low = b - a - math.sqrt((b - lb) ** 2 + (ua - a) ** 2)
    high = b - a + math.sqrt((ub - b) ** 2 + (a - la) ** 2)
    assert found["difference"] == pytest.approx(b - a, abs=ROUNDING)
    assert found["difference_ci95"] == pytest.approx([low, high], abs=ROUNDING)
    # Fisher: all tables of the same margins that are no more likely than this one
    hits = hits_a + hits_b
    chances = stats.hypergeom(n_a + n_b, hits, n_a).pmf(range(max(0, hits - n_b), min(hits, n_a) + 1))
    this = stats.hypergeom(n_a + n_b, hits, n_a).pmf(hits_a)
    assert found["p"] == pytest.approx(chances[chances <= this * (1 + 1e-7)].sum(), abs=1e-8)


def test_newcombes_own_example():
    # Newcombe 1998, table II: 56/70 and 48/80, method 10: 0.0524 to 0.3339
    found = compare_proportions(48, 80, 56, 70)
    assert [round(limit, 4) for limit in found["difference_ci95"]] == [0.0524, 0.3339]


def compare_curves(a, b):
    """`compare_auc` of labels and scores of two sides."""
    found = [describe_calls(labels, labels, scores) for labels, scores in (a, b)]
    sides = [(one["auc"], summarise(y, y, s)["auc_ci95"], len(y)) for one, (y, s) in zip(found, (a, b))]
    return compare_auc(*sides, *(one["auc_variance"] for one in found))


def delong(positive, negative):
    """AUC and DeLong's variance by every pair."""
    wins = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in negative] for x in positive])
    auc, m, n = wins.mean(), len(positive), len(negative)
    return auc, ((wins.mean(1) - auc) ** 2).sum() / (m - 1) / m + ((wins.mean(0) - auc) ** 2).sum() / (n - 1) / n


@pytest.mark.parametrize("seed", range(4))
def test_the_difference_of_areas_is_delongs(seed):
    rng = np.random.default_rng(seed)
    sides = []
    for n, shift in ((30, 1.0), (17, 0.4)):
        labels = np.arange(n) % 2
        sides.append((labels, np.round(rng.normal(shift * labels), 1)))  # with ties
    found = compare_curves(*sides)
    (auc_a, var_a), (auc_b, var_b) = (delong(scores[labels == 1], scores[labels == 0]) for labels, scores in sides)
    z = (auc_b - auc_a) / math.sqrt(var_a + var_b)
    assert found["difference"] == pytest.approx(auc_b - auc_a, abs=ROUNDING)
    assert found["p"] == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=ROUNDING)
    reach = stats.norm.ppf(0.975) * math.sqrt(var_a + var_b)
    assert found["difference_ci95"] == pytest.approx([auc_b - auc_a - reach, auc_b - auc_a + reach], abs=ROUNDING)


def test_a_perfect_curve_has_no_variance_and_no_test():
    a, b = ([0, 0, 1, 1, 0, 1], [0.1, 0.6, 0.4, 0.9, 0.2, 0.8]), ([0, 0, 1, 1], [1, 2, 3, 4])
    found = compare_curves(a, b)
    of_a, of_b = (summarise(labels, labels, scores) for labels, scores in (a, b))
    (low, _), (_, high) = of_b["auc_ci95"], of_a["auc_ci95"]
    assert found["p"] is None
    assert found["difference_ci95"][0] == pytest.approx(
        1 - of_a["auc"] - math.hypot(1 - low, high - of_a["auc"]), abs=ROUNDING
    )
    assert compare_curves(a, ([1, 1], [1, 2])) == {"difference": None, "difference_ci95": None, "p": None}


def compare_samples(a, b):
    """`compare_means` of values of two sides."""
    spread = [float(np.var(values, ddof=1)) if len(values) > 1 else 0.0 for values in (a, b)]
    return compare_means(*(
        {"n": len(values), "mean": float(np.mean(values)), "variance": v} for values, v in zip((a, b), spread)
    ))  # fmt: skip


def test_the_difference_of_means_is_welchs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 12), rng.normal(0.5, 3, 20)
    va, vb = a.var(ddof=1) / 12, b.var(ddof=1) / 20
    freedom = (va + vb) ** 2 / (va**2 / 11 + vb**2 / 19)
    difference, error = b.mean() - a.mean(), math.sqrt(va + vb)
    found = compare_samples(a, b)
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert found["p"] == pytest.approx(expected.pvalue, abs=ROUNDING)
    assert found["difference_ci95"] == pytest.approx([*expected.confidence_interval(0.95)], abs=ROUNDING)
    reach = stats.t.ppf(0.975, freedom) * error
    assert found["difference_ci95"] == pytest.approx([difference - reach, difference + reach], abs=ROUNDING)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(difference) / error, freedom), abs=ROUNDING)
    assert compare_samples([1.0], [2.0, 3.0])["p"] is None
    assert compare_samples([1.0, 1.0], [1.0, 1.0])["p"] is None


def draw(n, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    margins = rng.normal(3 * labels - 1.5, 2)
    return {"labels": labels, "predicted": (margins > 0).astype(int), "scores": margins, "margins": margins}


def calls(side):
    return describe_calls(side["labels"], side["predicted"], side["scores"])


def calibration(side, temperature):
    return describe_calibration(side["labels"], side["margins"], temperature)


def test_rows_of_calls_are_the_summaries_of_both_sides():
    a, b = draw(40, 0), draw(23, 1)
    rows = {row["measure"]: row for row in compare_calls(calls(a), calls(b))}
    assert [*rows] == ["accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc"]
    for side, cases in (("internal", a), ("external", b)):
        summary = summarise(cases["labels"], cases["predicted"], cases["scores"])
        for measure, row in rows.items():
            assert (row[side], [row[f"{side}_low"], row[f"{side}_high"]]) == (
                summary[measure],
                summary[f"{measure}_ci95"],
            )
        assert rows["sensitivity"][f"{side}_n"] == cases["labels"].sum()
        assert rows["specificity"][f"{side}_n"] == (1 - cases["labels"]).sum()
    assert {row["test"] for row in rows.values()} == {"Fisher", "DeLong", None}
    hits = [int((cases["predicted"] == cases["labels"]).sum()) for cases in (a, b)]
    assert rows["accuracy"]["p"] == compare_proportions(hits[0], 40, hits[1], 23)["p"]
    assert compare_shares("right", describe_share([True, False]), describe_share([True] * 3)) == {
        "measure": "right", "internal": 0.5, "internal_low": pytest.approx(wilson(1, 2)[0]),
        "internal_high": pytest.approx(wilson(1, 2)[1]),
        "internal_n": 2, "external": 1.0, "external_low": pytest.approx(wilson(3, 3)[0]), "external_high": 1.0,
        "external_n": 3, **_flat(compare_proportions(1, 2, 3, 3)), "test": "Fisher",
    }  # fmt: skip


def _flat(compared):
    low, high = compared["difference_ci95"]
    return {"difference": compared["difference"], "difference_low": low, "difference_high": high, "p": compared["p"]}


def test_a_side_without_cases_or_of_one_class_leaves_blanks():
    none = {"labels": [], "predicted": [], "scores": [], "margins": []}
    normal = {"labels": [0, 0], "predicted": [0, 1], "scores": [0.1, 0.9], "margins": [-1.0, 1.0]}
    for one in (none, normal):
        rows = {
            row["measure"]: row
            for row in [
                *compare_calls(calls(draw(20, 0)), calls(one)),
                *compare_calibration(calibration(draw(20, 0), 2), calibration(one, 2)),
            ]
        }
        assert rows["sensitivity"]["external"] is rows["sensitivity"]["p"] is rows["auc"]["difference"] is None
        assert rows["specificity"]["external"] == (None if one is none else 0.5)
        assert rows["sensitivity"]["internal"] is not None


def test_a_side_that_is_not_known_leaves_the_other():
    """As of a bundle that holds no numbers of its test; and these numbers are plain ones, that a file may hold."""
    b = draw(30, 1)
    told = json.loads(json.dumps([calls(b), calibration(b, 2), describe_share([True, False])]))
    for alone, both in (
        (compare_calls(None, told[0]), compare_calls(calls(draw(20, 0)), calls(b))),
        (compare_calibration(None, told[1]), compare_calibration(calibration(draw(20, 0), 2), calibration(b, 2))),
        ([compare_shares("x", None, told[2])], [compare_shares("x", describe_share([]), told[2])]),
    ):
        for row, expected in zip(alone, both, strict=True):
            for name, value in row.items():
                is_known = name == "measure" or name.startswith("external")
                assert value == (expected[name] if is_known else None), name


@pytest.mark.parametrize("temperature", [None, 2.5])
def test_calibration_of_both_sides(temperature):
    a, b = draw(40, 2), draw(31, 3)
    sides = [calibration(side, temperature) for side in (a, b)]
    rows = {row["measure"]: row for row in compare_calibration(*sides)}
    for name, divisor in (("raw", 1.0), ("scaled", temperature)):
        if divisor is None:
            assert not any(measure.endswith("scaled") for measure in rows)
            continue
        for side, cases in (("internal", a), ("external", b)):
            margins, labels = cases["margins"] / divisor, cases["labels"]
            expected = score(margins, labels)
            assert rows[f"brier_{name}"][side] == pytest.approx(expected["brier"], abs=ROUNDING)
            assert rows[f"log_loss_{name}"][side] == pytest.approx(expected["nll"], abs=ROUNDING)
            assert rows[f"ece_{name}"][side] == measure_reliability(probability(margins), labels)["ece"]
        errors = [(1 / (1 + np.exp(-cases["margins"] / divisor)) - cases["labels"]) ** 2 for cases in (a, b)]
        assert rows[f"brier_{name}"]["p"] == pytest.approx(
            stats.ttest_ind(*errors, equal_var=False).pvalue, abs=ROUNDING
        )


def test_a_tree_is_followed_as_scikit_learn_does():
    rng = np.random.default_rng(4)
    features, labels = rng.normal(size=(80, 7)), np.arange(80) % 2
    features[:, 0] += labels
    tree, others = fit_cart(features, labels), rng.normal(size=(300, 7))
    predicted, scores = follow_tree(tree.nodes, others)
    assert (predicted == tree.predict(others)).all()
    assert scores == pytest.approx(tree.score(others), abs=1e-12)
    assert len({*itertools.chain(scores.tolist())}) > 2
