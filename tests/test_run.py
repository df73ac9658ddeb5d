import os
import shutil
from contextlib import suppress

import pytest

from datxai.errors import InputError
from datxai.files import hash_file, write_json
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


def explain(folder, name="default"):
    """The stages train and explain as made, the latter for an explanation of that name."""
    folder.mkdir(exist_ok=True)
    run = Run(folder, name)
    if run.find("train") is None:
        record(run, "train", {}, {}, run.folder / "predictions.tsv")
    run.relevance.mkdir(parents=True)
    inputs = {"train": run.entry("train", "explain")["fingerprint"]}
    with run.recording("explain", {"name": name}, inputs, [run.relevance]):
        (run.relevance / "map").write_text(name)
    return run


def test_each_explanation_has_its_own_entries_and_places(tmp_path):
    default, other = explain(tmp_path), explain(tmp_path, "eps")
    assert default.relevance == tmp_path / "relevance"
    assert other.relevance == tmp_path / "explanations" / "eps" / "relevance"
    assert default.explanations == other.explanations == ["default", "eps"]
    assert [*default.entries()] == ["train", "explain", "explain/eps"]
    assert default.predictions == other.predictions
    with default.recording("explain", {"name": "again"}, {}, [default.relevance]):
        pass
    assert other.holds("explain")


def test_an_explanation_of_an_older_network_is_named_with_its_command(tmp_path):
    other = explain(tmp_path, "eps")
    record(other, "train", {"seed": 1}, {}, other.predictions)
    with pytest.raises(InputError, match=rf"datxai explain run={tmp_path} explanation=eps"):
        other.entry("explain", "evaluate")


def test_what_is_missing_of_an_explanation_names_those_there_are(tmp_path):
    explain(tmp_path)
    explain(tmp_path, "eps")
    with pytest.raises(InputError, match=r"what is there: default, eps\); run `datxai explain run=.* explanation=epz`"):
        Run(tmp_path, "epz").entry("explain", "evaluate")


def test_an_explanation_is_taken_over_by_itself(tmp_path):
    """Its folder is a link, those of the others are the run's own."""
    base, here = explain(tmp_path / "base", "eps"), Run(tmp_path / "run", "eps")
    mine = explain(tmp_path / "run")
    fingerprint = base.find("explain")["fingerprint"]
    assert here.adopt("explain", fingerprint, base)
    assert here.is_current("explain", fingerprint)
    assert here.relevance.is_symlink() and not here.explained.is_symlink() and not mine.relevance.is_symlink()
    assert (here.relevance / "map").read_text() == "eps"
    assert not mine.adopt("explain", fingerprint, Run(tmp_path / "base"))
    here.release("explain", [here.relevance])
    assert not here.relevance.exists() and (base.relevance / "map").is_file()
@pytest.fixture
def made(run):
    """A run with a stage that leaves a table and a folder of volumes, and one that rests on it."""
    folder = run.folder / "maps"
    with run.recording("explain", {}, {}, [run.folder / "a.tsv", folder]):
        (folder / "deep").mkdir(parents=True)
        for name in ("../a.tsv", "one", "deep/two", ".DS_Store"):
            (folder / name).write_text(f"content of {name}")
    with run.recording("evaluate", {}, {"explain": run.identity("explain", "evaluate")}, [run.folder / "b"]):
        (run.folder / "b").write_text("rests on that")
    return run


def later(path):
    """As a copy: the content of before, another time."""
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize("name", ["a.tsv", "maps/one", "maps/deep/two"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text(path.read_text()[:-1]), "expected"),
        (lambda path: path.write_text(path.read_text().swapcase()) and later(path), "SHA-256"),
        (lambda path: path.unlink() or path.mkdir(), "is not a file"),
    ],
)
def test_damage_is_named_and_the_stage_not_current(made, name, change, fault):
    fingerprint = made.entries()["explain"]["fingerprint"]
    assert made.is_current("explain", fingerprint)
    change(made.folder / name)
    assert not made.is_current("explain", fingerprint)
    ((path, said),) = made.find_damage("explain").items()
    assert path == made.folder / name and fault in said
    with pytest.raises(InputError, match=rf"{name}: .*'evaluate' needs what 'explain' made; run `datxai explain "):
        made.entry("evaluate", "case")


def test_what_is_copied_is_read_once(made, monkeypatch):
    shutil.copytree(made.folder, made.folder.with_name("copy"), copy_function=shutil.copyfile)
    copy, hashed = Run(made.folder.with_name("copy")), []
    monkeypatch.setattr("datxai.integrity.hash_once", lambda path: hashed.append(path) or hash_file(path))
    later(copy.folder / "maps" / "one")
    later(copy.folder / "b")
    for _ in range(3):
        copy.entry("evaluate", "case")
    assert {copy.folder / "b", copy.folder / "maps" / "one"} <= {*hashed}
    assert len(hashed) == len({*hashed})
    assert copy.identity("evaluate", "case") == made.identity("evaluate", "case")


def test_a_folder_that_may_only_be_read_is_checked_every_time(made, monkeypatch):
    later(made.folder / "b")
    monkeypatch.setattr(Run, "_write", lambda *_: os.open("/proc/version", os.O_WRONLY))
    assert made.holds("evaluate")


def test_a_change_that_leaves_size_and_time_is_seen_by_reading_everything(made):
    path = made.folder / "maps" / "one"
    state = path.stat()
    path.write_text(path.read_text().swapcase())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert made.holds("explain")
    assert not Run(made.folder, full=True).holds("explain")
    assert Run(made.folder, full=True).holds("evaluate")


def test_files_of_ones_own_beside_the_outputs_do_not_count(made):
    (made.folder / "maps" / "notes.txt").write_text("mine")
    (made.folder / "maps" / ".DS_Store").write_text("the desktop's")
    assert made.holds("explain")


def test_a_stage_made_again_with_other_content_makes_what_rests_on_it_stale(made):
    def again(word):
        (made.folder / "a.tsv").unlink()
        with made.recording("explain", {}, {}, [made.folder / "a.tsv", made.folder / "maps"]):
            (made.folder / "a.tsv").write_text(word)

    before = made.identity("explain", "case")
    again("content of ../a.tsv")
    assert made.identity("explain", "case") == before
    assert made.entry("evaluate", "case")
    again("other content")
    with pytest.raises(InputError, match="'explain' has been made again since 'evaluate'"):
        made.entry("evaluate", "case")


def test_a_stage_that_is_refused_before_it_changes_anything_is_not_forgotten(made):
    before, outputs = made.entries(), [made.folder / "a.tsv", made.folder / "maps"]
    with pytest.raises(InputError), made.recording("explain", {"new": 1}, {}, outputs):
        raise InputError("no such method")
    assert made.entries() == before and made.holds("evaluate")
    with pytest.raises(InputError), made.recording("explain", {"new": 1}, {}, outputs):
        (made.folder / "maps" / "one").write_text("of the new method")
        raise InputError("the second case is damaged")
    assert "explain" not in made.entries()


def test_what_is_damaged_is_removed_before_the_stage_is_made_again(made):
    damaged, whole = made.folder / "maps" / "one", made.folder / "maps" / "deep" / "two"
    damaged.write_text("x")
    with pytest.raises(RuntimeError), made.recording("explain", {}, {}, [made.folder / "a.tsv", made.folder / "maps"]):
        assert not damaged.exists()
        assert whole.exists()
        raise RuntimeError


def test_every_bit_of_the_manifest_counts(made):
    text, before = made.manifest.read_text(), made.entries()
    for place in range(0, len(text), 11):
        made.manifest.write_text(text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :])
        with suppress(InputError):  # else it was the name of a stage or of the checksum
            found = made.entries()
            for entry, known in zip(found.values(), before.values(), strict=True):
                assert known.items() <= entry.items(), place
    for content in ("[]", '{"explain": []}', '{"explain": {"fingerprint": 3}}', "", '{"explain": null}'):
        made.manifest.write_text(content)
        with pytest.raises(InputError, match=r"manifest\.json"):
            made.entries()


def test_a_manifest_of_an_earlier_version_is_checked_by_what_is_there(made):
    plain = {stage: {k: v for k, v in entry.items() if k not in ("files", "output_hash")} for stage, entry in
             made.entries().items()}  # fmt: skip
    plain["evaluate"]["inputs"] = {"explain": plain["explain"]["fingerprint"]}
    write_json(made.manifest, plain)
    assert made.entry("evaluate", "case")["inputs"] == {"explain": made.identity("explain", "evaluate")}
    (made.folder / "maps" / "one").write_text("x")
    assert made.holds("explain")
    (made.folder / "a.tsv").unlink()
    assert not made.holds("explain")
