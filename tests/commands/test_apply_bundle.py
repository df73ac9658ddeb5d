"""A bundle meets another cohort: what the run that it was made of says of it, and nothing of the run's own cases."""

import json
import shutil
import zipfile
from dataclasses import replace

import forked
import pytest

from datxai.bundle import MANIFEST, REFERENCE, SETTINGS, Bundle, write_bundle
from datxai.bundle.archive import TEMPLATE, dump
from datxai.bundle.checks import check_classifiers, check_tested
from datxai.commands import bundle as command
from datxai.files import read_json, read_table
from datxai.imaging.atlas import load_atlas
from datxai.imaging.template import HEAD, make_template
from datxai.reader import _restore
from datxai.run import Run
from datxai.volume import save

N = 8
INTERNAL = ("internal", "internal_low", "internal_high", "internal_n", "difference", "p")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    place = tmp_path_factory.mktemp("clinic")
    forked.datxai("simulate", f"run={place}", f"data.n_subjects={N}", "data.seed=7", "data.raw=false", "n_jobs=1")
    return place / "simulated"


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


def make(finished, path, least=1, **changes):
    """The bundle of the run, whose groups are of so few cases that none would be handed on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "MIN_CASES", least)
        run = Run(finished[0])
        command.run(replace(_restore(run), out=str(path), **changes), run)
    return path


def change(path, to, **members):
    """A bundle with some members changed, each by a function of its JSON, or given as bytes."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(held.pop(MANIFEST))
    for name, made in members.items():
        held[name] = made if isinstance(made, bytes) else dump(made(json.loads(held[name])))
    about = {key: value for key, value in manifest.items() if key not in ("format", "members", "sha256")}
    write_bundle(to, held, about)
    return to


def apply(path, to, scans, *words, status=0):
    given = ["data=folder", f"data.root={scans}", "n_jobs=1", "subgroups=[site,sex,age]"]
    return forked.datxai("apply", f"run={path}", f"to={to}", *given, *words, status=status)


@pytest.fixture(scope="module")
def both(finished, scans, tmp_path_factory):
    """What the run says of the scans, what a bundle of it says, and the bundle."""
    place = tmp_path_factory.mktemp("apply")
    path = make(finished, place / "model.datxai")
    apply(finished[0], place / "of_run", scans)
    apply(path, place / "of_bundle", scans)
    return place / "of_run", place / "of_bundle", path


def test_a_bundle_says_what_its_run_says(both, finished):
    ours, theirs, path = both
    for name in ("predictions.tsv", "roi_relevance.tsv", "model/weights.safetensors", "model/config.yaml", "qc.tsv"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    rows = [read_table(folder / "external.tsv") for folder in both[:2]]
    assert len(rows[0]) == len(rows[1])
    known = 0
    for of_run, of_bundle in zip(*rows):
        if of_run["group"].startswith("site:") or (of_run["group"] != "all" and of_bundle["internal_n"] == "n/a"):
            assert {of_bundle[name] for name in INTERNAL} == {"n/a"}  # no place is told, nor a group that is not there
            assert of_run["group"].startswith("site:") or int(of_run["internal_n"]) == 0
            rows_now = (of_run, of_bundle)
            of_run, of_bundle = ({key: row[key] for key in row if key.startswith("external")} for row in rows_now)
        else:
            known += of_run["group"] != "all"
        assert of_run == of_bundle
    assert known > 10
    told = read_json(theirs / "external.json")
    assert told["applied"]["sha256"] == Bundle.open(path).identity
    assert told["cohort"] == read_json(ours / "external.json")["cohort"]
    page = (theirs / "external.html").read_text()
    assert "knows no scan of its run" in page and "classified by the run model.datxai" in page
    assert page.count("report.html") and "Report of model.datxai" not in page
    for file in (theirs / "external.json", theirs / "manifest.json"):
        assert str(path.parent) not in file.read_text() and str(finished[0]) not in file.read_text()


def test_the_same_command_makes_nothing_anew_and_what_needs_cases_goes_on(both, scans, finished, tmp_path):
    _, theirs, path = both
    assert apply(path, theirs, scans).stdout.count("up to date") == 7
    to = shutil.copytree(theirs, tmp_path / "to")
    for stage in ("explain", "evaluate", "report", "external"):
        forked.datxai(stage, f"run={to}", "explanation=gradient", "attribution=gradient")
    remarks = read_json(to / "explanations" / "gradient" / "external.json")["remarks"]
    assert any("not made in the same way as those of the bundle" in remark for remark in remarks)
    forked.datxai("compare", to, finished[0], f"out={tmp_path / 'compare'}")
    forked.datxai("benchmark", f"run={to}", "benchmark.methods=[gradient]", "n_jobs=1")
    forked.datxai("check", f"run={to}")
    said = forked.datxai("explain", f"run={path}", status=2).stderr
    assert f"or apply it to a cohort, whose folder does: `datxai apply run={path} to=DIR data=...`" in said


def test_groups_of_few_people_are_not_handed_on(finished, tmp_path):
    bundle = Bundle.open(make(finished, tmp_path / "model.datxai", least=5))
    assert bundle.tested is not None
    groups = bundle.tested["groups"].values()
    assert all(sum(calls[name] for name in ("tn", "fp", "fn", "tp")) >= 5 for calls in groups)
    assert Bundle.open(make(finished, tmp_path / "few.datxai", least=7)).tested is None


def test_a_bundle_that_tells_nothing_of_its_test(both, scans, tmp_path):
    def of_before(reference):
        return {key: value for key, value in reference.items() if key not in ("classifiers", "tested")}

    path, to = change(both[2], tmp_path / "before.datxai", **{REFERENCE: of_before}), tmp_path / "to"
    apply(path, to, scans)
    rows = read_table(to / "external.tsv")
    assert {row[name] for row in rows for name in INTERNAL} == {"n/a"}
    assert {row["classifier"] for row in rows} == {"cnn", "roi_relevance"}
    of_run = {(row["group"], row["classifier"], row["measure"]): row for row in read_table(both[0] / "external.tsv")}
    for row in rows:
        assert row["external"] == of_run[row["group"], row["classifier"], row["measure"]]["external"]
    assert any("the external test stands alone" in remark for remark in read_json(to / "external.json")["remarks"])
    assert "Binding ratios" in (to / "report.html").read_text()
    assert not (to / "figures" / "cart.png").exists()


def test_a_template_of_the_runs_own_lies_in_the_folder(both, scans, tmp_path):
    save(make_template(HEAD, load_atlas()), tmp_path / "mean.nii")

    def name_template(settings):
        settings["values"]["registration"]["template"] = TEMPLATE
        return settings

    template = (tmp_path / "mean.nii").read_bytes()
    path = change(both[2], tmp_path / "own.datxai", **{SETTINGS: name_template, TEMPLATE: template})
    (tmp_path / "empty").mkdir()
    apply(path, tmp_path / "to", tmp_path / "empty", status=2)
    assert {path.name for path in (tmp_path / "to").rglob("*")} <= {"datxai.log"}
    apply(path, tmp_path / "to", scans, "registration.template=other.nii", status=2)
    apply(path, tmp_path / "to", scans)
    assert (tmp_path / "to" / "bundle" / TEMPLATE).read_bytes() == template
    assert forked.datxai("apply", f"run={path}", f"to={tmp_path / 'to'}").stdout.count("up to date") == 7
    assert len(read_table(tmp_path / "to" / "predictions.tsv")) == N


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run={cut}", "to={tmp}/to"], "is cut off: it has 9000 bytes"),
        (["run={text}", "to={tmp}/to"], "is not a bundle of datxai"),
        (["run={none}", "to={tmp}/to"], "no run folder of datxai there"),
        (["run={path}", "to={tmp}/to", "grid=mni_4mm"], "the bundle was made with grid.name=slab_12mm"),
        (["run={path}", "to={tmp}/to", "network.dropout=0.1"], "was made with network.dropout=0.2, and `apply`"),
        (["run={path}", "to={of_run}"], "to={of_run}: holds what the run"),
        (["run={evil}", "to={tmp}/to"], "classifiers cannot be used; make the bundle again"),
    ],
)
def test_what_cannot_be_is_one_sentence(both, scans, tmp_path, words, said):
    def lead_back(reference):
        reference["classifiers"]["cart"]["nodes"] = [dict(NODE, left=0)]
        return reference

    names = {"path": both[2], "of_run": both[0], "tmp": tmp_path, "none": tmp_path / "none.datxai"}
    names |= {name: tmp_path / f"{name}.datxai" for name in ("cut", "text", "evil")}
    names["cut"].write_bytes(both[2].read_bytes()[:9000])
    names["text"].write_text("words")
    change(both[2], names["evil"], **{REFERENCE: lead_back})
    filled = [word.format(**names) for word in words]
    answer = forked.datxai("apply", *filled, "data=folder", f"data.root={scans}", "n_jobs=1", status=2)
    assert said.format(**names) in answer.stderr and answer.stderr.count("\n") == 1
    assert {path.name for path in (tmp_path / "to").rglob("*")} <= {"datxai.log"}


NODE = {"feature": "putamen_ipsilateral", "threshold": 1.0, "left": 1, "right": 2, "normal": 3, "reduced": 3}
LEAF = {"feature": None, "threshold": None, "left": None, "right": None, "normal": 3, "reduced": 0}
CALLS = {"tn": 3, "fp": 1, "fn": 0, "tp": 2, "auc": 0.75, "auc_variance": 0.01}
MEAN = {"n": 6, "mean": 0.1, "variance": 0.01}
TESTED = {
    "shares": {"called_reduced": {"hits": 3, "n": 6}, "uncertain": {"hits": 0, "n": 6}},
    "calls": {"cnn": CALLS}, "groups": {}, "calibration": {"raw": {"brier": MEAN, "log_loss": MEAN, "ece": 0.1}},
}  # fmt: skip


def tree(*nodes):
    return {"cart": {"tree": "", "nodes": list(nodes)}}


def test_classifiers_of_a_stranger():
    check_classifiers({"sbr": {"cutoff": 1.2}, **tree(NODE, LEAF, LEAF)})
    for wrong in (
        [], {"code": 1}, {"sbr": {}}, {"sbr": {"cutoff": float("nan")}}, {"sbr": {"cutoff": "1"}}, tree(), tree(NODE),
        tree({**NODE, "left": 0}, LEAF, LEAF), tree({**NODE, "right": 3}, LEAF, LEAF), {"cart": {"nodes": [LEAF]}},
        tree({**NODE, "feature": "name"}, LEAF, LEAF), tree({**NODE, "threshold": None}, LEAF, LEAF),
        tree({**LEAF, "normal": 0}), tree({**LEAF, "normal": -1}), tree({**NODE, "left": True}, LEAF, LEAF),
    ):  # fmt: skip
        with pytest.raises((ValueError, KeyError, TypeError)):
            check_classifiers(wrong)


def test_numbers_of_a_stranger():
    check_tested(TESTED)
    for way, value in (
        (["shares"], []), (["shares"], {}), (["shares", "uncertain"], {"hits": 7, "n": 6}),
        (["calls", "cnn", "tn"], 1.5), (["calls", "cnn", "tn"], -1), (["calls", "cnn", "auc"], 1.1),
        (["calls", "cnn", "auc"], None),
        (["calls", "cnn", "tn"], 10**12), (["calls", "cnn", "auc_variance"], -1), (["calls", "cnn"], {}),
        (["calibration", "other"], {}), (["calibration", "raw", "ece"], 2), (["groups"], None),
        (["calibration", "raw", "brier"], {"n": 0, "mean": 0.1, "variance": 0}),
        (["calibration", "raw", "brier"], {"n": 1, "mean": 0.1, "variance": 0.2}),
        (["calibration", "raw", "brier", "mean"], float("inf")),
    ):  # fmt: skip
        wrong = json.loads(json.dumps(TESTED))
        node = wrong
        for key in way[:-1]:
            node = node[key]
        node[way[-1]] = value
        with pytest.raises((ValueError, KeyError, TypeError)):
            check_tested(wrong)


def test_a_cohort_without_labels(both, scans, tmp_path):
    (tmp_path / "scans").mkdir()
    for scan in sorted(scans.glob("*.nii.gz"))[:2]:
        shutil.copy(scan, tmp_path / "scans")
    forked.datxai(
        "apply", f"run={both[2]}", f"to={tmp_path / 'to'}", "data=folder", f"data.root={tmp_path / 'scans'}", "n_jobs=1"
    )
    rows = read_table(tmp_path / "to" / "external.tsv")
    assert [row["measure"] for row in rows] == ["called_reduced", "uncertain"]
    assert {row["internal_n"] for row in rows} == {"6"}
