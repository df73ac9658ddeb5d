"""Reports and pages by axe-core, the rules of WCAG 2 that a program can check, in light and dark, wide and narrow."""

import pytest
from test_browser import make_cases

from datxai.pages.content import RunPage
from datxai.pages.report import write_report

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")


def violations(page):
    """What axe-core finds wrong: rule, and the first element that breaks it."""
    found = axe.Axe().run(page).response
    assert found["passes"], "axe-core has looked at nothing"
    return [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]]


@pytest.mark.parametrize("colour_scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_and_a_case_of_a_run(finished, open_page, colour_scheme, width):
    folder = finished[0]
    case = next((folder / "report").glob("sub-*.js")).stem
    for address in ("report.html", f"report/case.html#{case}"):
        page = open_page((folder / address.partition("#")[0]).as_uri() + address[address.find("#") :] * ("#" in address),
                         width=width, color_scheme=colour_scheme)  # fmt: skip
        assert violations(page) == [], address


def test_the_plot_of_a_cohort_has_points_that_can_be_reached(tmp_path, open_page):
    write_report(tmp_path / "report.html", RunPage(cases=make_cases(30)))
    page = open_page(tmp_path / "report.html")
    assert page.locator("#cohort svg a, svg[role=group] a").count() > 0
    assert violations(page) == []


def test_a_fault_is_found(tmp_path, open_page):
    (tmp_path / "bad.html").write_text("<!doctype html><html><body><img src='data:,'><input></body></html>")
    assert {"image-alt", "label", "html-has-lang"} <= {rule for rule, _ in violations(open_page(tmp_path / "bad.html"))}
