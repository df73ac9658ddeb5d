"""The PDF of a scan says what its page says, and all of it is on the paper."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

import datxai
from datxai.pages.content import CasePage, PriorScan
from datxai.pages.document import MARGIN, draw_case, write_case_pdf
from datxai.pages.report import write_case_report
from datxai.volume import Volume, save


@pytest.fixture
def content(tmp_path):
    Image.fromarray(np.full((300, 720, 3), 200, np.uint8)).save(tmp_path / "case.png")
    sections = ("subject", "relevance", "explanation", "quality", "provenance")
    return CasePage(
        case_id=r"a $name$ \of_{any} kind & <b>",
        predicted=1,
        p_reduced=0.9731,
        probability=0.8412,
        warnings=["Similarity is low. " * 20],
        picture=tmp_path / "case.png",
        sbr={"putamen_left": 0.61, "putamen_right": 2.8, "caudate_left": 4.1, "caudate_right": 2.0},
        normal_range={
            **{
                name: {"low": 1.5, "median": 2.25, "high": 3.0, "z": z, "percentile": percentile}
                for name, z, percentile in (
                    ("putamen_left", -4.06, 0.01), ("putamen_right", 1.23, 89.07), ("caudate_left", 5.07, 99.99),
                )
            },
            "caudate_right": None,
        },
        normal_range_source="Regression on the age of 120 normal cases.",
        **{name: {f"{name}_{number}": number + 0.125 for number in range(12)} for name in sections},
        timings={"register": 0.65},
        ledger=[{"layer": f"conv{number}", "absorbed": -1.5 - number} for number in range(30)],
    )  # fmt: skip


def texts_of(pages):
    return [text for page in pages for text in page.findobj(Text) if text.get_text()]


def test_everything_lies_within_the_margins_and_nothing_overlaps(content):
    pages = draw_case(content)
    assert len(pages) >= 2
    for page in pages:
        width, height = page.canvas.get_width_height()
        boxes = [text.get_window_extent() for text in texts_of([page])]
        assert all(box.x1 <= width - 0.9 * MARGIN * page.dpi and box.y0 > 0 and box.y1 < height for box in boxes)
        assert not [
            (a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(0.9, 0.6).overlaps(b.shrunk(0.9, 0.6))
        ]


def test_the_numbers_are_those_of_the_page(content, tmp_path):
    write_case_report(tmp_path / "case.html", content)
    page = (tmp_path / "case.html").read_text()
    said = {text.get_text() for text in texts_of(draw_case(content))}
    held_against = ("2.25 (1.50 to 3.00)", "below", "within", "above", "\u22124.1", "89.1")
    for cell in ("0.841", *held_against, "0.65", "\u221230.5", "11.1"):
        assert cell in said
        assert cell in page
    assert any("Research use only, not diagnostic" in text for text in said)
    assert any("softmax output 0.973" in text for text in said)


def test_an_earlier_scan_and_the_cloud_of_normal_cases_are_there_too(content, tmp_path):
    change = {
        "putamen_left": {"before": 1.0, "now": 0.6, "percent": -40.0, "percent_per_year": -16.0, "limits": [-26, 35],
                         "exceeds": True},
        "putamen_right": {"before": -0.1, "now": 0.2, "percent": None, "percent_per_year": None, "limits": [-26, 35],
                          "exceeds": None},
    }  # fmt: skip
    prior = PriorScan(title="old, 2.5 years before", volumes={}, change=change, source="Limits: so and so.")
    page = replace(content, prior=prior, among_normals=content.picture)
    write_case_report(tmp_path / "case.html", page)
    written = (tmp_path / "case.html").read_text()
    said = {text.get_text() for text in texts_of(draw_case(page))}
    for cell in ("\u221240.0", "\u221216.0", "\u221226 to +35", "\u22120.10", "yes", "Limits: so and so."):
        assert cell in said
        assert cell in written
    assert "Change since the earlier scan: old, 2.5 years before" in said
    assert written.count("<figure>") == 2


def test_a_picture_taller_than_a_page_is_shown_whole(content, tmp_path):
    """As of two scans on a grid of one slice."""
    Image.fromarray(np.full((1100, 330, 3), 200, np.uint8)).save(tmp_path / "tall.png")
    pages = draw_case(replace(content, picture=tmp_path / "tall.png"))
    ((axes,),) = [page.axes for page in pages if page.axes]
    box = axes.get_position()
    assert 0 < box.y0 < box.y1 < 1
    ratio = box.height * axes.figure.get_figheight() / (box.width * axes.figure.get_figwidth())
    assert ratio == pytest.approx(1100 / 330)


def test_the_file_is_a_pdf_with_its_title(content, tmp_path):
    write_case_pdf(tmp_path / "case.pdf", content)
    data = (tmp_path / "case.pdf").read_bytes()
    assert data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF")
    assert data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") == len(draw_case(content))
    assert [path.name for path in tmp_path.glob("*.pdf")] == ["case.pdf"]


def test_a_decision_alone_is_enough():
    (page,) = draw_case(CasePage(case_id="sub-1", predicted=0, p_reduced=0.02))
    assert "normal" in [text.get_text() for text in texts_of([page])]


def test_the_how_to_runs(tmp_path, monkeypatch):
    """The example in docs/pages.md."""
    guide = (Path(datxai.__file__).parents[1] / "docs" / "pages.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name in ("scan", "map"):
        save(Volume(np.arange(24.0).reshape(2, 3, 4), np.eye(4)), f"{name}.nii.gz")
    exec(re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1], {})
    assert "my scan" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "page.pdf").stat().st_size > 1000
