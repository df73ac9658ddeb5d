import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from datxai.analysis.classification import summarise
from datxai.pages.content import CasePage, RunPage
from datxai.pages.report import write_case_report, write_report

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, text, and whether the tags nest."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def attributes(self, tag, name):
        return [attributes.get(name) for found, attributes in self.tags if found == tag]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "figure.png"
    Image.fromarray(np.full((900, 2160, 3), 200, np.uint8)).save(path, dpi=(300, 300))
    return path


@pytest.fixture
def content(picture):
    labels, predicted = [0] * 150 + [1] * 138, [0] * 148 + [1] * 2 + [0] * 10 + [1] * 128
    figures = summarise(labels, predicted, predicted)
    row = {"set": "whole", "label": 0, "sex": "F", "n": 3, "age_mean": 60.0, "age_sd": 1.0}
    return RunPage(
        title=f"Title {HOSTILE}",
        created="2026-01-01",
        data=f"phantom {HOSTILE}",
        metrics={
            "classifiers": {
                "sbr": {"cutoff": 0.93, **figures}, "cart": {"tree": f"|--- {HOSTILE}", **figures}, "cnn":
                figures,
            }, "peaks": {"n": 288, "inside": 250, "near": 287, "near_mm": 4.0, "median_distance_mm": 0.0},
            "heat_map_peak": {"x": -26.0, "y": 2.0, "z": -0.0, "value": 1.0, "distance_mm": 2.5, "inside":
            False}, "mean_map_correlation": -0.83, "target": HOSTILE, "attribution": {"method": "lrp",
            "start": "logit"}, "composite": HOSTILE,
        },
        figures=dict.fromkeys(("fig3", "fig3_all_slices", "fig4", "fig5", "training", "sbr"), picture),
        table1=[row],
        misclassified=[{"participant_id": HOSTILE, "p_reduced": 0.3, "consistent": False}],
        skipped=[{"participant_id": HOSTILE, "reason": f"no file {HOSTILE}"}],
        ledger=[{"layer": HOSTILE, "relevance_in": 1.0}],
        config=f"seed: {HOSTILE}",
        manifest={
            HOSTILE: {
                "finished": HOSTILE, "wall_time_s": 1.5, "fingerprint": "ab" * 32, "git_revision": None,
                "versions": {HOSTILE: HOSTILE},
            }
        },
    )  # fmt: skip


def test_report_stands_alone_and_escapes_everything(tmp_path, content):
    write_report(tmp_path / "report.html", content)
    page = Page(tmp_path / "report.html")
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    assert page.text.count(HOSTILE) >= 12
    sources = page.attributes("img", "src")
    assert len(sources) == 6
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert all(len(alt) > 20 for alt in page.attributes("img", "alt"))
    assert all(link.startswith("#") for link in page.attributes("a", "href"))
    assert not re.search(r"url\(|https?://", (tmp_path / "report.html").read_text(encoding="utf-8"))


def paint(height, width, smooth):
    """A picture (height, width, RGB) of two colours, or of many that change slowly, as a slice has."""
    x, y = np.mgrid[:height, :width]
    if not smooth:
        return np.stack([255 * (x // 10 % 2), 0 * x, 0 * x], axis=-1).astype(np.uint8)
    waves = [np.sin(x / 9) * np.cos(y / 7), np.sin(x / 5 + y / 8), np.cos(y / 6)]
    return (127 * (np.stack(waves, axis=-1) + 1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "kind", "share", "tolerance"),
    [
        (paint(300, 400, smooth=False), "webp", 0.8, 0),
        (paint(300, 400, smooth=True), "webp", 0.25, 2.5),
        (paint(17_000, 4, smooth=False), "png", 1.0, 0),  # longer than WebP can hold
    ],
)
def test_pictures_are_packed_small_and_shown_at_half_their_pixels(tmp_path, pixels, kind, share, tolerance):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_case_report(tmp_path / "page.html", CasePage(case_id="a", picture=tmp_path / "a.png"))
    (image,) = [attributes for tag, attributes in Page(tmp_path / "page.html").tags if tag == "img"]
    head, data = image["src"].split(";base64,")
    data = base64.b64decode(data)
    with Image.open(io.BytesIO(data)) as shown:
        difference = np.abs(np.asarray(shown.convert("RGB"), float) - pixels)
    assert head == f"data:image/{kind}"
    assert len(data) <= share * (tmp_path / "a.png").stat().st_size
    assert difference.mean() <= tolerance
    assert image["width"] == str(pixels.shape[1] // 2)


def test_report_says_the_figures(tmp_path, content):
    write_report(tmp_path / "report.html", content)
    text = " ".join(Page(tmp_path / "report.html").text.split())
    assert "95.8 % (92.9 to 97.6)" in text  # Wilson interval of 276 of 288
    assert "Research use only, not diagnostic" in text
    assert "x = \u221226, y = 2, z = 0 mm; 2.5 mm from the ipsilateral striatum" in text
    assert "inside the striatum in 250 of 288 cases, at most 4 mm from it in 287" in text
    assert "bars run from 80 to 100 %" in text  # the lowest limit of all is about 0.87
    assert "p-value" not in text


def test_areas_under_curves_are_no_percentages(tmp_path, content):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=40)
    found = summarise(labels, labels, np.clip(labels * 0.4 + rng.uniform(0, 0.6, 40), 0, 1))
    write_report(tmp_path / "report.html", replace(content, metrics={**content.metrics, "classifiers": {"cnn": found}}))
    text = " ".join(Page(tmp_path / "report.html").text.split())
    low, high = found["auc_ci95"]
    assert text.count(f"{found['auc']:.3f}") >= 2  # tile and table
    assert f"95 % interval {low:.3f} to {high:.3f}" in text
    assert f"{100 * found['auc']:.1f} %" not in text.replace("100.0 %", "")


def test_links_lead_to_sections(tmp_path, content):
    write_report(tmp_path / "report.html", content)
    page = Page(tmp_path / "report.html")
    targets = page.attributes("section", "id")
    assert [link.removeprefix("#") for link in page.attributes("a", "href")] == targets
    assert len(targets) == 9


def test_report_of_a_faultless_run(tmp_path, content):
    write_report(tmp_path / "report.html", replace(content, misclassified=[], skipped=[]))
    text = Page(tmp_path / "report.html").text
    assert "Every test case was classified correctly." in text
    assert "No scan was skipped." in text


def test_report_with_a_class_missing_from_the_test_set(tmp_path, content):
    metrics = {**content.metrics, "classifiers": {"cnn": summarise([0, 0], [0, 0], [0.1, 0.2])}}
    write_report(tmp_path / "report.html", replace(content, metrics=metrics))
    assert "n/a" in Page(tmp_path / "report.html").text


def test_report_of_nothing_yet(tmp_path):
    write_report(tmp_path / "report.html", RunPage())
    page = Page(tmp_path / "report.html")
    assert page.attributes("section", "id") == []
    assert "DAT-SPECT" in page.text


def test_case_report(tmp_path, picture):
    write_case_report(
        tmp_path / "case.html",
        CasePage(
            case_id=HOSTILE,
            predicted=1,
            p_reduced=0.9731,
            warnings=[f"Similarity is low {HOSTILE}"],
            picture=picture,
            sbr={"putamen_left": 0.61, "putamen_right": 0.8},
            relevance={"putamen_ipsilateral": 1.2e-3, "consistent": False},
            explanation={"target": HOSTILE},
            ledger=[{"layer": "conv1", "relevance_in": 1.0}],
        ),
    )
    page = Page(tmp_path / "case.html")
    text = " ".join(page.text.split())
    assert "script" not in [tag for tag, _ in page.tags]
    assert text.count(HOSTILE) >= 4
    for said in ("calls this scan reduced", "0.973", "0.61", "inconsistent", "Research use only"):
        assert said in text


def test_case_report_needs_no_more_than_the_decision(tmp_path):
    write_case_report(tmp_path / "case.html", CasePage(case_id="sub-1", predicted=0, p_reduced=0.02))
    assert "calls this scan normal" in " ".join(Page(tmp_path / "case.html").text.split())


SHIFT = {
    "marked": True,
    "measures": {
        "noise": {"value": 7.651, "limit": 3.034, "percentile": 100, "marked": True},
        HOSTILE: {"value": 1.0, "limit": 2.0, "percentile": 40, "marked": False},
    },
    "own": {"marked": 2, "n": 53, "rate": 2 / 53, "ci95": [0.01, 0.128]},
}


def test_case_report_says_whether_a_scan_is_like_the_training_scans(tmp_path):
    page = CasePage(case_id="sub-1", predicted=0, p_reduced=0.02, shift=SHIFT)
    write_case_report(tmp_path / "case.html", page)
    text = " ".join(Page(tmp_path / "case.html").text.split())
    for said in ("unlike the training scans", "7.65, limit 3.03: beyond it", "1.00, limit 2.00", "2 of 53", HOSTILE):
        assert said in text
    assert "1.00, limit 2.00: beyond" not in text
    write_case_report(tmp_path / "case.html", replace(page, shift=None))
    assert "Similarity to the training scans" not in Page(tmp_path / "case.html").text


def test_report_says_how_often_test_cases_are_unlike_the_training_scans(tmp_path, content):
    row = {"limit": 3.034, "median": 0.73, "p95": 1.92, "marked": 2}
    shift = {"judged": True, "note": HOSTILE, "level": 0.05, **SHIFT["own"], "measures": {"noise": row}}
    write_report(tmp_path / "report.html", replace(content, metrics={**content.metrics, "shift": shift}))
    page = Page(tmp_path / "report.html")
    text = " ".join(page.text.split())
    assert "shift" in page.attributes("section", "id") and HOSTILE in text
    assert "Of the 53 test cases, which were not used to set the limits, 2 exceed one, 3.8 % (1.0 to 12.8)." in text
    cells = "<td>0.73</td><td>1.92</td><td>3.03</td><td>2</td>"
    assert f'<th scope="row">noise</th>{cells}' in (tmp_path / "report.html").read_text()
    few = {"judged": False, "note": "12 training cases are too few.", "level": 0.05, "measures": {}}
    write_report(tmp_path / "report.html", replace(content, metrics={**content.metrics, "shift": few}))
    text = " ".join(Page(tmp_path / "report.html").text.split())
    assert "12 training cases are too few." in text and "which were not used to set the limits" not in text


@pytest.mark.parametrize(("ratio", "word"), [(0.94, "below"), (1.5, "within"), (2.3, "above")])
def test_the_tile_says_where_the_lower_ratio_lies(tmp_path, ratio, word):
    limits = {"low": 1.2, "median": 1.7, "high": 2.18, "n": 60, "terms": ["age"], "z": -3.1, "percentile": 0.1}
    sides = {"putamen_left": ratio + 0.1, "putamen_right": ratio}
    content = CasePage(case_id="sub-1", predicted=0, p_reduced=0.1, sbr=sides,
                       normal_range=dict.fromkeys(sides, limits))  # fmt: skip
    write_case_report(tmp_path / "case.html", content)
    text = " ".join(Page(tmp_path / "case.html").text.split())
    assert f"SBR of the lower putamen {ratio:.2f}{word} the expected 1.20 to 2.18, z " in text
