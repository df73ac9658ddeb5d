import pytest

from datxai.errors import InputError
from datxai.run import Run, git_revision, versions


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def record(run, stage, config, inputs, output):
    with run.recording(stage, config, inputs, [output]) as fingerprint:
        output.write_text("made")
    return fingerprint


def test_a_recorded_stage_is_current_until_settings_inputs_or_outputs_change(run):
    output = run.folder / "a.tsv"
    fingerprint = record(run, "split", {"seed": 0}, {"before": "x"}, output)
    assert run.is_current("split", run.fingerprint("split", {"seed": 0}, {"before": "x"}))
    assert fingerprint == run.entries()["split"]["fingerprint"]
    assert not run.is_current("split", run.fingerprint("split", {"seed": 1}, {"before": "x"}))
    assert not run.is_current("split", run.fingerprint("split", {"seed": 0}, {"before": "y"}))
    output.unlink()
    assert not run.is_current("split", fingerprint)


def test_a_stage_that_fails_leaves_no_record(run):
    output = run.folder / "a.tsv"
    with pytest.raises(RuntimeError), run.recording("split", {}, {}, [output]):
        raise RuntimeError
    assert run.entries() == {}


def test_a_remade_stage_is_not_current_while_it_is_being_made(run):
    output = run.folder / "a.tsv"
    old = record(run, "split", {"seed": 0}, {}, output)
    with pytest.raises(RuntimeError), run.recording("split", {"seed": 1}, {}, [output]):
        output.write_text("half")
        raise RuntimeError
    assert not run.is_current("split", old), "its outputs may already be those of the failed attempt"


def test_the_record_says_what_made_it(run):
    record(run, "split", {"seed": 0}, {}, run.folder / "a.tsv")
    entry = run.entries()["split"]
    assert entry["config"] == {"seed": 0}
    assert entry["versions"]["datxai"] == versions()["datxai"]
    assert entry["git_revision"] == git_revision()
    assert entry["outputs"] == ["a.tsv"]
    assert entry["wall_time_s"] >= 0


def test_what_is_missing_names_the_stage_to_run(run):
    with pytest.raises(InputError, match="datxai train"):
        run.entry("train", "explain")


def test_a_damaged_manifest_is_named(run):
    run.manifest.write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json"):
        run.entries()


def test_what_is_older_than_its_input_names_the_stage_to_run(run):
    explain = record(run, "explain", {}, {}, run.folder / "a")
    record(run, "evaluate", {}, {"explain": explain}, run.folder / "b")
    assert run.entry("evaluate", "report")["inputs"] == {"explain": explain}
    record(run, "explain", {"target": "reduced"}, {}, run.folder / "a")
    with pytest.raises(InputError, match="datxai evaluate"):
        run.entry("evaluate", "report")
