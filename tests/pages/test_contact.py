import numpy as np
import pytest

from datxai.pages.contact import PER_SHEET, plot_contact_sheet
from datxai.pages.content import RunPage
from datxai.pages.report import write_report
from datxai.pages.slices import Frame
from datxai.volume import Grid


def make_frame(slices):
    grid = Grid.axis_aligned((20, 24, slices), (8, 8, 8), (-76, -110, -60))
    brain, striatum = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    brain[2:18, 2:22] = True
    striatum[6:9, 12:16, slices // 2] = True
    return Frame(grid, striatum, brain)


@pytest.mark.parametrize(("slices", "pictures"), [(20, 2), (1, 1)])
def test_every_scan_is_drawn_and_a_doubtful_one_named(slices, pictures):
    frame = make_frame(slices)
    rng = np.random.default_rng(0)
    scans = [
        {"name": f"sub-{i:02d}", "verdict": verdict, "image": rng.random(frame.grid.shape)}
        for i, verdict in enumerate(["amber", *["green"] * 8])
    ]
    figure = plot_contact_sheet(frame, scans, "Scans 1 to 9")
    axes = figure.axes[0]
    assert len(axes.images) == pictures * len(scans)
    assert [text.get_text() for text in axes.texts] == ["sub-00 (amber)", *(f"sub-{i:02d}" for i in range(1, 9))]
    level = slices // 2
    np.testing.assert_allclose(axes.images[0].get_array(), scans[0]["image"][:, :, level].T)
    left, right, bottom, top = axes.images[0].get_extent()
    assert (right - left, top - bottom) == pytest.approx((160, 192))  # true to scale
    assert all(image.get_clim() == (0, 4) for image in axes.images)


def test_a_sheet_is_never_overfull():
    scan = {"name": "a", "verdict": "green", "image": np.zeros((20, 24, 20))}
    with pytest.raises(AssertionError):
        plot_contact_sheet(make_frame(20), [scan] * (PER_SHEET + 1))


def test_the_report_tells_how_many_scans_are_doubtful_and_names_them(tmp_path):
    rows = [
        {"participant_id": "sub-01", "verdict": "amber", "reason": "shear of the head 0.10", "similarity": 0.9},
        {"participant_id": "sub-02", "verdict": "green", "reason": "n/a", "similarity": 0.97},
        {"participant_id": "sub-03", "verdict": "red", "reason": "no head", "similarity": None},
    ]
    write_report(tmp_path / "report.html", RunPage(quality=rows))
    page = (tmp_path / "report.html").read_text()
    assert "1 of 3 scans green, 1 amber (included; please check), 1 red (left out)." in page
    assert "sub-01" in page
    assert "sub-02" not in page
    write_report(tmp_path / "report.html", RunPage(quality=rows[1:2]))
    assert "1 of 1 scans green. All measures" in (tmp_path / "report.html").read_text()
