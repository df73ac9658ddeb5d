"""Explanations of one run beside one another: each has its maps, its settings, its pages; what they share is one."""

import json
import re
import shutil

import numpy as np
import pytest
from forked import datxai
from manifests import forget_checksums
from scipy.stats import binomtest

from datxai.files import hash_file, read_json, read_table, write_json
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.record import read_record
from datxai.run import Run
from datxai.volume import load

SAME = 1e-6  # a correlation in float64 of maps in float32
SINGLE = 1e-5  # of a map's largest value: in another batch float32 is added up in another order


def hashes(folder, *left_out):
    """The files below a folder, and what each holds."""
    return {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in folder.rglob("*")
        if path.is_file() and not {*path.relative_to(folder).parts} & {*left_out, "datxai.log", ".hydra", ".lock"}
    }


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A finished run, explained a second time as ``eps``; what it held before is as it was."""
    folder = tmp_path_factory.mktemp("explanations") / "run"
    shutil.copytree(finished[0], folder)
    before, settings = hashes(folder, "manifest.json"), read_record(folder).values
    datxai("explain", "composite=epsilon", "target=reduced", "explanation=eps", f"run={folder}")
    datxai("evaluate", "explanation=eps", f"run={folder}")
    datxai("report", "explanation=eps", f"run={folder}")
    assert hashes(folder, "manifest.json", "explanations") == before
    assert read_record(folder).values == settings
    return folder


def test_each_has_its_own_maps_settings_and_pages(run):
    assert Run(run).explanations == ["default", "eps"]
    default, eps = Run(run), Run(run, "eps")
    assert eps.relevance == run / "explanations" / "eps" / "relevance"
    cases = [row["participant_id"] for row in read_table(default.predictions) if row["set"] == "test"]
    for case in cases:
        record = read_json(eps.relevance_of(case).with_suffix("").with_suffix(".json"))
        assert (record["method"]["composite"], record["method"]["target"]) == ("epsilon", "reduced")
        assert not np.array_equal(load(default.relevance_of(case)).data, load(eps.relevance_of(case)).data)
    assert read_json(eps.metrics)["explanation"] == "eps"
    assert read_json(default.metrics)["explanation"] == "default"
    assert "<dt>Explanation</dt><dd>eps</dd>" in eps.report.read_text()
    assert "<dt>Explanation</dt><dd>default</dd>" in default.report.read_text()
    assert read_json(eps.metrics)["classifiers"]["cnn"] == read_json(default.metrics)["classifiers"]["cnn"]


def test_each_is_up_to_date_by_itself(run):
    said = datxai("explain", "explanation=eps", f"run={run}").stdout
    assert "explain/eps up to date" in said
    assert "composite=epsilon" in said
    said = datxai("explain", f"run={run}").stdout
    assert re.search(r"explain +up to date", said)
    assert "composite=epsilon" not in said


def test_a_lost_map_is_made_again_where_it_was_lost(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    lost = next(Run(folder, "eps").relevance.glob("*.nii.gz"))
    before = lost.read_bytes()
    manifest = read_json(folder / "manifest.json")
    del manifest["explain/eps"]
    write_json(folder / "manifest.json", manifest)
    maps = [path for path in folder.rglob("*relevance.nii.gz") if path != lost]
    times, contents = [path.stat().st_mtime_ns for path in maps], [path.read_bytes() for path in maps]
    lost.unlink()
    datxai("explain", "explanation=eps", f"run={folder}")
    assert lost.read_bytes() == before
    assert [path.read_bytes() for path in maps] == contents  # those of its batch are made once more
    assert {path.parent for path, time in zip(maps, times) if path.stat().st_mtime_ns != time} <= {lost.parent}


def test_two_are_compared_case_by_case(run, tmp_path):
    said = datxai("compare", f"run={run}", "explanations=[default,eps]", f"out={tmp_path}").stdout
    maps = [Run(run), Run(run, "eps")]
    rows = read_table(tmp_path / "cases.tsv")
    brain = make_regions(load(maps[0].relevance_of(rows[0]["participant_id"])).grid, load_atlas(None, None))["brain"]
    for row in rows:
        a, b = (load(each.relevance_of(row["participant_id"])).data for each in maps)
        assert float(row["correlation"]) == pytest.approx(np.corrcoef(a[brain], b[brain])[0, 1], abs=SAME)
    measured = [{row["participant_id"]: row for row in read_table(each.roi_relevance)} for each in maps]
    nearer = [
        np.sign(float(measured[1][case]["peak_distance_mm"]) - float(measured[0][case]["peak_distance_mm"]))
        for case in measured[0]
        if "n/a" not in (measured[0][case]["peak_distance_mm"], measured[1][case]["peak_distance_mm"])
    ]
    peak = next(row for row in read_table(tmp_path / "leads.tsv") if row["measure"] == "peak")
    counts = [nearer.count(1), nearer.count(-1), nearer.count(0)]
    assert [int(peak[name]) for name in ("a", "b", "tied")] == counts
    p = binomtest(counts[0], counts[0] + counts[1]).pvalue if counts[0] + counts[1] else 1
    assert float(peak["p"]) == pytest.approx(p)
    found = read_json(tmp_path / "compare.json")
    assert [row["explanation"] for row in found["explanations"]] == ["default", "eps"]
    assert {row["group"] for row in found["agreement"]} == {"all", "TN", "FP", "FN", "TP"}
    assert (tmp_path / "maps.png").is_file()
    assert "eps: epsilon, target=reduced" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "RUN", "explanations=[default,other]"], "what is there: default, eps"),
        (["compare", "RUN", "explanations=[eps,eps]"], "expected two names or more that differ"),
        (["compare", "RUN", "RUN", "explanations=[default,eps]"], "expected one"),
        (["evaluate", "run=RUN", "explanation=other"], "datxai explain run=RUN explanation=other"),
        (["spectral", "run=RUN", "explanation=other"], "what is there: default, eps"),
        (["benchmark", "run=RUN", "explanation=other"], "what is there: default, eps"),
        (["case", "scan=x.nii", "run=RUN", "explanation=other"], "what is there: default, eps"),
        (["case", "scan=x.nii", "run=RUN", "explanations=[eps,other]"], "what is there: default, eps"),
        (["serve", "run=RUN", "explanation=other"], "what is there: default, eps"),
        (["explain", "run=RUN", "explanation=../x"], "expected a name"),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_is_written(run, words, said):
    before = hashes(run)
    answer = datxai(*(word.replace("RUN", str(run)) for word in words), status=2, cwd=run.parent)
    assert said.replace("RUN", str(run)) in answer.stderr
    assert hashes(run) == before


def test_explanations_of_an_older_network_are_not_compared(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    forget_checksums(folder)
    manifest = read_json(folder / "manifest.json")
    manifest["train"]["fingerprint"] = manifest["explain"]["inputs"]["train"] = "another"
    write_json(folder / "manifest.json", manifest)
    answer = datxai("compare", folder, "explanations=[default,eps]", status=2)
    assert "'train' has been made again since 'explain'" in answer.stderr
    assert "explanation=eps" in answer.stderr


def test_two_maps_stand_beside_each_other_on_the_page_of_a_case(run):
    scan = next(path for path in (run / "simulated").glob("*_spect.*") if path.suffix != ".json")
    name = scan.name.partition(".")[0]
    datxai("case", f"scan={scan}", f"run={run}", "explanations=[eps,default]")
    place = run / "explanations" / "eps" / "cases" / name
    page, numbers = (place / "report.html").read_text(), read_json(place / "prediction.json")
    assert page.count('<div class="viewer"') == 2
    assert page.index("<h3>eps</h3>") < page.index("<h3>default</h3>")
    assert (numbers["explanation"], [*numbers["beside"]]) == ("eps", ["default"])
    alone = run / "cases" / name
    datxai("case", f"scan={scan}", f"run={run}")
    own = read_json(alone / "prediction.json")
    assert own["sum"] == pytest.approx(numbers["beside"]["default"]["sum"], rel=SINGLE)
    assert own["consistent"] == numbers["beside"]["default"]["consistent"]
    a = load(alone / f"{name}_relevance.nii.gz").data
    b = load(place / f"{name}_default_relevance.nii.gz").data
    np.testing.assert_allclose(a, b, atol=SINGLE * np.abs(a).max())
    maps = json.loads(re.search(r"maps = (\[.*\]);", page)[1])
    assert [len(spaces) for spaces in maps] == [2]


def test_spectral_groups_and_a_benchmark_take_one_by_name(run):
    answer = datxai("spectral", "explanation=eps", f"run={run}", status=None)
    assert answer.returncode == 0 or "fewer than" in answer.stderr  # six test cases
    datxai(
        "benchmark", "explanation=eps", f"run={run}", "benchmark.methods=[gradient]", "benchmark.metrics=[sparseness]",
        "benchmark.n_cases=1", "benchmark.n_checks=0", "benchmark.n_heads=0", "n_jobs=1",
    )  # fmt: skip
    assert {row["method"] for row in read_table(run / "benchmark" / "results.tsv")} == {"gradient", "eps"}
