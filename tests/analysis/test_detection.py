import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from datxai.analysis.classification import measure_auc
from datxai.analysis.detection import DOUBTS, pool_repeats, score_doubt, trace_all, trace_roc

CASE = {"logit_normal": 1.0, "logit_reduced": 3.0, "predicted": 1, "r_normal": 0.2, "r_reduced": 0.7, "sbr": 0.9}


def test_doubt_speaks_against_the_class_predicted():
    doubt = score_doubt(CASE, cutoff=1.2)
    assert doubt == pytest.approx({"map": -0.5, "margin": -2.0, "sbr_near": -0.3, "sbr_against": -0.3})
    other = score_doubt({**CASE, "predicted": 0, "logit_normal": 5.0}, cutoff=1.2)
    assert other == pytest.approx({"map": 0.5, "margin": -2.0, "sbr_near": -0.3, "sbr_against": 0.3})
    assert score_doubt({**CASE, "r_normal": None, "r_reduced": None}, 1.2)["map"] is None
    assert doubt.keys() < DOUBTS.keys()


def test_the_order_by_margin_is_that_by_softmax_outputs():
    logits = np.random.default_rng(0).normal(0, 2, (50, 2))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    named = ({**CASE, "logit_normal": a, "logit_reduced": b} for a, b in logits)
    margins = [score_doubt(case, 1.2)["margin"] for case in named]
    assert (np.argsort(margins) == np.argsort(-abs(softmax[:, 1] - softmax[:, 0]))).all()


def test_roc_against_scikit_learn():
    rng = np.random.default_rng(1)
    wrong = rng.random(200) < 0.2
    scores = np.round(rng.normal(wrong * 1.0, 1.0), 1)  # with ties
    found = trace_roc(wrong.tolist(), scores.tolist())
    false_alarms, hits, _ = roc_curve(wrong, scores, drop_intermediate=False)
    assert found["false_alarms"] == pytest.approx(false_alarms)
    assert found["found"] == pytest.approx(hits)
    assert found["auc"] == pytest.approx(roc_auc_score(wrong, scores))
    assert (found["n"], found["errors"]) == (200, wrong.sum())
    assert found["auc_ci95"] == measure_auc(wrong.astype(int), scores)[1]


def test_cases_without_a_score_and_sets_without_an_error():
    found = trace_roc([True, False, True], [0.5, None, None])
    assert (found["n"], found["errors"], found["auc"]) == (1, 1, None)
    none = trace_all([{"misclassified": False, "margin": -1.0, "map": None}])
    assert none.keys() == {"margin", "map"}
    assert none["margin"]["auc"] is none["margin"]["auc_ci95"] is None
    assert none["map"]["n"] == 0


def test_pooled_scores_of_one_network_are_its_own():
    rng = np.random.default_rng(2)
    wrong = (rng.random(80) < 0.25).tolist()
    scores = rng.normal(wrong, 1.0).tolist()
    people = [[f"sub-{i}" for i in range(80)]]
    found = pool_repeats(people, [wrong], [scores])
    assert found["auc"] == pytest.approx(trace_roc(wrong, scores)["auc"])
    low, high = found["auc_ci95"]
    expected_low, expected_high = trace_roc(wrong, scores)["auc_ci95"]
    assert abs(low - expected_low) < 0.05
    assert abs(high - expected_high) < 0.05


def test_pooling_ranks_within_each_network_and_resamples_people():
    rng = np.random.default_rng(3)
    people = [f"sub-{i}" for i in range(60)]
    wrong = (rng.random(60) < 0.3).tolist()
    scores = rng.normal(wrong, 1.0)
    once = pool_repeats([people], [wrong], [scores.tolist()])
    again = pool_repeats([people] * 4, [wrong] * 4, [(scores * gain + shift).tolist() for gain, shift in
                                                     ((1, 0), (100, 5), (0.01, -3), (7, 7))])  # fmt: skip
    assert again["auc"] == pytest.approx(once["auc"])
    assert again["n"] == 240
    assert again["auc_ci95"] == pytest.approx(once["auc_ci95"], abs=1e-9), "four copies of a case are no new cases"


def test_too_few_misclassified_subjects_have_no_interval():
    people, wrong = [f"sub-{i}" for i in range(30)], [i < 4 for i in range(30)]
    scores = np.random.default_rng(4).normal(size=30).tolist()
    found = pool_repeats([people] * 3, [wrong] * 3, [scores] * 3)  # twelve errors, of four people
    assert found["errors"] == 12
    assert found["auc"] is not None
    assert found["auc_ci95"] is None
    assert pool_repeats([people], [[True] * 5 + wrong[5:]], [scores])["auc_ci95"] is not None
