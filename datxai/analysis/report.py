"""The report of a run and of a single scan: one HTML page each that holds everything it shows."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path

from datxai.analysis.tables import LABEL_NAMES, MEASURES, arrange_table1, format_cell, format_percent
from datxai.files import write_text

CLASSIFIERS = {
    "cnn": "Convolutional network",
    "roi_relevance": "Sign of the relevance in the ipsilateral putamen",
    "sbr": "Cutoff on the putaminal binding ratio",
    "cart": "Classification tree on binding ratios",
}


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
    )


def write_case_report(path: str | os.PathLike, content: Mapping) -> None:
    """Write the report of one scan as one HTML page.

    Parameters
    ----------
    content : mapping
        Required: ``case_id``, ``predicted`` (0 or 1), ``p_reduced``. May be left out: ``title``, ``created``;
        ``warnings``: sentences shown first; ``figures``: ``case`` to PNG file; ``sbr``, ``relevance``,
        ``explanation``, ``quality``, ``files``, ``provenance``: name to value; ``ledger``: rows (mappings).
    """
    _write(path, "case.html.j2", content, label_names=LABEL_NAMES)


def _write(path: str | os.PathLike, template: str, content: Mapping, **more: object) -> None:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format_percent, "cell": format_cell, "words": _words, "inline": _inline,
    }  # fmt: skip
    write_text(path, environment.get_template(template).render({"figures": {}, **content, **more}))


def _inline(file: str | os.PathLike) -> dict:
    """A PNG file as a data URI, and the width it is shown with: half its pixels, for dense screens and for print."""
    from PIL import Image

    with Image.open(file) as image:
        width = image.width // 2
    return {"source": "data:image/png;base64," + base64.b64encode(Path(file).read_bytes()).decode(), "width": width}


def _scale_start(classifiers: Mapping[str, Mapping]) -> float:
    """Where the bars of the intervals begin: the lowest limit of all, rounded down to a tenth."""
    limits = [
        values[f"{name}_ci95"][0] for values in classifiers.values() for name in MEASURES if values.get(f"{name}_ci95")
    ]
    return min(int(10 * min(limits, default=0.0)) / 10, 0.9)


def _words(name: str) -> str:
    """A column name as words."""
    return name.replace("_", " ")
