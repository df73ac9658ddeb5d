"""The figures of a finished run, by name, for the report and the examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datxai.analysis.classification import FEATURES
from datxai.analysis.detection import DOUBTS, trace_all
from datxai.findings import GROUPS, Findings
from datxai.pages import charts, figures
from datxai.pages.style import save_figure

CLASSIFIERS = {"cnn": "CNN", "roi_relevance": "sign of relevance", "sbr": "SBR cutoff", "cart": "CART"}

FIGURES: dict[str, Callable[[Findings], figures.Figure]] = {
    "fig3": lambda run: figures.plot_mean_maps(
        run.anatomy.frame,
        run.images | {"template": run.anatomy.template.data},
        run.maps,
        {group: run.groups.count(group) for group in GROUPS},
    ),
    "fig3_all_slices": lambda run: figures.plot_all_slices(run.anatomy.frame, run.maps),
    "fig4": lambda run: figures.plot_misclassified(
        run.anatomy.frame, run.images, run.maps, map(run.with_volumes, run.misclassified)
    ),
    "fig5": lambda run: figures.plot_roi_histogram(
        run.anatomy.frame,
        run.anatomy.regions["putamen_roi_left"],
        run.images["TN"],
        [case["putamen_ipsilateral"] for case in run.tested],
        run.groups,
    ),
    "training": lambda run: charts.plot_training(run.training),
    "table1": lambda run: charts.plot_table1(run.table1),
    "sbr": lambda run: charts.plot_sbr(
        run.features[:, FEATURES.index("putamen_ipsilateral")],
        run.features[:, FEATURES.index("caudate_putamen_ratio")],
        [case["label"] for case in run.tested],
        run.metrics["classifiers"].get("sbr", {}).get("cutoff"),
    ),
    "cart": lambda run: charts.plot_tree(run.metrics["classifiers"]["cart"]["nodes"]),
    "classification": lambda run: charts.plot_classification(
        {CLASSIFIERS[name]: figures for name, figures in run.metrics["classifiers"].items()}
    ),
    "roc": lambda run: charts.plot_roc({CLASSIFIERS[name]: run.roc_of(name) for name in run.metrics["classifiers"]}),
    "reliability": lambda run: charts.plot_reliability(run.metrics["calibration"]),
    "regions": lambda run: charts.plot_regions(run.regions),
    "detection": lambda run: charts.plot_detection(
        {DOUBTS[name]: curve for name, curve in trace_all(run.doubt).items()}
    ),
}


def draw(name: str, run: Findings, folder: Path) -> None:
    """Draw one of `FIGURES` and write it to ``folder`` as PNG and PDF."""
    save_figure(FIGURES[name](run), folder / name)
