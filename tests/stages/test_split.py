"""The stage `split` by the command: folds, sites that are left out, and what cannot be split so."""

import shutil

import pytest
from forked import datxai

from datxai.files import read_table


@pytest.fixture
def cohort(finished, tmp_path):
    """The finished run's scans, in a folder of their own."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    return folder


def sets_of(folder):
    return {row["participant_id"]: row["set"] for row in read_table(folder / "split.tsv")}


def test_folds_test_each_case_once(cohort, tmp_path):
    words = ["split", "-m", f"base={cohort}", f"run={tmp_path / 'folds'}", "split=kfold", "split.folds=3"]
    datxai(*words, "split.fold=0,1,2", "split.validation=0.25")
    jobs = [path.parent for path in (tmp_path / "folds").glob("*/split.tsv")]
    assert len(jobs) == 3
    tested = [case for job in jobs for case, name in sets_of(job).items() if name == "test"]
    assert sorted(tested) == sorted(sets_of(cohort))


def test_a_site_is_left_out(cohort, tmp_path):
    sites = {row["participant_id"]: row["site"] for row in read_table(cohort / "participants.tsv")}
    site = max(sorted({*sites.values()}), key=list(sites.values()).count)
    words = ["split=column", "split.column=site", f"split.test=[{site}]", "split.validation=0.3"]
    datxai("split", f"base={cohort}", f"run={tmp_path / 'left'}", *words)
    found = sets_of(tmp_path / "left")
    assert {case for case, name in found.items() if name == "test"} == {c for c, s in sites.items() if s == site}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split=kfold", "split.fold=5"], "split.fold is 5, expected less than the 5 folds, from 0 on"),
        (["split=kfold", "split.folds=1"], "split.folds is 1, expected 2 or more"),
        (["split=kfold", "split.column=site"], "split.column: split=kfold has no such setting, but split=column"),
        (["split.kind=half"], "split.kind is half, expected one of random, kfold, column"),
        (["split.fold=1"], "split.fold: a random split has no such setting, but split=kfold"),
        (["split=column", "split.column=clinic"], "has no column 'clinic', expected it for split.column=clinic"),
        (["split=column", "split.column=site"], "expected train, validation or test; correct it, or name the values"),
        (["split=column", "split.column=site", "split.test=[Z]"], "split.test: no case has 'Z' in the column 'site'"),
    ],
)
def test_what_cannot_be_split_so(cohort, tmp_path, words, said):
    answer = datxai("split", f"base={cohort}", f"run={tmp_path / 'other'}", *words, status=2)
    assert said in answer.stderr and answer.stderr.count("\n") == 1
    assert not (tmp_path / "other" / "split.tsv").exists()
