"""The page of internal and external test: every number that it is given, as people read numbers."""

import re

from datxai.pages.content import ExternalPage
from datxai.pages.report import write_external_report


def row(measure, internal, external, difference, p, group="all", classifier="cnn"):
    interval = {} if None in (internal, external) else {"internal_low": 0.7, "internal_high": 0.9}
    told = {"difference": difference, "difference_low": None, "difference_high": None, "p": p, "test": None}
    return {
        "group": group, "classifier": classifier, "measure": measure, "internal": internal, "internal_low": None,
        "internal_high": None, "internal_n": 40, "external": external, "external_low": None, "external_high": None,
        "external_n": 23, **told, **interval,
    }  # fmt: skip


def write(path, subgroups=True):
    rows = [
        row("accuracy", 0.875, 0.8, -0.075, 0.42), row("auc", 0.96, None, None, None),
        row("brier_raw", 0.1234, 0.2, 0.0766, 0.0004), row("accuracy", 0.5, 0.25, -0.25, 1.0, classifier="sbr"),
    ]  # fmt: skip
    of_site = [
        row(name, 0.9, 0.6, -0.3, 0.03, "site: <B>") for name in ("accuracy", "sensitivity", "specificity", "auc")
    ]
    page = ExternalPage(
        created="today", data="folder, 23 scans", run="clinic", applied={"fingerprint": "abc123"}, report="report.html",
        theirs="../clinic/report.html", facts={"Scans": "23, 20 with a label"}, remarks=["No <scan> has a label."],
        rows=rows + of_site * subgroups, half_width=0.2, temperature=1.5,
    )  # fmt: skip
    write_external_report(path, page)
    return path.read_text()


def cells(html, heading):
    """The texts of the first table after a heading, row by row."""
    table = html.partition(heading)[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    parts = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in rows]
    return [[re.sub(r"<[^>]+>", " ", cell).split() for cell in line] for line in parts]


def test_each_number_stands_in_its_place(tmp_path):
    html = write(tmp_path / "external.html")
    _, accuracy, auc, brier = cells(html, "<h3>Convolutional network</h3>")
    assert accuracy[1:7] == [
        ["87.5", "%", "70.0", "to", "90.0"], ["40"], ["80.0", "%"], ["23"], ["−7.5", "%"], ["0.420"],
    ]  # fmt: skip
    assert auc[3] == auc[5] == auc[6] == ["n/a"]
    assert (brier[1][0], brier[5], brier[6]) == ("0.123", ["0.077"], ["&lt;", "0.001"])
    assert cells(html, "<h3>Cutoff on the putaminal binding ratio</h3>")[1][5] == ["−25.0", "%"]
    _, site = cells(html, "<h2>Subgroups</h2>")
    assert site[:3] == [["site:", "&lt;B&gt;"], ["23"], ["60.0", "%"]] and site[-2:] == [["−30.0", "%"], ["0.030"]]
    assert (
        "No &lt;scan&gt; has a label." in html and "0.300 to 0.700" in html and 'href="../clinic/report.html"' in html
    )


def test_without_subgroups_none_are_named(tmp_path):
    assert "Subgroups" not in write(tmp_path / "external.html", subgroups=False)
