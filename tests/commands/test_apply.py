"""A finished run meets another cohort: with labels, without, with some, with a table or none."""

import shutil
from pathlib import Path

import forked
import numpy as np
import pytest

from datxai.files import read_json, read_table, write_json, write_table
from datxai.findings import Findings
from datxai.reader import Reader
from datxai.run import Run
from datxai.scan import Scan

SAME = 1e-6
N = 8


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Volumes of the phantom of another seed, as a clinic might keep them: a folder and a table in its own words."""
    place = tmp_path_factory.mktemp("clinic")
    words = [f"data.n_subjects={N}", "data.seed=7", "data.raw=false", "n_jobs=1"]
    forked.datxai("simulate", f"run={place / 'made'}", *words)
    root = place / "scans"
    root.mkdir()
    rows = []
    for row in read_table(place / "made" / "simulated" / "participants.tsv"):
        name = row["participant_id"]
        shutil.copy(place / "made" / "simulated" / f"{name}_spect.nii.gz", root / f"{name}_spect.nii.gz")
        rows.append({"participant_id": name, "age": row["age"], "sex": row["sex"], "site": row["site"],
                     "finding": ("HC", "PD")[int(row["label"])]})  # fmt: skip
    write_table(root / "participants.tsv", rows, list(rows[0]))
    return root


WORDS = ["data=folder", "data.columns.label=finding", "data.label_values={HC: 0, PD: 1}", "n_jobs=1"]


@pytest.fixture(scope="module")
def labelled(finished, scans, tmp_path_factory):
    to = tmp_path_factory.mktemp("apply") / "to"
    apply(finished, to, *WORDS, f"data.root={scans}", "subgroups=[site,sex,age]")
    return to


def apply(finished, to, *words):
    return forked.datxai("apply", f"run={finished[0]}", f"to={to}", *words)


def write_other_table(scans, path, change):
    """The table of the scans with its rows changed."""
    rows = [change(row) for row in read_table(scans / "participants.tsv")]
    write_table(path, rows, list(rows[0]))


def test_all_cases_are_tested_by_what_the_run_has_learnt(finished, labelled):
    known, found = Findings(Run(finished[0])), Findings(Run(labelled))
    assert {case["set"] for case in found.predictions} == {"test"} and len(found.predictions) == N
    for name in ("weights.safetensors", "config.yaml"):
        assert (labelled / "model" / name).read_bytes() == (finished[0] / "model" / name).read_bytes()
    assert found.half_width == known.half_width
    for name in ("temperature", "determined"):
        assert found.metrics["calibration"][name] == known.metrics["calibration"][name]
    ours, theirs = found.metrics["classifiers"], known.metrics["classifiers"]
    assert ours["sbr"]["cutoff"] == theirs["sbr"]["cutoff"]
    assert ours["cart"]["nodes"] == theirs["cart"]["nodes"]
    assert ours["cnn"]["n"] == N
    made_by = found.run.find("train")["config"]["applied"]
    assert made_by == {key: known.run.find("evaluate")[key] for key in ("fingerprint", "output_hash")}
    assert str(finished[0]) not in (labelled / "manifest.json").read_text()


def test_scans_are_judged_as_by_the_reader(finished, labelled, scans):
    reader, rows = Reader.open(finished[0]), read_table(labelled / "predictions.tsv")
    found = Findings(Run(labelled))
    for row in rows[:3]:
        name = row["participant_id"]
        reading = reader.read(scans / f"{name}_spect.nii.gz")
        for key in ("logit_normal", "logit_reduced", "p_reduced"):
            assert float(row[key]) == pytest.approx(reading.result[key], abs=SAME)
        told = reading.result["probability"]
        assert (
            row["probability"] == "n/a" if told is None else float(row["probability"]) == pytest.approx(told, abs=SAME)
        )
        assert row["uncertain"] == str(reading.result["uncertain"]).lower()
        assert float(row["sbr_putamen_left"]) == pytest.approx(reading.result["putamen_left"], rel=SAME)
        assert row["verdict"] == reading.result["quality"]["verdict"]
        assert found.roi_relevance[name]["consistent"] == reading.result["consistent"]
        explained = found.map_of(name).data
        shown = reading.relevance.data[::-1] if reading.result["mirrored"] else reading.relevance.data
        assert np.abs(explained - shown).max() <= SAME * np.abs(shown).max()


def test_both_tests_stand_side_by_side(finished, labelled):
    rows = read_table(labelled / "external.tsv")
    whole = {(row["classifier"], row["measure"]): row for row in rows if row["group"] == "all"}
    for side, folder in (("internal", finished[0]), ("external", labelled)):
        for name, figures in read_json(folder / "metrics.json")["classifiers"].items():
            for measure in ("accuracy", "sensitivity", "specificity", "auc"):
                told, value = whole[name, measure][side], figures[measure]
                assert told == "n/a" if value is None else float(told) == pytest.approx(value, rel=SAME)
        raw = read_json(folder / "metrics.json")["calibration"]["raw"]
        for measure, key in (("brier_raw", "brier"), ("log_loss_raw", "nll"), ("ece_raw", "ece")):
            assert float(whole["cnn", measure][side]) == pytest.approx(raw[key], rel=SAME)
    people = read_table(labelled / "participants.tsv")
    groups = {row["group"] for row in rows} - {"all"}
    assert {f"sex: {person['sex']}" for person in people} | {f"site: {person['site']}" for person in people} <= groups
    of_sex = [row for row in rows if row["group"] == "sex: F" and row["measure"] == "accuracy"]
    assert int(of_sex[0]["external_n"]) == sum(person["sex"] == "F" for person in people)
    page = (labelled / "external.html").read_text()
    assert "Internal and external test" in page and "sex: F" in page and "report.html" in page
    assert 'href="external.html"' in (labelled / "report.html").read_text()


def test_the_same_command_makes_nothing_anew(finished, labelled, scans):
    before = _list(labelled)
    answer = apply(finished, labelled, *WORDS, f"data.root={scans}", "subgroups=[site,sex,age]")
    assert answer.stdout.count("up to date") == 7
    assert apply(finished, labelled).stdout.count("up to date") == 7  # the cohort is on record
    assert _list(labelled) == before
    forked.datxai("check", f"run={labelled}")


def test_stages_and_commands_go_on_in_it(finished, labelled, tmp_path):
    to = tmp_path / "to"
    shutil.copytree(labelled, to)
    for stage in ("explain", "evaluate", "report", "external"):
        forked.datxai(stage, f"run={to}", "explanation=gradient", "attribution=gradient")
    own = to / "explanations" / "gradient"
    assert any("not made in the same way" in remark for remark in read_json(own / "external.json")["remarks"])
    assert {row["classifier"] for row in read_table(own / "external.tsv")} == {"cnn", "sbr", "cart"}
    assert "external.html" in (own / "report.html").read_text() and (own / "external.html").is_file()
    forked.datxai("compare", to, finished[0], f"out={tmp_path / 'compare'}")
    runs = {row["run"]: row for row in read_table(tmp_path / "compare" / "runs.tsv")}
    assert int(runs["to"]["n"]) == N
    said = forked.datxai("search", f"run={to}", "search.space={training.learning_rate: 'log(1e-5, 1e-3)'}", status=2)
    assert "trains nothing; search in a run that does" in said.stderr


def test_without_a_table_every_scan_is_judged_and_nothing_said_of_accuracy(finished, labelled, scans, tmp_path):
    root, to = tmp_path / "scans", tmp_path / "to"
    root.mkdir()
    names = [f"sub-{number:04d}" for number in (1, 2, 3)]
    for name in names:
        shutil.copy(scans / f"{name}_spect.nii.gz", root)
    words = ["data=folder", f"data.root={root}", "n_jobs=1"]
    forked.datxai("preprocess", f"run={to}", f"applied={finished[0]}", *words, "shard=0/2")
    made = {path.name: path.stat().st_mtime_ns for path in (to / "preprocessed").glob("*.nii.gz")}
    assert len(made) == 2
    answer = apply(finished, to, *words)
    assert made.items() <= {path.name: path.stat().st_mtime_ns for path in (to / "preprocessed").iterdir()}.items()
    assert "Test set" not in answer.stdout
    rows = read_table(to / "predictions.tsv")
    assert [row["participant_id"] for row in rows] == [name.removeprefix("sub-") for name in names]
    assert {(row["set"], row["label"]) for row in rows} == {("unlabelled", "n/a")}
    for row, same in zip(rows, read_table(labelled / "predictions.tsv")):
        assert float(row["p_reduced"]) == pytest.approx(float(same["p_reduced"]), abs=SAME)
        assert [row[key] for key in ("uncertain", "verdict", "sbr_putamen_left")] == [
            same[key] for key in ("uncertain", "verdict", "sbr_putamen_left")
        ]
    assert read_json(to / "metrics.json")["classifiers"] == {}
    assert {row["measure"] for row in read_table(to / "external.tsv")} == {"called_reduced", "uncertain"}
    assert "No scan has a label" in (to / "external.html").read_text()
    report = (to / "report.html").read_text()
    assert "Classification of the test set" not in report and "Misclassified cases" not in report
    assert {path.stem for path in (to / "report").glob("*.js")} == {row["participant_id"] for row in rows}
    assert len(list((to / "relevance").glob("*.nii.gz"))) == len(names)
    for command in ("benchmark", "compare"):
        said = forked.datxai(command, f"run={to}", *([finished[0]] if command == "compare" else []), status=2).stderr
        assert f"no case has a label, and '{command}' needs labelled test cases" in said
    Reader.open(to)  # which judges as the run does


def test_cases_with_a_label_alone_are_counted(finished, labelled, scans, tmp_path):
    to, unknown = tmp_path / "to", ["sub-0001", "sub-0002", "sub-0003"]
    shutil.copytree(labelled, to)
    write_other_table(
        scans, tmp_path / "some.tsv",
        lambda row: row | {"finding": "n/a" if row["participant_id"] in unknown else row["finding"]},
    )  # fmt: skip
    apply(finished, to, *WORDS, f"data.root={scans}", f"data.participants={tmp_path / 'some.tsv'}")
    cases = read_table(to / "predictions.tsv")
    assert [row["participant_id"] for row in cases if row["set"] == "unlabelled"] == unknown
    counted = [row for row in read_table(labelled / "predictions.tsv") if row["participant_id"] not in unknown]
    figures = read_json(to / "metrics.json")["classifiers"]["cnn"]
    assert figures["n"] == N - 3
    assert figures["tn"] + figures["tp"] == sum(row["label"] == row["predicted"] for row in counted)
    assert len(list((to / "relevance").glob("*.nii.gz"))) == N
    assert any(f"3 of {N} scans have no label" in remark for remark in read_json(to / "external.json")["remarks"])
    answer = forked.datxai("explain", f"run={to}", "target=label", status=2)
    assert answer.stderr.startswith("datxai: target=label: there are cases without a label")


def test_scans_that_the_run_was_trained_on_are_no_external_test(finished, tmp_path):
    run, root, to = Run(finished[0]), tmp_path / "scans", tmp_path / "to"
    sets = {case["participant_id"]: case["set"] for case in Findings(run).cohort}
    chosen = [name for which, n in (("train", 2), ("test", 1)) for name in [*(m for m in sets if sets[m] == which)][:n]]
    root.mkdir()
    for name in chosen:
        shutil.copy(run.simulated / f"{name}_spect.dcm", root / f"{name}.dcm")
    apply(finished, to, "data=dicom", f"data.root={root}", "n_jobs=1", "subgroups=[sex,age]")
    people = {row["participant_id"]: row for row in read_table(to / "participants.tsv")}
    assert {*people} == {name.removeprefix("sub-") for name in chosen}
    judged = {row["participant_id"]: row for row in read_table(to / "predictions.tsv")}
    for name in chosen:  # age and sex stand in the headers
        known, found = Findings(run).people[name], people[name.removeprefix("sub-")]
        told = Scan.find(root / f"{name}.dcm").subject
        assert (float(found["age"]), found["sex"]) == (told["age"], told["sex"]) and told["sex"] == known["sex"]
        assert abs(told["age"] - known["age"]) < 1
        expected = Findings(run).ranges["putamen_left"].expect(told["age"], told["sex"])
        z = expected.describe(Findings(run).sbr[name]["putamen_left"])["z"]
        assert float(judged[name.removeprefix("sub-")]["z_putamen_left"]) == pytest.approx(z, abs=1e-4)
    first = read_json(to / "external.json")["remarks"][0]
    assert first.startswith("3 of 3 scans are scans of the run itself, byte by byte, 2 of its training")


def test_what_one_bad_scan_has_stopped_goes_on_without_it(finished, scans, tmp_path):
    root, to = tmp_path / "scans", tmp_path / "to"
    root.mkdir()
    for number in (1, 2):
        shutil.copy(scans / f"sub-000{number}_spect.nii.gz", root)
    (root / "sub-0003_spect.nii.gz").write_bytes((scans / "sub-0003_spect.nii.gz").read_bytes()[:3000])
    words = ["data=folder", f"data.root={root}", "n_jobs=1"]
    said = forked.datxai("apply", f"run={finished[0]}", f"to={to}", *words, status=2).stderr
    assert "on_error=skip leaves out what cannot be used" in said
    apply(finished, to, *words, "on_error=skip")
    assert len(read_table(to / "predictions.tsv")) == 2 and len(read_table(to / "skipped.tsv")) == 1


REFUSED = [
    (["data=folder", "data.root={scans}"], "`datxai apply` needs to="),
    (["to={tmp}/to"], "no cohort is given to apply it to"),
    (["to={tmp}/to", "data=folder", "data.root={scans}", "seed=1,2", "-m"], "takes one run to one cohort"),
    (["to={run}", "data=folder", "data.root={scans}"], "is, holds or lies in the run that is applied"),
    (["to={run}/to", "data=folder", "data.root={scans}"], "is, holds or lies in the run that is applied"),
    (["to={scans}", "data=folder", "data.root={scans}"], "holds files that no run has made"),
    (["to={tmp}/to", "data=folder", "data.root={tmp}/none"], "no such folder; set data.root"),
    (["to={tmp}/to", "data=folder", "data.root={empty}"], "no scan among 0 NIfTI files"),
    (["to={tmp}/to", "data=dicom", "data.root={empty}"], "no DICOM file"),
    (
        ["to={tmp}/to", "data=folder", "data.root={scans}", "data.columns.label=finding"],
        "label is 'HC', expected one of",
    ),
    (["to={tmp}/to", "data=folder", "data.root={scans}", "grid=mni_4mm"], "goes on with that, not with grid=mni_4mm"),
    (
        ["to={tmp}/to", *WORDS, "data.root={scans}", "subgroups=[ward]"],
        "has no column 'ward', expected it for subgroups",
    ),
    (["to={tmp}/to", *WORDS, "data.root={twice}"], "2 scans of one session"),
    (["to={to}", *WORDS, "data.root={empty}"], "holds the cohort of data.root="),
    (["to={finished}", *WORDS, "data.root={scans}"], "holds a run of its own"),
    (["run={begun}", "to={tmp}/to", *WORDS, "data.root={scans}"], "needs what 'evaluate' makes"),
    (["run={empty}", "to={tmp}/to", *WORDS, "data.root={scans}"], "no run folder of datxai there"),
    (["run={other}", "to={to}", *WORDS, "data.root={scans}"], "holds what the run"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[said[:30] for _, said in REFUSED])
def test_what_cannot_be_is_one_sentence(finished, labelled, scans, tmp_path, words, said):
    places = {name: tmp_path / name for name in ("run", "finished", "begun", "other", "empty", "twice")}
    given = " ".join(words)
    for name in ("run", "finished", "other", "begun"):
        if f"{{{name}}}" in given:
            shutil.copytree(finished[0], places[name])
    places["empty"].mkdir()
    if "{begun}" in given:
        manifest = read_json(places["begun"] / "manifest.json")
        begun = {key: manifest[key] for key in ("simulate", "preprocess", "split")}
        write_json(places["begun"] / "manifest.json", begun)
    if "{twice}" in given:
        shutil.copytree(scans, places["twice"])
        one = next(places["twice"].glob("*.nii.gz"))
        shutil.copy(one, one.with_name(one.name.replace("_spect", "_rec-2_spect")))
    names = {"scans": scans, "tmp": tmp_path, "to": labelled, "run": finished[0], **places}
    names["run"] = places["run"] if "{run}" in given else finished[0]
    filled = [word if word.startswith("data.label_values") else word.format(**names) for word in words]
    filled = filled if any(word.startswith("run=") for word in filled) else [f"run={names['run']}", *filled]
    before = _list(labelled), _list(scans)
    answer = forked.datxai("apply", *filled, status=2)
    assert said in answer.stderr and answer.stderr.count("\n") == 1
    assert (_list(labelled), _list(scans)) == before
    assert not (tmp_path / "to" / ".hydra").exists() and not (tmp_path / "to" / "manifest.json").exists()


def _list(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "datxai.log"}
