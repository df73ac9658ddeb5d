"""The table and the pages of cases, from a run folder made by hand."""

import base64
import json
import zlib
from urllib.parse import quote

import numpy as np
import pytest

from datxai.analysis.normal_range import NormalRange
from datxai.case import SBR
from datxai.cohort.dataset import write_store
from datxai.files import read_table, write_json, write_table
from datxai.findings import Findings
from datxai.run import Run
from datxai.stages.report import describe_case, tabulate_cases, write_pages
from datxai.volume import Grid, Volume, save

GRID = Grid.axis_aligned((91, 109, 1), (2, 2, 12), (-90, -126, 2))
CASES = {  # set, label, margin of the logits, mirrored
    "sub-1": ("test", 0, -3.0, False), "sub-2": ("test", 1, 2.0, True), "sub 3&": ("test", 1, -0.5, False),
    "sub-4": ("validation", 0, -2.0, False), "sub-5": ("validation", 1, 0.4, False), "sub-6": ("train", 1, 0.1, True),
}  # fmt: skip
EXPLAINED = ["sub-1", "sub-2", "sub 3&"]
TEMPERATURE = 0.5


@pytest.fixture
def found(tmp_path):
    run, rng = Run(tmp_path), np.random.default_rng(0)
    people, predictions, ratios, maps, quality = [], [], [], [], []
    for number, (name, (group, label, margin, mirrored)) in enumerate(CASES.items()):
        person = {"participant_id": name}
        sbr = dict.fromkeys(SBR, 1.0) | {"putamen_left": 0.5 + number, "putamen_right": 3.0}
        judged = {"verdict": "amber" if number == 0 else "green", "reason": "tilted" if number == 0 else None}
        people.append(person | {"age": None if number == 1 else 60 + number, "sex": "F", "label": label})
        predictions.append(
            person | {"set": group, "label": label, "predicted": int(margin > 0), "p_reduced": 0.5,
                      "logit_normal": 1.0, "logit_reduced": 1.0 + margin}
        )  # fmt: skip
        ratios.append(person | sbr | {"mirrored": mirrored})
        quality.append(person | judged | {"similarity": 0.9 + number / 100})
        scan = Volume(rng.uniform(0, 2, GRID.shape), GRID.affine)
        measures = {"measures": {**sbr, "mirrored": mirrored, "quality": judged}}
        save(scan, run.scan_of(name), measures)
        if name in EXPLAINED:
            maps.append(person | {"putamen_ipsilateral": number - 1.0, "consistent": number != 2})
            record = {"method": {"attribution": "lrp"}, "sum": 1.0, "ledger": [{"layer": "conv1", "absorbed": 0.5}]}
            save(Volume(rng.normal(0, 1, GRID.shape), GRID.affine), run.relevance_of(name), record)
    quality.append({"participant_id": "sub-7", "verdict": "red", "reason": "not a head", "similarity": 0.1})
    for path, rows in [
        (run.participants, people), (run.predictions, predictions), (run.sbr, ratios), (run.roi_relevance, maps),
        (run.qc, quality),
    ]:  # fmt: skip
        write_table(path, rows, list(rows[0]))
    write_store(run.store, ["sub-1"], [np.zeros(GRID.shape)], GRID)
    for kind in ("spect", "relevance"):
        save(Volume(rng.uniform(0, 2, GRID.shape), GRID.affine), run.mean_of(f"TN_{kind}"))
    write_json(run.metrics, {"classifiers": {}, "calibration": {"temperature": TEMPERATURE, "determined": True}})
    entry = {"inputs": {}, "outputs": ["metrics.json"], "config": {"atlas": {"labels": None, "names": None}}}
    entry |= {"fingerprint": "e", "finished": "today", "git_revision": None}
    write_json(run.manifest, {"evaluate": entry, "explain": entry})
    return Findings(run)


def test_the_table_holds_every_scan_and_what_speaks_against_it(found):
    rows = {row["participant_id"]: row for row in tabulate_cases(found)}
    assert list(rows) == [*CASES, "sub-7"]
    for name, (_, _, margin, _) in CASES.items():
        assert rows[name]["probability"] == pytest.approx(1 / (1 + np.exp(-margin / TEMPERATURE)))
    # of two validation cases the nearer one, at a margin of 0.4, says what is uncertain
    assert {name: row["flags"] for name, row in rows.items()} == {
        "sub-1": ["quality"], "sub-2": [], "sub 3&": ["misclassified", "inconsistent"], "sub-4": [],
        "sub-5": ["uncertain"], "sub-6": ["uncertain"], "sub-7": ["quality"],
    }  # fmt: skip
    assert [row["sbr"] for row in rows.values()] == [0.5, 1.5, 2.5, 3.0, 3.0, 3.0, None]
    assert (rows["sub-2"]["age"], rows["sub-1"]["age"], rows["sub-1"]["reason"]) == (None, 60.0, "tilted")
    assert (rows["sub-7"]["set"], rows["sub-7"]["quality"], rows["sub-7"]["group"]) == ("left out", "red", None)
    pages = {name: row["page"] for name, row in rows.items() if row["page"]}
    assert pages == {name: f"report/case.html#{quote(name)}" for name in EXPLAINED}


def read_case(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("datxai.show(") and text.endswith(");\n")
    return json.loads(text[len("datxai.show(") : -3])


def unpack(packed):
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8).reshape(2, -1)
    return (low | high.astype(np.uint16) << 8).view(np.int16).reshape(GRID.shape) * packed["step"]


def test_pages_show_the_patients_own_sides_and_means_those_of_the_network(found):
    import nibabel as nib

    assert write_pages(found).means == {"true negative": "report/case.html#mean_TN"}
    for name in EXPLAINED:
        case = read_case(found.run.pages / f"{name}.js")
        (space,) = case["spaces"]
        data = nib.load(found.run.relevance_of(name)).get_fdata()
        expected = data[::-1] if CASES[name][3] else data
        assert np.abs(unpack(space["relevance"]) - expected).max() < 1.5e-3
        assert (space["sides"], case["id"]) == (["L", "R"], name)
    assert "labelled reduced: wrong" in case["html"]
    assert "sub 3&amp;" in case["html"]
    assert read_case(found.run.pages / "mean_TN.js")["spaces"][0]["sides"] == ["I", "C"]


def test_binding_ratios_are_held_against_the_normal_cases_of_other_people(found):
    rng, run = np.random.default_rng(1), found.run
    people, ratios = read_table(run.participants), read_table(run.sbr)
    for number in range(15):
        name = f"normal-{number}"
        subject = "sub-1" if number == 14 else name  # another scan of that person
        people.append({"participant_id": name, "age": 50 + number, "sex": "F", "label": 0, "subject": subject})
        ratios.append({"participant_id": name, **dict.fromkeys(SBR, 3.0 + rng.normal()), "mirrored": False})
    people = [{"subject": row["participant_id"]} | row for row in people]
    write_table(run.participants, people, list(people[0]))
    write_table(run.sbr, ratios, list(ratios[0]))
    values = [float(row["putamen_left"]) for row in ratios if row["participant_id"].startswith("normal")]
    ages, sub_1, sub_4 = [50 + number for number in range(15)], (60, 0.5), (63, 3.5)

    def expect(others, chosen, age):
        known = [*values[:chosen], *(value for _, value in others)], [*ages[:chosen], *(age for age, _ in others)]
        return NormalRange.fit(*known, ["F"] * chosen + ["M"] * len(others), shift=1.0).expect(age)

    expected = {
        "sub-1": expect([sub_4], 14, 60),
        "sub-2": expect([sub_1, sub_4], 15, None),  # whose age is not known
        "sub 3&": expect([sub_1, sub_4], 15, 62),
    }
    said = {
        "sub-1": "15 normal cases of the run, for a person of 60 years.",
        "sub-2": "17 normal cases of the run, for a person of any age.",
        "sub 3&": "17 normal cases of the run, for a person of 62 years.",
    }
    for case in found.predictions:
        if (name := case["participant_id"]) in EXPLAINED:
            page = describe_case(found, case)
            told, value = page.normal_range["putamen_left"], page.sbr["putamen_left"]
            known = expected[name].describe(value)
            assert told["terms"] == known["terms"]
            assert [told[key] for key in ("low", "high", "z", "n")] == pytest.approx(
                [known[key] for key in ("low", "high", "z", "n")]
            )
            assert page.normal_range_source.endswith(said[name])
    rows = {row["participant_id"]: row["z"] for row in tabulate_cases(found)}
    assert {name: rows[name] for name in expected} == pytest.approx(
        {name: its.score(found.sbr[name]["putamen_left"])[0] for name, its in expected.items()}
    )
    write_pages(found)
    low, high = expected["sub 3&"].limits
    assert f"({low:.2f} to {high:.2f})" in read_case(run.pages / "sub 3&.js")["html"]


def test_too_few_normal_cases_give_no_range(found):
    page = describe_case(found, found.predictions[0])
    assert not any(page.normal_range.values())
    assert page.normal_range_source == ""
    assert {row["z"] for row in tabulate_cases(found)} == {None}


def test_pages_of_an_earlier_cohort_go(found):
    found.run.pages.mkdir()
    (found.run.pages / "sub-99.js").write_text("old")
    write_pages(found)
    assert {path.name for path in found.run.pages.iterdir()} == {
        "case.html", "mean_TN.js", *(f"{name}.js" for name in EXPLAINED),
    }  # fmt: skip
    assert [row["participant_id"] for row in read_table(found.run.roi_relevance)] == EXPLAINED
