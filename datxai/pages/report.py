"""The report of a run and of a single scan: one HTML page each that holds everything it shows.

Beside the report of a run lies a folder with a viewer page and one small file per case, which that page loads. They
are scripts, since a page opened from disk may load those and nothing else.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from datxai.analysis.calibration import UNCERTAIN_SHARE
from datxai.files import write_text
from datxai.pages.content import CasePage, MethodsPage, RunPage
from datxai.pages.style import COLOURS, GROUP_NAMES
from datxai.pages.tables import LABEL_NAMES, MEASURES, arrange_table1, format_cell, format_percent
from datxai.pages.viewer import pack, pack_colours, pack_space

CLASSIFIERS = {
    "cnn": "Convolutional network",
    "roi_relevance": "Sign of the relevance in the ipsilateral putamen",
    "sbr": "Cutoff on the putaminal binding ratio",
    "cart": "Classification tree on binding ratios",
}
# of the table of cases: title, options a number is written, and the flag of which it is the reason
COLUMNS = {
    "participant_id": {"title": "Scan"},
    "set": {"title": "Set"},
    "age": {"title": "Age, years", "numeric": "%.0f"},
    "sex": {"title": "Sex"},
    "label": {"title": "Label"},
    "predicted": {"title": "Called", "flag": "misclassified"},
    "probability": {"title": "Calibrated probability of reduced", "numeric": "%.3f", "flag": "uncertain"},
    "sbr": {"title": "SBR of the lower putamen", "numeric": "%.2f"},
    "relevance": {"title": "Relevance in the ipsilateral putamen", "numeric": "%.3g"},
    "consistent": {"title": "Map consistent", "flag": "inconsistent"},
    "quality": {"title": "Quality", "flag": "quality"},
    "similarity": {"title": "Similarity to the template", "numeric": "%.3f"},
    "reason": {"title": "Reason"},
}
FLAGS = {
    "misclassified": "misclassified", "inconsistent": "map inconsistent", "uncertain": "uncertain",
    "quality": "quality not green",
}  # fmt: skip

Page = CasePage | RunPage | MethodsPage

CHART_COLOURS = 4096  # a picture with more is one of slices: charts have some hundred colours, slices many thousand
LONGEST_WEBP = 16383  # pixels of a side


def write_report(path: str | os.PathLike, page: RunPage) -> None:
    """Write the report of a run as one HTML page."""
    classifiers = page.metrics.get("classifiers") or {}
    _write(
        path,
        "report.html.j2",
        page,
        table1=arrange_table1(page.table1) if page.table1 else (),
        classifiers={name: classifiers[name] for name in (*CLASSIFIERS, *classifiers) if name in classifiers},
        classifier_names=CLASSIFIERS,
        measures=MEASURES,
        floor=_scale_start(classifiers),
        columns=COLUMNS,
        flags=FLAGS,
        groups=COLOURS,
        group_names=GROUP_NAMES,
        uncertain_share=UNCERTAIN_SHARE,
    )


def write_benchmark_report(path: str | os.PathLike, page: MethodsPage) -> None:
    """Write the page that shows ways to explain side by side."""
    _write(path, "benchmark.html.j2", page, label_names=LABEL_NAMES)


def prepare() -> None:
    """Compile now the templates of a case's page, which the first one would else wait for."""
    for name in ("case.html.j2", "page.html.j2", "macros.html.j2", "case_body.html.j2", "viewer.html.j2"):
        _templates().get_template(name)


def write_case_report(path: str | os.PathLike, page: CasePage) -> None:
    """Write the report of one scan as one HTML page; `datxai.pages.document.write_case_pdf` takes the same."""
    spaces = _pack_spaces(page)
    maps = [
        [pack(volume.data) for volume in (other.relevance, other.own_relevance)[: len(spaces)]]
        for other in page.beside.values()
    ]
    _write(
        path, "case.html.j2", page, **describe_case(page), spaces=spaces, maps_beside=maps,
        colours=spaces and pack_colours(),
    )  # fmt: skip


def write_case_data(path: str | os.PathLike, page: CasePage) -> None:
    """Write what the page of `write_case_pages` shows of one case."""
    spaces = _pack_spaces(page)
    html = _render("case_body.html.j2", page, **describe_case(page), spaces=spaces)
    case = {"id": page.case_id, "html": html, "spaces": spaces}
    write_text(path, f"datxai.show({json.dumps(case)});\n")


def write_case_pages(path: str | os.PathLike, cases: Sequence[str], report: str) -> None:
    """Write the page that shows, one at a time, what `write_case_data` wrote to ``<case>.js`` beside it.

    ``cases`` are their names in the order in which one leafs through them; ``report`` is the address of the report
    of the run. ``path`` + ``#<case>`` opens the page at a case.
    """
    _write(path, "cases.html.j2", cases=list(cases), report=report, colours=pack_colours())


def render_upload_page(upload: int, files: int) -> str:
    """The page where scans are dropped in, of which one may take ``upload`` bytes in so many ``files``."""
    return _render("upload.html.j2", limits={"upload": upload, "files": files})


def describe_case(page: CasePage) -> dict:
    """The content of a case's page in the words and numbers of page and PDF.

    Returns ``heading``, ``subtitle``, ``tiles`` (rows with ``name, value, note, kind``), ``ratios`` (rows of the
    table of binding ratios), ``sections`` (title to name and value), ``alt`` and ``caption`` of the picture, and
    ``explained``, what red speaks for.
    """
    explained = _describe_output(page.explanation.get("target"), page.predicted)
    sections = {
        "Subject": page.subject,
        "Regional relevance": page.relevance,
        "Explanation": page.explanation,
        "Quality control": page.quality,
        **{f"Beside it: {name}": {**other.explanation, **other.measures} for name, other in page.beside.items()},
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
        "sections": {title: pairs for title, pairs in sections.items() if pairs},
        "alt": "Uptake and relevance of the scan on the slices through the most relevant voxel",
        "caption": "Uptake (top) and relevance over uptake (bottom) on the slices through the voxel of highest "
        f"absolute relevance. Red speaks for {explained}, blue against it.",
        "explained": explained,
        "others": {
            name: _describe_output(its.explanation.get("target"), page.predicted) for name, its in page.beside.items()
        },
    }


def _describe_output(target: object, predicted: int | None) -> str:
    """The output that a map of this target explains."""
    called = "the class called" if predicted is None else LABEL_NAMES[predicted]
    words = {
        "predicted": f"{called} (the class called)" if predicted is not None else called,
        "normal": "normal",
        "reduced": "reduced",
        "label": "the class of the label",
        "difference": "reduced rather than normal",
        "decision": f"{called} rather than the other class",
    }
    return words.get(str(target), "the explained output")


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
    softmax = format_percent(page.p_reduced)
    if page.probability is None:
        return {"name": "Softmax output for reduced", "value": softmax, "note": "not a calibrated probability"}
    note = f"softmax output {softmax}"
    return {"name": "Calibrated probability of reduced", "value": format_percent(page.probability), "note": note}


def _tile_ratio(page: CasePage) -> dict | None:
    sbr = page.sbr
    sides = (name for name in ("putamen_left", "putamen_right") if name in sbr)
    lower = min(sides, key=lambda name: sbr[name], default=None)
    if lower is None:
        return None
    expected = page.normal_range.get(lower)
    where = _compare(sbr[lower], expected)["is"]
    note = f"{where} the expected {expected['low']:.2f} to {expected['high']:.2f}" if expected else ""
    return {"name": "SBR of the lower putamen", "value": f"{sbr[lower]:.2f}", "note": note}


def _tile_relevance(page: CasePage) -> dict | None:
    if "consistent" not in page.relevance:
        return None
    value = {True: "consistent", False: "inconsistent", None: "n/a"}[page.relevance["consistent"]]
    return {"name": "Relevance map", "value": value, "note": "with the mean map of the class called"}


def _tile_quality(page: CasePage) -> dict | None:
    verdict = page.quality.get("verdict")
    return {"name": "Quality of the registration", "value": verdict, "kind": verdict} if verdict else None


def _tabulate_ratios(sbr: Mapping[str, float], expected: Mapping[str, Mapping | None]) -> list[dict]:
    """The binding ratios, with what is expected of a normal case where that is known for any region."""
    rows = []
    for name, value in sbr.items():
        row = {"region": _words(name), "SBR": f"{value:.2f}"}
        if any(expected.values()):
            row |= _compare(value, expected.get(name))
        rows.append(row)
    return rows


def _compare(value: float, limits: Mapping[str, float] | None) -> dict:
    """The cells of a binding ratio that say what is expected."""
    if limits is None:
        return {"expected": None, "is": None}
    low, median, high = (limits[name] for name in ("low", "median", "high"))
    where = "below" if value < low else "above" if value > high else "within"
    return {"expected": f"{median:.2f} ({low:.2f} to {high:.2f})", "is": where}


def _pack_spaces(page: CasePage) -> list[dict]:
    named = {"MNI space": (page.volumes, page.outline), "the scan's own space": (page.own_volumes, None)}
    return [
        pack_space(name, volumes, outline, page.sides) for name, (volumes, outline) in named.items() if volumes
    ]


def _write(path: str | os.PathLike, template: str, page: Page | None = None, **more: object) -> None:
    write_text(path, _render(template, page, **more))


def _render(template: str, page: Page | None = None, **more: object) -> str:
    return _templates().get_template(template).render({**(vars(page) if page else {}), **more})


@functools.cache
def _templates():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # keys in their own order
    environment.filters |= {
        "percent": format_percent, "cell": format_cell, "words": _words, "inline": _inline,
    }  # fmt: skip
    return environment


def _inline(file: str | os.PathLike) -> dict:
    """A PNG file as a data URI, and the width it is shown with: half its pixels, for dense screens and for print.

    WebP packs charts without loss, and slices with one that can hardly be seen, in a fifth of the bytes.
    """
    from PIL import Image

    kind, data = "png", Path(file).read_bytes()
    with Image.open(file) as image:
        if max(image.size) <= LONGEST_WEBP:
            options = {"quality": 90} if image.getcolors(CHART_COLOURS) is None else {"lossless": True, "quality": 30}
            packed = io.BytesIO()
            image.save(packed, "WEBP", **options)
            kind, data = "webp", packed.getvalue()
    return {"source": f"data:image/{kind};base64,{base64.b64encode(data).decode()}", "width": image.width // 2}


def _scale_start(classifiers: Mapping[str, Mapping]) -> float:
    """Where the bars of the intervals begin: the lowest limit of all, rounded down to a tenth."""
    limits = [
        values[f"{name}_ci95"][0] for values in classifiers.values() for name in MEASURES if values.get(f"{name}_ci95")
    ]
    return min(int(10 * min(limits, default=0.0)) / 10, 0.9)


def _words(name: str) -> str:
    """A column name as words."""
    return name.replace("_", " ")
