import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datxai.analysis.classification import (
    FEATURES,
    choose_cutoff,
    fit_cart,
    summarise,
    tabulate_features,
    wilson_interval,
)
from datxai.errors import InputError

ROUNDING = 1e-12
ITERATION = 1e-9  # of the numerical inversion of the AUC's interval
LABELS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=60)


def cases(tn, fp, fn, tp):
    return [0] * (tn + fp) + [1] * (fn + tp), [0] * tn + [1] * fp + [0] * fn + [1] * tp


def test_figures_of_the_paper():
    result = summarise(*cases(tn=148, fp=2, fn=10, tp=128))
    assert [result[name] for name in ("n", "tn", "fp", "fn", "tp")] == [288, 148, 2, 10, 128]
    printed = {"accuracy": 95.8, "sensitivity": 92.8, "specificity": 98.7, "ppv": 98.5, "npv": 93.7}
    assert {name: round(100 * result[name], 1) for name in printed} == printed
    expected_margin = 1.96 * (276 / 288 * 12 / 288 / 288) ** 0.5
    assert result["accuracy_margin"] == pytest.approx(expected_margin, rel=ROUNDING)


def test_margin_of_the_paper_for_an_accuracy_of_090_is_003():
    labels, predicted = cases(tn=90, fp=10, fn=10, tp=90)
    assert round(summarise(labels, predicted)["accuracy_margin"] * (200 / 288) ** 0.5, 2) == 0.03


@pytest.mark.filterwarnings("ignore")  # scikit-learn's, where a class is missing
@settings(deadline=None, max_examples=50)  # the first call imports scikit-learn
@given(LABELS)
def test_agrees_with_scikit_learn(rows):
    from sklearn import metrics

    labels, predicted, scores = map(list, zip(*rows))
    result = summarise(labels, predicted, scores)
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted), abs=ROUNDING)
    oracle = {
        "sensitivity": (1 in labels, metrics.recall_score, 1),
        "specificity": (0 in labels, metrics.recall_score, 0),
        "ppv": (1 in predicted, metrics.precision_score, 1),
        "npv": (0 in predicted, metrics.precision_score, 0),
    }
    for name, (defined, score, positive) in oracle.items():
        if defined:
            expected = score(labels, predicted, pos_label=positive, zero_division=0)
            assert result[name] == pytest.approx(expected, abs=ROUNDING)
        else:
            assert result[name] is None
            assert result[f"{name}_ci95"] is None
    if len(set(labels)) == 2:
        expected = metrics.balanced_accuracy_score(labels, predicted)
        assert result["balanced_accuracy"] == pytest.approx(expected, abs=ROUNDING)
        assert result["auc"] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=ROUNDING)
    else:
        assert result["balanced_accuracy"] is result["auc"] is result["auc_ci95"] is None


@given(LABELS)
def test_intervals_hold_their_estimate_and_stay_within_0_and_1(rows):
    result = summarise(*map(list, zip(*rows)))
    for name in [key.removesuffix("_ci95") for key in result if key.endswith("_ci95")]:
        if result[name] is not None:
            low, high = result[f"{name}_ci95"]
            assert -ROUNDING <= low <= result[name] <= high <= 1 + ROUNDING


def test_no_case_leaves_everything_undefined():
    result = summarise([], [], [])
    assert result["n"] == 0
    assert all(result[name] is None for name in result if name not in ("n", "tn", "fp", "fn", "tp"))


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (1, 10), (5, 10), (276, 288), (288, 288)])
def test_wilson_limits_solve_their_equation(hits, total):
    """A limit p is where the observed share is 1.96 standard errors of p away."""
    for limit in wilson_interval(hits, total):
        excess = (hits / total - limit) ** 2 - 1.959963984540054**2 * limit * (1 - limit) / total
        assert excess == pytest.approx(0, abs=ROUNDING)


def test_wilson_interval_as_published():
    """Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3."""
    published = {(81, 263): [0.2553, 0.3662], (0, 20): [0, 0.1611], (1, 29): [0.0061, 0.1718]}
    for (hits, total), expected in published.items():
        assert [round(limit, 4) for limit in wilson_interval(hits, total)] == expected


def test_auc_of_one_pair_has_the_wilson_interval_of_one_trial():
    """With one case per class the variance of Hanley and McNeil is that of a single Bernoulli trial."""
    result = summarise([0, 1], [0, 1], [0.0, 1.0])
    assert result["auc_ci95"] == pytest.approx(wilson_interval(1, 1), abs=ITERATION)


def test_auc_interval_covers_the_true_area():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    area, runs = 0.9, 400  # two exponential distributions with rates 1 and r: area r / (1 + r)
    covered = 0
    for _ in range(runs):
        scores = rng.exponential(np.where(labels == 1, area / (1 - area), 1.0))
        low, high = summarise(labels, labels, scores)["auc_ci95"]
        covered += low <= area <= high
    assert 0.92 <= covered / runs <= 0.98


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 1)), min_size=2, max_size=40))
def test_cutoff_has_the_largest_youden_index(rows):
    values, labels = (np.array(column) for column in zip(*rows))
    if len(set(labels)) < 2 or len(set(values)) < 2:
        with pytest.raises(InputError):
            choose_cutoff(values, labels)
        return

    def youden(cutoff):
        result = summarise(labels, (values < cutoff).astype(int))
        return result["sensitivity"] + result["specificity"] - 1

    everywhere = (np.unique(values)[1:] + np.unique(values)[:-1]) / 2
    cutoff = choose_cutoff(values, labels)
    assert cutoff in everywhere
    assert youden(cutoff) == pytest.approx(max(map(youden, everywhere)), abs=ROUNDING)


def test_cutoff_lies_in_the_middle_of_the_gap_between_separate_classes():
    assert choose_cutoff([0.4, 0.6, 1.0, 1.3], [1, 1, 0, 0]) == pytest.approx(0.8, abs=ROUNDING)


def test_training_values_must_be_numbers():
    with pytest.raises(InputError, match="missing or infinite"):
        choose_cutoff([0.5, np.nan, 1.0], [1, 1, 0])


def test_features_of_a_case():
    row = {"putamen_left": 1.5, "putamen_right": 0.5, "caudate_left": 2.0, "caudate_right": 1.0}
    features = dict(zip(FEATURES, tabulate_features([row])[0]))
    assert features == pytest.approx(
        {
            "putamen_ipsilateral": 0.5, "putamen_contralateral": 1.5, "caudate_ipsilateral": 1.0,
            "caudate_contralateral": 2.0, "putamen_asymmetry": 100.0, "caudate_asymmetry": 200 / 3,
            "caudate_putamen_ratio": 2.0,
        },
        rel=ROUNDING,
    )  # fmt: skip


def test_features_do_not_depend_on_the_side():
    row = {"putamen_left": 1.5, "putamen_right": 0.5, "caudate_left": 2.0, "caudate_right": 1.0}
    swap = {"left": "right", "right": "left"}
    mirrored = {f"{name}_{swap[side]}": row[f"{name}_{side}"] for name, side in (key.split("_") for key in row)}
    assert np.array_equal(tabulate_features([row]), tabulate_features([mirrored]))


def test_an_empty_putamen_gives_a_large_ratio():
    row = {"putamen_left": -0.05, "putamen_right": 0.0, "caudate_left": 1.0, "caudate_right": 1.0}
    assert tabulate_features([row])[0, -1] == pytest.approx(10.0, rel=ROUNDING)


def test_cart_finds_a_rule_and_tells_it():
    rng = np.random.default_rng(1)
    features = rng.uniform(0, 2, (200, len(FEATURES)))
    labels = (features[:, 0] < 1).astype(int)
    tree = fit_cart(features, labels)
    grid = np.full((2, len(FEATURES)), 1.0)
    grid[:, 0] = 0.5, 1.5
    assert tree.predict(grid).tolist() == [1, 0]
    assert tree.score(grid).tolist() == [1.0, 0.0]
    assert "putamen_ipsilateral" in tree.text
    assert "class: reduced" in tree.text


def test_nodes_of_the_tree_lead_every_case_to_its_prediction():
    rng = np.random.default_rng(7)
    features = rng.normal(size=(150, len(FEATURES)))
    labels = (features[:, 1] - features[:, 4] + rng.normal(0, 0.3, 150) > 0).astype(int)
    tree = fit_cart(features, labels)
    ends = []
    for row in features:
        node = tree.nodes[0]
        while node["feature"]:
            below = row[FEATURES.index(node["feature"])] <= node["threshold"]
            node = tree.nodes[node["left"] if below else node["right"]]
        ends.append(node)
    assert [int(node["reduced"] > node["normal"]) for node in ends] == tree.predict(features).tolist()
    for node in tree.nodes:
        if node["feature"] is None:
            inside = [label for label, end in zip(labels, ends) if end is node]
            assert (node["normal"], node["reduced"]) == (inside.count(0), inside.count(1))
    assert (tree.nodes[0]["normal"], tree.nodes[0]["reduced"]) == ((labels == 0).sum(), labels.sum())


def test_cart_needs_two_classes():
    with pytest.raises(InputError, match="one class"):
        fit_cart(np.zeros((4, len(FEATURES))), [0, 0, 0, 0])
