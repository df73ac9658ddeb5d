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
from datxai.analysis.style import COLOURS, GROUP_NAMES
from datxai.analysis.tables import LABEL_NAMES, MEASURES, arrange_table1, format_cell, format_percent
from datxai.analysis.viewer import pack_colours, pack_space
from datxai.files import write_text

CLASSIFIERS = {
    "cnn": "Convolutional network",
    "roi_relevance": "Sign of the relevance in the ipsilateral putamen",
    "sbr": "Cutoff on the putaminal binding ratio",
    "cart": "Classification tree on binding ratios",
}
# of the table of cases: title, how a number is written, and the flag of which it is the reason
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

CHART_COLOURS = 4096  # a picture with more is one of slices: charts have some hundred colours, slices many thousand
LONGEST_WEBP = 16383  # pixels of a side


def write_report(path: str | os.PathLike, content: Mapping) -> None:
    """Write the report of a run as one HTML page. Every key of ``content`` may be left out.

    Parameters
    ----------
    content : mapping
        title, created, data
            Text; ``data`` says where the scans come from.
        metrics
            What metrics.json holds: ``classifiers`` (name to `classification.summarise`, with ``cutoff`` or
            ``tree``), ``peaks``, ``heat_map_peak``, ``mean_map_correlation``, ``target``, ``attribution``,
            ``composite``, ``calibration`` (of `calibration.calibrate`).
        figures
            ``fig3, fig3_all_slices, fig4, fig5, regions, detection, cart, training, sbr, reliability``: PNG files.
        quality
            Rows with ``participant_id``, ``verdict`` (green, amber, red), ``reason``; ``figures`` may hold the first
            contact sheet, ``sheet``.
        cases
            A row for each scan with what is in `COLUMNS` (None: not known), ``group`` (TN, FP, FN, TP or None),
            ``flags`` (a list of those in `FLAGS`) and ``page``, the address of its page, or None.
        pages
            ``folder``, ``n`` and ``bytes`` of the pages of the cases; ``means``: name of a group to its page.
        table1, misclassified, skipped, ledger
            Rows (mappings, columns in the order of the first); an empty list says that there was none.
        config, manifest
            The resolved configuration as text; stage to its entry in manifest.json.
    """
    content = dict(content)
    classifiers = (content.get("metrics") or {}).get("classifiers") or {}
    if content.get("table1"):
        content["table1"] = arrange_table1(content["table1"])
    _write(
        path,
        "report.html.j2",
        content,
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


def write_benchmark_report(path: str | os.PathLike, content: Mapping) -> None:
    """Write the page that shows ways to explain side by side.

    Parameters
    ----------
    content : mapping
        ``created``: text; ``lines``: table of `datxai.analysis.benchmark.tabulate`; ``figures``: ``ranks`` to PNG file;
        ``cases``: rows of cases.tsv, each with the PNG file ``figure`` of its maps; ``methods``: settings, as text.
    """
    _write(path, "benchmark.html.j2", content, label_names=LABEL_NAMES)


def prepare() -> None:
    """Compile now the templates of a case's page, which the first one would else wait for."""
    for name in ("case.html.j2", "page.html.j2", "macros.html.j2", "case_body.html.j2", "viewer.html.j2"):
        _templates().get_template(name)


def write_case_report(path: str | os.PathLike, content: Mapping) -> None:
    """Write the report of one scan as one HTML page; `datxai.analysis.document.write_case_pdf` takes the same.

    Parameters
    ----------
    content : mapping
        Required: ``case_id``. May be left out:

        title, created
            Text.
        predicted, p_reduced
            What the network says: 0 or 1, softmax output for reduced.
        label
            0 or 1, what the case is labelled.
        warnings
            Sentences, shown first.
        probability
            Calibrated probability of reduced; None where the calibration could not be determined.
        volumes, own_volumes
            ``{"spect": Volume, "relevance": Volume}`` in MNI space and in the scan's own space, left and right the
            patient's own (else ``sides`` says what stands at low and high x); the page then holds a viewer.
        outline
            Bool array (X, Y, Z) on the grid of ``volumes``: what the viewer outlines (caudate and putamen).
        figures
            ``case``: PNG file, shown where the viewer cannot run, and in the PDF.
        sbr
            Region (``putamen_left`` ...) to specific binding ratio.
        normal_range
            Region to ``{"low", "median", "high"}`` as expected of a normal case (95 % prediction interval), or None;
            ``normal_range_source`` is a sentence that says where it comes from.
        subject, relevance, explanation, quality, provenance
            Name to value.
        timings
            Stage to seconds.
        downloads
            Label to the name of a file that lies beside the page.
        ledger
            Rows (mappings): where relevance went, layer by layer.
    """
    spaces = _pack_spaces(content)
    _write(path, "case.html.j2", content, **describe_case(content), spaces=spaces, colours=spaces and pack_colours())


def write_case_data(path: str | os.PathLike, content: Mapping) -> None:
    """Write what the page of `write_case_pages` shows of one case: the ``content`` of `write_case_report`."""
    spaces = _pack_spaces(content)
    html = _render("case_body.html.j2", content, **describe_case(content), spaces=spaces)
    case = {"id": content["case_id"], "html": html, "spaces": spaces}
    write_text(path, f"datxai.show({json.dumps(case)});\n")


def write_case_pages(path: str | os.PathLike, cases: Sequence[str], report: str) -> None:
    """Write the page that shows, one at a time, what `write_case_data` wrote to ``<case>.js`` beside it.

    ``cases`` are their names in the order in which one leafs through them; ``report`` is the address of the report
    of the run. ``path`` + ``#<case>`` opens the page at a case.
    """
    _write(path, "cases.html.j2", {"cases": list(cases), "report": report, "colours": pack_colours()})


def render_upload_page(content: Mapping) -> str:
    """The page where scans are dropped in; ``limits`` are those of one upload: ``upload`` (bytes), ``files``."""
    return _render("upload.html.j2", content)


def describe_case(content: Mapping) -> dict:
    """The content of `write_case_report` in the words and numbers of page and PDF.

    Returns ``heading``, ``subtitle``, ``tiles`` (rows with ``name, value, note, kind``), ``ratios`` (rows of the
    table of binding ratios), ``sections`` (title to name and value), ``alt`` and ``caption`` of the figure, and
    ``explained``, what red speaks for.
    """
    name, title = content["case_id"], content.get("title")
    explained = _describe_output((content.get("explanation") or {}).get("target"), content.get("predicted"))
    sections = {
        "Subject": content.get("subject"),
        "Regional relevance": content.get("relevance"),
        "Explanation": content.get("explanation"),
        "Quality control": content.get("quality"),
        "Time, s": content.get("timings"),
        "Provenance": content.get("provenance"),
    }
    return {
        "heading": title or f"DAT-SPECT relevance: {name}",
        "subtitle": " \u00b7 ".join(filter(None, [name if title else None, content.get("created")])),
        "tiles": [
            {"note": "", "kind": "", **tile}
            for make in (_tile_label, _tile_probability, _tile_ratio, _tile_relevance, _tile_quality)
            if (tile := make(content))
        ],
        "ratios": _tabulate_ratios(content.get("sbr") or {}, content.get("normal_range") or {}),
        "sections": {title: pairs for title, pairs in sections.items() if pairs},
        "alt": "Uptake and relevance of the scan on the slices through the most relevant voxel",
        "caption": "Uptake (top) and relevance over uptake (bottom) on the slices through the voxel of highest "
        f"absolute relevance. Red speaks for {explained}, blue against it.",
        "explained": explained,
    }


def _describe_output(target: str | None, predicted: int | None) -> str:
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
    return words.get(target, "the explained output")


def _tile_label(content: Mapping) -> dict | None:
    if "predicted" not in content:
        return None
    predicted, label = content["predicted"], content.get("label")
    called = LABEL_NAMES[predicted]
    note = "" if label is None else f"labelled {LABEL_NAMES[label]}: {'correct' if label == predicted else 'wrong'}"
    return {"name": "The network calls this scan", "value": called, "kind": called, "note": note}


def _tile_probability(content: Mapping) -> dict | None:
    if "p_reduced" not in content:
        return None
    softmax, calibrated = content["p_reduced"], content.get("probability")
    if calibrated is None:
        note = "not a calibrated probability"
        return {"name": "Softmax output for reduced", "value": format_percent(softmax), "note": note}
    note = f"softmax output {format_percent(softmax)}"
    return {"name": "Calibrated probability of reduced", "value": format_percent(calibrated), "note": note}


def _tile_ratio(content: Mapping) -> dict | None:
    sbr = content.get("sbr") or {}
    lower = min((name for name in ("putamen_left", "putamen_right") if name in sbr), key=sbr.get, default=None)
    if lower is None:
        return None
    expected = (content.get("normal_range") or {}).get(lower)
    note = f"expected {expected['low']:.2f} to {expected['high']:.2f}" if expected else ""
    return {"name": "SBR of the lower putamen", "value": f"{sbr[lower]:.2f}", "note": note}


def _tile_relevance(content: Mapping) -> dict | None:
    relevance = content.get("relevance") or {}
    if "consistent" not in relevance:
        return None
    value = {True: "consistent", False: "inconsistent", None: "n/a"}[relevance["consistent"]]
    return {"name": "Relevance map", "value": value, "note": "with the mean map of the class called"}


def _tile_quality(content: Mapping) -> dict | None:
    verdict = (content.get("quality") or {}).get("verdict")
    return verdict and {"name": "Quality of the registration", "value": verdict, "kind": verdict}


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


def _pack_spaces(content: Mapping) -> list[dict]:
    sides = content.get("sides", ("L", "R"))
    named = {"MNI space": content.get("volumes"), "the scan's own space": content.get("own_volumes")}
    return [
        pack_space(name, volumes, content.get("outline") if name == "MNI space" else None, sides)
        for name, volumes in named.items()
        if volumes
    ]


def _write(path: str | os.PathLike, template: str, content: Mapping, **more: object) -> None:
    write_text(path, _render(template, content, **more))


def _render(template: str, content: Mapping, **more: object) -> str:
    return _templates().get_template(template).render({"figures": {}, **content, **more})


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
            how = {"quality": 90} if image.getcolors(CHART_COLOURS) is None else {"lossless": True, "quality": 30}
            packed = io.BytesIO()
            image.save(packed, "WEBP", **how)
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
