"""The figures, and one page that shows and explains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from datxai.analysis import charts, figures
from datxai.analysis.classification import FEATURES, tabulate_features
from datxai.analysis.detection import DOUBTS, trace_all
from datxai.analysis.report import write_report
from datxai.analysis.slices import Frame
from datxai.analysis.style import save_figure
from datxai.case import outline_of
from datxai.cohort.dataset import VolumeStore, open_store
from datxai.config import Config
from datxai.files import read_json, read_table
from datxai.imaging.atlas import Atlas, load_atlas, make_regions, make_template
from datxai.results import (
    GROUPS,
    read_doubt,
    read_ledger,
    read_predictions,
    read_quality,
    read_regions,
    read_roi_relevance,
    read_sbr,
    read_table1,
)
from datxai.run import Run
from datxai.volume import load

SHORT = {"cnn": "CNN", "roi_relevance": "sign of relevance", "sbr": "SBR cutoff", "cart": "CART"}
MISCLASSIFIED = ("participant_id", "group", "p_reduced", "putamen_ipsilateral", "consistent")  # columns of that table


@dataclass(frozen=True)
class Findings:
    """What the figures of an evaluated run are drawn from, each read when it is first asked for."""

    run: Run

    @cached_property
    def metrics(self) -> dict:
        return read_json(self.run.metrics)

    @cached_property
    def predictions(self) -> list[dict]:
        """Every case of the cohort as the network predicts it."""
        return read_predictions(self.run)

    @cached_property
    def cases(self) -> list[dict]:
        """The test cases: predictions, and what was measured in their relevance maps."""
        measured = read_roi_relevance(self.run)
        return [case | measured[case["participant_id"]] for case in self.predictions if case["set"] == "test"]

    @property
    def misclassified(self) -> list[dict]:
        return [case for case in self.cases if case["label"] != case["predicted"]]

    @property
    def groups(self) -> list[str]:
        """TN, FP, FN or TP of each test case."""
        return [case["group"] for case in self.cases]

    @cached_property
    def features(self) -> np.ndarray:
        """Semi-quantitative features of the test cases, see `tabulate_features`."""
        sbr = read_sbr(self.run)
        return tabulate_features([sbr[case["participant_id"]] for case in self.cases])

    @cached_property
    def store(self) -> VolumeStore:
        return open_store(self.run.store)

    @cached_property
    def atlas(self) -> Atlas:
        return load_atlas(**self.run.entry("evaluate", "report")["config"]["atlas"])

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        return make_regions(self.store.grid, self.atlas)

    @cached_property
    def frame(self) -> Frame:
        return Frame(self.store.grid, outline_of(self.regions), self.regions["brain"])

    @cached_property
    def _means(self) -> dict[str, np.ndarray]:
        return {
            path.name.removesuffix(".nii.gz"): load(path, blank=True).data for path in self.run.means.glob("*.nii.gz")
        }

    @property
    def images(self) -> dict[str, np.ndarray | None]:
        """Mean image of each group, None for an empty one."""
        return {group: self._means.get(f"{group}_spect") for group in GROUPS}

    @property
    def maps(self) -> dict[str, np.ndarray | None]:
        """Mean relevance map of each group, None for an empty one, and the ``heat`` map."""
        maps = {group: self._means.get(f"{group}_relevance") for group in GROUPS}
        return {**maps, "heat": self._means.get("heat_map")}

    def with_volumes(self, case: Mapping) -> dict:
        """A case with its ``image`` and ``relevance`` map."""
        name = case["participant_id"]
        volumes = {"image": self.store.volume(name), "relevance": load(self.run.relevance_of(name), blank=True).data}
        return {**case, "case_id": name, **volumes}


FIGURES: dict[str, Callable[[Findings], figures.Figure]] = {
    "fig3": lambda found: figures.plot_mean_maps(
        found.frame,
        found.images | {"template": make_template(found.store.grid, found.atlas).data},
        found.maps,
        {group: found.groups.count(group) for group in GROUPS},
    ),
    "fig3_all_slices": lambda found: figures.plot_all_slices(found.frame, found.maps),
    "fig4": lambda found: figures.plot_misclassified(
        found.frame, found.images, found.maps, map(found.with_volumes, found.misclassified)
    ),
    "fig5": lambda found: figures.plot_roi_histogram(
        found.frame,
        found.regions["putamen_roi_left"],
        found.images["TN"],
        [case["putamen_ipsilateral"] for case in found.cases],
        found.groups,
    ),
    "training": lambda found: charts.plot_training(read_table(found.run.model / "history.tsv")),
    "table1": lambda found: charts.plot_table1(read_table1(found.run)),
    "sbr": lambda found: charts.plot_sbr(
        found.features[:, FEATURES.index("putamen_ipsilateral")],
        found.features[:, FEATURES.index("caudate_putamen_ratio")],
        [case["label"] for case in found.cases],
        found.metrics["classifiers"]["sbr"]["cutoff"],
    ),
    "cart": lambda found: charts.plot_tree(found.metrics["classifiers"]["cart"]["nodes"]),
    "classification": lambda found: charts.plot_classification(
        {title: found.metrics["classifiers"][name] for name, title in SHORT.items()}
    ),
    "reliability": lambda found: charts.plot_reliability(found.metrics["calibration"]),
    "regions": lambda found: charts.plot_regions(read_regions(found.run)),
    "detection": lambda found: charts.plot_detection(
        {DOUBTS[name]: curve for name, curve in trace_all(read_doubt(found.run)).items()}
    ),
}


def depends(settings: Config) -> dict:
    return {"atlas": asdict(settings.atlas)}


def outputs(run: Run) -> list[Path]:
    return [run.report, *(run.figures / f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf"))]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    found = Findings(run)
    for name in FIGURES:
        draw(name, found, run.figures)
    write_report(
        run.report,
        {
            "data": f"{settings.data.kind}, {len(read_table(run.participants))} scans, grid {settings.grid.name}",
            "created": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            "metrics": found.metrics,
            "figures": {name: run.figures / f"{name}.png" for name in FIGURES}
            | {"sheet": run.sheet(1).with_suffix(".png")},
            "quality": [{k: row[k] for k in ("participant_id", "verdict", "reason")} for row in read_quality(run)],
            "table1": read_table1(run),
            "misclassified": [{name: case[name] for name in MISCLASSIFIED} for case in found.misclassified],
            "skipped": read_table(run.skipped),
            "ledger": read_ledger(run, [case["participant_id"] for case in found.cases]),
            "config": yaml.safe_dump(asdict(settings), sort_keys=False),
            "manifest": run.entries(),
        },
    )


def draw(name: str, found: Findings, folder: Path) -> None:
    """Draw a figure of `FIGURES` and write it to ``folder`` as PNG and PDF."""
    save_figure(FIGURES[name](found), folder / name)
