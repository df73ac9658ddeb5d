"""A finished run, read back from its tables."""

import pytest

from datxai.case import HALVES, SBR
from datxai.errors import InputError
from datxai.files import write_json, write_table
from datxai.findings import Findings
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
    assert Findings(run).cohort == [
        {"participant_id": "a", "set": "train", "label": 1},
        {"participant_id": "b", "set": "test", "label": 0},
    ]


@pytest.mark.parametrize(
    ("subject", "sex", "more"),
    [(None, "F", {}), ("x", None, dict.fromkeys(HALVES, 0.5)), ("x", "M", dict.fromkeys(HALVES))],
)
def test_normal_cases_have_age_sex_and_ratios(run, subject, sex, more):
    """The halves of the putamen are not in a table of an earlier version, and may not be known."""
    people = [{"participant_id": name, "age": age, "label": label} for name, age, label in
              (("a", 61.5, 0), ("b", 70, 1), ("c", None, 0))]  # fmt: skip
    people = [person | ({"subject": subject, "sex": sex} if subject else {"sex": sex}) for person in people]
    write_table(run.participants, people, list(people[0]))
    ratios = [
        {"participant_id": name, **dict.fromkeys(SBR, ratio), **more, "mirrored": 0}
        for name, ratio in zip("cba", [3, 2, 1])
    ]
    write_table(run.sbr, ratios, list(ratios[0]))
    derived = {"caudate_putamen_ratio_left": 1.0, "caudate_putamen_ratio_right": 1.0, "putamen_asymmetry": 0.0}
    assert Findings(run).normals == [
        {"subject": subject or "a", "age": 61.5, "sex": sex, **dict.fromkeys(SBR, 1.0), **more, **derived},
        {"subject": subject or "c", "age": None, "sex": sex, **dict.fromkeys(SBR, 3.0), **more, **derived},
    ]
    assert Findings(run).ranges.keys() == {*SBR, *more, *derived}


@pytest.mark.parametrize(("label", "predicted", "group"), [(0, 0, "TN"), (0, 1, "FP"), (1, 0, "FN"), (1, 1, "TP")])
def test_groups(run, label, predicted, group):
    row = {"participant_id": "a", "set": "test", "label": label, "predicted": predicted, "p_reduced": 0.5,
           "logit_normal": -1.5, "logit_reduced": 2}  # fmt: skip
    write_table(run.predictions, [row], list(row))
    assert Findings(run).predictions == [{**row, "group": group, "margin": 3.5}]


def test_the_ledger_is_a_mean_relative_to_what_each_map_started_with(run):
    for case, start, out in (("a", 2.0, 1.0), ("b", -4.0, -3.0)):
        entry = {"layer": "fc", "type": "Linear", "rule": "epsilon", "relevance_in": start, "relevance_out": out,
                 "absorbed": start - out}  # fmt: skip
        write_json(sidecar_path(run.relevance_of(case)), {"seed": [start, 0.0], "ledger": [entry]})
    (row,) = Findings(run).average_ledger(["a", "b"])
    assert row["relevance_in"] == 1.0
    assert row["relevance_out"] == pytest.approx((0.5 + 0.75) / 2)
    assert row["absorbed"] == pytest.approx((0.5 + 0.25) / 2)


def test_consistency_may_be_unknown(run):
    rows = [
        {"participant_id": name, "putamen_ipsilateral": 0.25, "consistent": value}
        for name, value in (("a", True), ("b", False), ("c", None))
    ]
    write_table(run.roi_relevance, rows, list(rows[0]))
    assert [row["consistent"] for row in Findings(run).roi_relevance.values()] == [True, False, None]


def test_a_table_of_fewer_cases_than_another_names_the_case_and_itself(run):
    write_table(run.participants, [{"participant_id": "a", "label": 1}], ["participant_id", "label"])
    write_table(run.split, [{"participant_id": "b", "set": "test"}], ["participant_id", "set"])
    with pytest.raises(InputError, match=r"split\.tsv: has no line for a, expected one for every case"):
        Findings(run).cohort  # noqa: B018


def test_tables_are_read_once(run, monkeypatch):
    write_table(run.split, [{"participant_id": "a", "set": "test"}], ["participant_id", "set"])
    write_table(run.participants, [{"participant_id": "a", "label": 1}], ["participant_id", "label"])
    findings = Findings(run)
    cohort = findings.cohort
    run.split.unlink()
    assert findings.cohort is cohort


def test_calibrated_probabilities_and_what_is_uncertain(run):
    rows = [
        {"participant_id": name, "set": group, "label": 1, "predicted": 1, "p_reduced": 0.5, "logit_normal": 0.0,
         "logit_reduced": margin}
        for name, group, margin in (("a", "validation", 1.0), ("b", "test", 0.0))
    ]  # fmt: skip
    write_table(run.predictions, rows, list(rows[0]))
    write_json(run.metrics, {"classifiers": {}, "calibration": {"temperature": 0.5, "determined": True}})
    findings = Findings(run)
    assert findings.probabilities == {"a": pytest.approx(0.8808, abs=1e-4), "b": 0.5}
    assert findings.half_width == pytest.approx(0.3808, abs=1e-4)
