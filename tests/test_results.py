import pytest

from datxai.files import write_json, write_table
from datxai.results import read_cases, read_ledger, read_normals, read_predictions, read_roi_relevance
from datxai.run import Run
from datxai.volume import sidecar_path


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_cases_bring_label_and_set_together(run):
    write_table(run.participants, [{"participant_id": "a", "label": 1}, {"participant_id": "b", "label": 0}],
                ["participant_id", "label"])  # fmt: skip
    write_table(run.split, [{"participant_id": "b", "set": "test"}, {"participant_id": "a", "set": "train"}],
                ["participant_id", "set"])  # fmt: skip
    assert read_cases(run) == [
        {"participant_id": "a", "set": "train", "label": 1},
        {"participant_id": "b", "set": "test", "label": 0},
    ]


@pytest.mark.parametrize("subject", [None, "x"])
def test_normal_cases_have_age_and_ratios(run, subject):
    people = [{"participant_id": name, "age": age, "label": label} for name, age, label in
              (("a", 61.5, 0), ("b", 70, 1), ("c", None, 0))]  # fmt: skip
    people = [person | ({"subject": subject} if subject else {}) for person in people]
    write_table(run.participants, people, list(people[0]))
    ratios = [{"participant_id": name, "putamen_left": ratio, "mirrored": 0} for name, ratio in zip("cba", [3, 2, 1])]
    write_table(run.sbr, ratios, list(ratios[0]))
    assert read_normals(run) == [
        {"subject": subject or "a", "age": 61.5, "putamen_left": 1.0},
        {"subject": subject or "c", "age": None, "putamen_left": 3.0},
    ]


@pytest.mark.parametrize(("label", "predicted", "group"), [(0, 0, "TN"), (0, 1, "FP"), (1, 0, "FN"), (1, 1, "TP")])
def test_groups(run, label, predicted, group):
    row = {"participant_id": "a", "set": "test", "label": label, "predicted": predicted, "p_reduced": 0.5,
           "logit_normal": -1.5, "logit_reduced": 2}  # fmt: skip
    write_table(run.predictions, [row], list(row))
    assert read_predictions(run) == [{**row, "group": group}]


def test_the_ledger_is_a_mean_relative_to_what_each_map_started_with(run):
    for case, start, out in (("a", 2.0, 1.0), ("b", -4.0, -3.0)):
        entry = {"layer": "fc", "type": "Linear", "rule": "epsilon", "relevance_in": start, "relevance_out": out,
                 "absorbed": start - out}  # fmt: skip
        write_json(sidecar_path(run.relevance_of(case)), {"seed": [start, 0.0], "ledger": [entry]})
    (row,) = read_ledger(run, ["a", "b"])
    assert row["relevance_in"] == 1.0
    assert row["relevance_out"] == pytest.approx((0.5 + 0.75) / 2)
    assert row["absorbed"] == pytest.approx((0.5 + 0.25) / 2)


def test_consistency_may_be_unknown(run):
    rows = [
        {"participant_id": name, "putamen_ipsilateral": 0.25, "consistent": value}
        for name, value in (("a", True), ("b", False), ("c", None))
    ]
    write_table(run.roi_relevance, rows, list(rows[0]))
    assert [row["consistent"] for row in read_roi_relevance(run).values()] == [True, False, None]
