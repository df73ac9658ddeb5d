"""Reports and pages by axe-core, the rules of WCAG 2 that a program can check, in light and dark, wide and narrow."""

import pytest

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
    for name, part in (("report.html", ""), ("report/case.html", f"#{case}")):
        page = open_page((folder / name).as_uri() + part, width=width, color_scheme=colour_scheme)
        assert violations(page) == [], name


def test_a_fault_is_found(tmp_path, open_page):
    (tmp_path / "bad.html").write_text("<!doctype html><html><body><img src='data:,'><input></body></html>")
    assert {"image-alt", "label", "html-has-lang"} <= {rule for rule, _ in violations(open_page(tmp_path / "bad.html"))}
