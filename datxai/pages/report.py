"""Reports of a run and of a single scan, each a self-contained HTML page.

Next to the report of a run there is a folder with a viewer page and one small file per case, which that page loads. The
files are scripts, since a page opened from disk can load nothing else.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datxai.analysis.calibration import UNCERTAIN_SHARE
from datxai.files import write_text
from datxai.pages.content import CasePage, ExternalPage, MethodsPage, RunPage
from datxai.pages.style import COLOURS, GROUP_NAMES
from datxai.pages.tables import (
    LABEL_NAMES,
    MEASURES,
    arrange_table1,
    describe_output,
    format_cell,
    format_interval,
    format_measure,
    format_number,
    format_percent,
    format_probability,
    name_in_words,
    with_decimals,
)
from datxai.pages.viewer import pack, pack_colours, pack_space
from datxai.volume import Volume

CALIBRATED, SOFTMAX = "Calibrated probability of reduced", "Softmax output for reduced"
CLASSIFIERS = {
    "cnn": "Convolutional network",
    "roi_relevance": "Sign of the relevance in the ipsilateral putamen",
    "sbr": "Cutoff on the putaminal binding ratio",
    "cart": "Classification tree on binding ratios",
}
# Columns of the table of cases: title, number format, and the flag that the column explains.
COLUMNS = {
    "participant_id": {"title": "Scan"},
    "set": {"title": "Set"},
    "age": {"title": "Age, years", "numeric": with_decimals(0)},
    "sex": {"title": "Sex"},
    "label": {"title": "Label"},
    "predicted": {"title": "Called", "flag": "misclassified"},
    "probability": {"title": CALIBRATED, "numeric": format_probability, "flag": "uncertain"},
    "sbr": {"title": "SBR of the lower putamen", "numeric": with_decimals(2)},
    "z": {"title": "z of the lower putamen", "numeric": with_decimals(1)},
    "relevance": {"title": "Relevance in the ipsilateral putamen", "numeric": format_number},
    "consistent": {"title": "Map consistent", "flag": "inconsistent"},
    "quality": {"title": "Quality", "flag": "quality"},
    "similarity": {"title": "Similarity to the template", "numeric": with_decimals(3)},
    "reason": {"title": "Reason"},
}
EXTERNAL_MEASURES = MEASURES | {  # of the comparison of two cohorts
    "called_reduced": "Called reduced", "uncertain": "Uncertain", "unlike_training": "Unlike the training scans",
    "accuracy_of_the_rest": "Accuracy where not uncertain",
    "brier_raw": "Brier score as predicted", "brier_scaled": "Brier score with the temperature",
    "log_loss_raw": "Log loss as predicted", "log_loss_scaled": "Log loss with the temperature",
    "ece_raw": "Expected calibration error as predicted",
    "ece_scaled": "Expected calibration error with the temperature",
}  # fmt: skip
FLAGS = {
    "misclassified": "misclassified", "inconsistent": "map inconsistent", "uncertain": "uncertain",
    "quality": "quality not green",
}  # fmt: skip

AMONG_NORMALS = (
    "This scan (ring) among the normal cases of the run (points), by age: the line is what is expected of a normal "
    "case of this sex, the band the 95 % prediction interval. Points of the other sex are hollow."
)
PRIOR_CAPTION = " of this scan; in each pair this scan is above the earlier one, on the same slices and scales"

Page = CasePage | RunPage | MethodsPage | ExternalPage

CHART_COLOURS = 4096  # a picture with more shows slices: charts have a few hundred colours, slices many thousand
MAX_WEBP_SIDE = 16383  # pixels


def write_report(path: str | os.PathLike, page: RunPage) -> None:
    """Write the report of a run as one HTML page."""
    classifiers = page.metrics.get("classifiers") or {}
    columns = _name_columns(page.metrics.get("calibration") or {})
    _write(
        path,
        "report.html.j2",
        page,
        table1=arrange_table1(page.table1) if page.table1 else (),
        classifiers={name: classifiers[name] for name in (*CLASSIFIERS, *classifiers) if name in classifiers},
        classifier_names=CLASSIFIERS,
        measures=MEASURES,
        floor=_scale_start(classifiers),
        columns=columns,
        wrong=[_name_cells(case, columns) for case in page.misclassified or ()],
        flags=FLAGS,
        groups=COLOURS,
        group_names=GROUP_NAMES,
        uncertain_share=UNCERTAIN_SHARE,
    )


def write_benchmark_report(path: str | os.PathLike, page: MethodsPage) -> None:
    """Write the page that compares explanation methods."""
    _write(path, "benchmark.html.j2", page, label_names=LABEL_NAMES)


def write_external_report(path: str | os.PathLike, page: ExternalPage) -> None:
    """Write the page that compares a cohort with that of the run that was applied to it."""
    whole: dict[str, list[Mapping]] = {}
    groups: dict[str, dict[str, Mapping]] = {}  # the network's rows by group and measure
    for row in page.rows:
        if row["group"] == "all":
            whole.setdefault(row["classifier"], []).append(row)
        else:
            groups.setdefault(row["group"], {})[row["measure"]] = row
    variables = {"whole": whole, "groups": groups, "classifier_names": CLASSIFIERS, "measures": EXTERNAL_MEASURES}
    _write(path, "external.html.j2", page, **variables)


def _name_columns(calibration: Mapping) -> dict[str, dict]:
    """`COLUMNS`, where the probability is called calibrated only if a temperature could be determined."""
    title = CALIBRATED if calibration.get("determined", True) else SOFTMAX
    return {**COLUMNS, "probability": COLUMNS["probability"] | {"title": title}}


def _name_cells(case: Mapping, columns: Mapping[str, Mapping]) -> dict[str, object]:
    """A row with the titles and number formats of the table of cases."""
    cells = {}
    for name, value in case.items():
        column = columns.get(name, {})
        numeric = column.get("numeric")
        title = column.get("title", name_in_words(name).capitalize())
        cells[title] = value if value is None or numeric is None else numeric(value)
    return cells


def prepare() -> None:
    """Compile the templates of a case's page in advance, so that the first page does not wait for it."""
    for name in ("case.html.j2", "page.html.j2", "macros.html.j2", "case_body.html.j2", "viewer.html.j2"):
        _templates().get_template(name)


def write_case_report(path: str | os.PathLike, page: CasePage) -> None:
    """Write the report of one scan as one HTML page; `datxai.pages.document.write_case_pdf` has the same arguments."""
    spaces = _pack_spaces(page)
    maps = [
        [pack(volume.data) for volume in (other.relevance, other.own_relevance)[: len(spaces)]]
        for other in page.beside.values()
    ]
    earlier = [_pack_shared(page, page.prior.volumes)] if page.prior and spaces else None
    _write(
        path, "case.html.j2", page, **describe_case(page), spaces=spaces, maps_beside=maps, earlier=earlier,
        colours=spaces and pack_colours(),
    )  # fmt: skip


def write_case_data(path: str | os.PathLike, page: CasePage) -> None:
    """Write the data of one case for the page of `write_case_pages`."""
    spaces = _pack_spaces(page)
    html = _render("case_body.html.j2", page, **describe_case(page), spaces=spaces)
    case = {"id": page.case_id, "html": html, "spaces": spaces}
    write_text(path, f"datxai.show({json.dumps(case)});\n")


def write_case_pages(path: str | os.PathLike, cases: Sequence[str], report: str, radiological: bool = False) -> None:
    """Write the page that shows one at a time the cases that `write_case_data` wrote to ``<case>.js`` in its folder.

    ``cases`` are their names in browsing order; ``report`` is the address of the report of the run. ``path`` +
    ``#<case>`` opens the page at a case. ``radiological``: see `CasePage`.
    """
    _write(path, "cases.html.j2", cases=list(cases), report=report, colours=pack_colours(), radiological=radiological)


def render_upload_page(upload: int, files: int, model: str = "") -> str:
    """The page for dropping scans, each of at most ``upload`` bytes and ``files`` files; ``model`` is the name of the
    run or bundle that reads them."""
    return _render("upload.html.j2", limits={"upload": upload, "files": files}, model=model)


def describe_case(page: CasePage) -> dict:
    """Format the content of a case's page, for the page and the PDF.

    Returns ``heading``, ``subtitle``, ``tiles`` (rows with ``name, value, note, kind``), ``ratios`` (rows of the
    table of binding ratios), ``changes`` (rows of the table of changes since an earlier scan), ``sections`` (title to
    name and value), ``alt`` and ``caption`` of the picture, ``explained`` (the output that red speaks for) and
    ``others`` (the same for other explanations), and ``among_normals_caption``.
    """
    explained = describe_output(page.explanation.get("target"), page.predicted)
    sections = {
        "Subject": page.subject,
        "Regional relevance": page.relevance,
        "Explanation": page.explanation,
        "Quality control": page.quality,
        "Similarity to the training scans": _describe_shift(page.shift) if page.shift else {},
        **{
            f"Other explanation: {name}": {**other.explanation, **other.measures} for name, other in page.beside.items()
        },
        "Time, s": page.timings,
        "Provenance": page.provenance,
    }
    return {
        "heading": page.title or f"DAT-SPECT relevance: {page.case_id}",
        "subtitle": " \u00b7 ".join(filter(None, [page.case_id if page.title else None, page.created])),
        "tiles": [
            {"note": "", "kind": "", **tile}
            for make in (_tile_label, _tile_probability, _tile_ratio, _tile_relevance, _tile_quality)
            if (tile := make(page))
        ],
        "ratios": _tabulate_ratios(page.sbr, page.normal_range),
        "changes": [_format_change(name, change) for name, change in page.prior.change.items()] if page.prior else [],
        "sections": {title: pairs for title, pairs in sections.items() if pairs},
        "alt": "Uptake and relevance of the scan on the slices through the most relevant voxel",
        "caption": f"Uptake (top) and relevance over uptake (bottom) on the slices through the voxel of highest "
        f"absolute relevance{PRIOR_CAPTION if page.prior else ''}. Red speaks for {explained}, blue against it.",
        "explained": explained,
        "among_normals_caption": AMONG_NORMALS,
        "others": {
            name: describe_output(other.explanation.get("target"), page.predicted)
            for name, other in page.beside.items()
        },
    }


def _tile_label(page: CasePage) -> dict | None:
    if page.predicted is None:
        return None
    called, note = LABEL_NAMES[page.predicted], ""
    if page.label is not None:
        note = f"labelled {LABEL_NAMES[page.label]}: {'correct' if page.label == page.predicted else 'wrong'}"
    return {"name": "The network calls this scan", "value": called, "kind": called, "note": note}


def _tile_probability(page: CasePage) -> dict | None:
    if page.p_reduced is None:
        return None
    softmax = format_probability(page.p_reduced)
    if page.probability is None:
        return {"name": SOFTMAX, "value": softmax, "note": "not a calibrated probability"}
    return {"name": CALIBRATED, "value": format_probability(page.probability), "note": f"softmax output {softmax}"}


def _tile_ratio(page: CasePage) -> dict | None:
    sbr = page.sbr
    sides = {name: sbr[name] or 0.0 for name in ("putamen_left", "putamen_right") if name in sbr}
    lower = min(sides, key=lambda name: sides[name], default=None)
    if lower is None:
        return None
    expected = page.normal_range.get(lower)
    note = ""
    if expected:
        cells = _compare(lower, sides[lower], expected)
        note = f"{cells['is']} the expected {expected['low']:.2f} to {expected['high']:.2f}, z {cells['z']}"
    return {"name": "SBR of the lower putamen", "value": f"{sides[lower]:.2f}", "note": note}


def _tile_relevance(page: CasePage) -> dict | None:
    if "consistent" not in page.relevance:
        return None
    value = {True: "consistent", False: "inconsistent", None: "n/a"}[page.relevance["consistent"]]
    return {"name": "Relevance map", "value": value, "note": "with the mean map of the class called"}


def _tile_quality(page: CasePage) -> dict | None:
    verdict = page.quality.get("verdict")
    return {"name": "Quality of the registration", "value": verdict, "kind": verdict} if verdict else None


def _tabulate_ratios(sbr: Mapping[str, float | None], expected: Mapping[str, Mapping | None]) -> list[dict]:
    """Rows of binding ratios, with columns on the normal range if it is known for any region."""
    rows = []
    for name, value in sbr.items():
        row = {"region": name_in_words(name), "SBR": None if value is None else _format_ratio(name, value)}
        if any(expected.values()):
            row |= _compare(name, value, expected.get(name))
        rows.append(row)
    return rows


def _compare(name: str, value: float | None, limits: Mapping | None) -> dict:
    """The cells of a binding ratio on its normal range and its position in it."""
    if limits is None:
        return dict.fromkeys(("expected", "is", "z", "percentile"))
    low, median, high = (_format_ratio(name, limits[key]) for key in ("low", "median", "high"))
    cells: dict = {"expected": f"{median} ({low} to {high})"}
    if value is None:
        return cells | dict.fromkeys(("is", "z", "percentile"))
    position = "below" if value < limits["low"] else "above" if value > limits["high"] else "within"
    z, percentile = f"{limits['z']:.1f}".replace("-", "\u2212"), limits["percentile"]
    share = "< 0.1" if percentile < 0.1 else "> 99.9" if percentile > 99.9 else f"{percentile:.3g}"
    return cells | {"is": position, "z": z, "percentile": share}


def _format_change(name: str, change: Mapping) -> dict:
    """A row of the table of changes since an earlier scan."""

    def signed(value: float | None) -> str | None:
        return None if value is None else f"{value:+.1f}".replace("-", "\u2212")

    return {
        "region": name_in_words(name),
        "before": _format_ratio(name, change["before"]),
        "now": _format_ratio(name, change["now"]),
        "change, %": signed(change["percent"]),
        "a year, %": signed(change["percent_per_year"]),
        "limits, %": "{:+.0f} to {:+.0f}".format(*change["limits"]).replace("-", "\u2212"),
        "beyond": change["exceeds"],
    }


def _format_ratio(name: str, value: float) -> str:
    """A ratio with two decimals, or an asymmetry (by the end of its name), in percent, with one."""
    return f"{value:.{1 if name.endswith('asymmetry') else 2}f}".replace("-", "\u2212")


def _describe_shift(shift: Mapping) -> dict[str, str]:
    """Whether a scan is like the training scans, and each measure with its limit."""
    test_cases = shift["own"]
    return {
        "all in all": "unlike the training scans" if shift["marked"] else "like the training scans",
        **{
            name: f"{row['value']:.2f}, limit {row['limit']:.2f}{': beyond it' if row['marked'] else ''}"
            for name, row in shift["measures"].items()
        },
        "test cases called unlike": f"{test_cases['marked']} of {test_cases['n']}",
    }


def _pack_spaces(page: CasePage) -> list[dict]:
    """The spaces of the viewer; with an earlier scan only MNI space, which both scans share."""
    if page.volumes and page.prior:
        return [_pack_shared(page, page.volumes)]
    spaces = {"MNI space": (page.volumes, _label_outlines(page)), "the scan's own space": (page.own_volumes, None)}
    return [
        pack_space(name, volumes, outline, page.sides) for name, (volumes, outline) in spaces.items() if volumes
    ]


def _pack_shared(page: CasePage, volumes: Mapping[str, Volume]) -> dict:
    """MNI space with the volumes of one of two scans, on colour scales that fit both scans."""
    assert page.volumes and page.prior
    scans = (page.volumes, page.prior.volumes)
    tops = {kind: max(float(abs(each[kind].data).max()) for each in scans) for kind in ("spect", "relevance")}
    return pack_space("MNI space", volumes, _label_outlines(page), page.sides, tops)


def _label_outlines(page: CasePage) -> np.ndarray | None:
    """1 in the brain, 2 in the outlined regions in it; None if neither is known."""
    masks = [mask * label for mask, label in ((page.brain, 1), (page.outline, 2)) if mask is not None]
    return functools.reduce(np.maximum, masks) if masks else None


def _write(path: str | os.PathLike, template: str, page: Page | None = None, **variables: object) -> None:
    write_text(path, _render(template, page, **variables))


def _render(template: str, page: Page | None = None, **variables: object) -> str:
    return _templates().get_template(template).render({**(vars(page) if page else {}), **variables})


@functools.cache
def _templates():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # do not sort keys
    environment.filters |= {
        "percent": format_percent, "cell": format_cell, "words": name_in_words, "inline": _inline,
        "decimals": lambda value, n=3: "n/a" if value is None else with_decimals(n)(value),
        "measure": lambda value, name: format_measure(name, value),
        "interval": lambda limits, name: format_interval(name, limits),
    }  # fmt: skip
    return environment


def _inline(file: str | os.PathLike) -> dict:
    """A PNG file as a data URI, and its width on the page: half its pixels, for high-resolution screens and print.

    Charts become lossless WebP, slices WebP with a barely visible loss, at a fifth of the size.
    """
    from PIL import Image

    kind, data = "png", Path(file).read_bytes()
    with Image.open(file) as image:
        if max(image.size) <= MAX_WEBP_SIDE:
            options = {"quality": 90} if image.getcolors(CHART_COLOURS) is None else {"lossless": True, "quality": 30}
            packed = io.BytesIO()
            image.save(packed, "WEBP", **options)
            kind, data = "webp", packed.getvalue()
    return {"source": f"data:image/{kind};base64,{base64.b64encode(data).decode()}", "width": image.width // 2}


def _scale_start(classifiers: Mapping[str, Mapping]) -> float:
    """The start of the axis of intervals: the lowest limit, rounded down to a tenth."""
    limits = [
        values[f"{name}_ci95"][0] for values in classifiers.values() for name in MEASURES if values.get(f"{name}_ci95")
    ]
    return min(int(10 * min(limits, default=0.0)) / 10, 0.9)
