"""The figures, one page that shows and explains them, and a page of each case with a relevance map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import numpy as np
import yaml

from datxai.analysis import charts, figures
from datxai.analysis.calibration import choose_uncertain, probability
from datxai.analysis.classification import FEATURES, tabulate_features
from datxai.analysis.detection import DOUBTS, trace_all
from datxai.analysis.normal_range import describe_range, expect_ratios
from datxai.analysis.report import write_case_data, write_case_pages, write_report
from datxai.analysis.slices import Frame
from datxai.analysis.style import GROUP_NAMES, save_figure
from datxai.analysis.tables import LABEL_NAMES
from datxai.case import SBR, outline_of
from datxai.cohort.dataset import VolumeStore, open_store
from datxai.config import Config
from datxai.files import read_json, read_table
from datxai.imaging.atlas import Atlas, load_atlas, make_regions, make_template
from datxai.imaging.mirror import unmirror
from datxai.progress import Bar
from datxai.results import (
    GROUPS,
    read_doubt,
    read_ledger,
    read_normals,
    read_predictions,
    read_quality,
    read_regions,
    read_roi_relevance,
    read_sbr,
    read_table1,
)
from datxai.run import Run
from datxai.volume import load, sidecar_path

SHORT = {"cnn": "CNN", "roi_relevance": "sign of relevance", "sbr": "SBR cutoff", "cart": "CART"}
PAGE = "case.html"  # shows one case at a time
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
    def people(self) -> dict[str, dict]:
        """The table of participants, as text."""
        return {row["participant_id"]: row for row in read_table(self.run.participants)}

    @cached_property
    def quality(self) -> dict[str, dict]:
        """What quality control measured in each scan, those that were left out too."""
        return {row["participant_id"]: row for row in read_quality(self.run)}

    @cached_property
    def probabilities(self) -> dict[str, float]:
        """The calibrated probability of reduced of every case."""
        margins = [case["logit_reduced"] - case["logit_normal"] for case in self.predictions]
        calibrated = probability(margins, self.metrics["calibration"]["temperature"])
        return dict(zip((case["participant_id"] for case in self.predictions), calibrated.tolist()))

    @cached_property
    def features(self) -> np.ndarray:
        """Semi-quantitative features of the test cases, see `tabulate_features`."""
        sbr = read_sbr(self.run)
        return tabulate_features([sbr[case["participant_id"]] for case in self.cases])

    @cached_property
    def normals(self) -> list[dict]:
        """Age and binding ratios of the normal cases."""
        return read_normals(self.run)

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
    return {}


def outputs(run: Run) -> list[Path]:
    return [run.report, run.pages, *(run.figures / f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf"))]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    found = Findings(run)
    for name in FIGURES:
        draw(name, found, run.figures)
    means = write_pages(found)
    write_report(
        run.report,
        {
            "data": f"{settings.data.kind}, {len(found.people)} scans, grid {settings.grid.name}",
            "created": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            "metrics": found.metrics,
            "figures": {name: run.figures / f"{name}.png" for name in FIGURES}
            | {"sheet": run.sheet(1).with_suffix(".png")},
            "cases": tabulate_cases(found),
            "pages": {
                "folder": run.pages.name,
                "n": len(list_explained(found)),
                "bytes": sum(file.stat().st_size for file in run.pages.iterdir()),
                "means": {GROUP_NAMES[group]: page_of(run, name) for group, name in means.items()},
            },
            "quality": [{k: row[k] for k in ("participant_id", "verdict", "reason")} for row in found.quality.values()],
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


def list_explained(found: Findings) -> list[dict]:
    """The cases with a relevance map."""
    return [case for case in found.predictions if found.run.relevance_of(case["participant_id"]).is_file()]


def tabulate_cases(found: Findings) -> list[dict]:
    """The rows of the report's table of cases; the scans that quality control left out come last."""
    maps, sbr = read_roi_relevance(found.run), read_sbr(found.run)
    shown = {case["participant_id"] for case in list_explained(found)}
    validation = {case["participant_id"] for case in found.predictions if case["set"] == "validation"}
    half_width = choose_uncertain([found.probabilities[name] for name in validation])
    rows = []
    for case in found.predictions:
        name = case["participant_id"]
        person, quality, p = found.people[name], found.quality[name], found.probabilities[name]
        relevance = maps.get(name, {"putamen_ipsilateral": None, "consistent": None})
        flags = {
            "misclassified": case["label"] != case["predicted"],
            "inconsistent": relevance["consistent"] is False,
            "uncertain": abs(p - 0.5) <= half_width,
            "quality": quality["verdict"] != "green",
        }
        rows.append(
            {
                "participant_id": name,
                "set": case["set"],
                "age": _known(person["age"], float),
                "sex": _known(person["sex"]),
                "label": LABEL_NAMES[case["label"]],
                "predicted": LABEL_NAMES[case["predicted"]],
                "probability": p,
                "sbr": min(sbr[name]["putamen_left"], sbr[name]["putamen_right"]),
                "relevance": relevance["putamen_ipsilateral"],
                "consistent": relevance["consistent"],
                "quality": quality["verdict"],
                "similarity": quality["similarity"],
                "reason": _known(quality["reason"]),
                "group": case["group"],
                "flags": [flag for flag, raised in flags.items() if raised],
                "page": page_of(found.run, name) if name in shown else None,
            }
        )
    known = ("participant_id", "similarity", "reason")
    left_out = [row for name, row in found.quality.items() if name not in found.probabilities]
    return rows + [
        {
            **dict.fromkeys(rows[0]), **{name: row[name] for name in known},
            "set": "left out", "quality": row["verdict"], "flags": ["quality"],
        }
        for row in left_out
    ]  # fmt: skip


def page_of(run: Run, name: str) -> str:
    """The address of a case's page, from the report."""
    return f"{run.pages.name}/{PAGE}#{quote(name)}"


def write_pages(found: Findings) -> dict[str, str]:
    """Write the page of each case with a relevance map, and of each mean map; pages of an earlier cohort go.

    Returns group (TN, FP, FN, TP) to the name under which its mean has a page.
    """
    run, cases = found.run, list_explained(found)
    outline = outline_of(found.regions)
    roi_relevance = read_roi_relevance(run)
    means = {group: f"mean_{group}" for group in GROUPS if run.mean_of(f"{group}_relevance").is_file()}
    contents = chain(
        (describe_case(found, case, roi_relevance) for case in cases),
        (describe_mean(found, group, name) for group, name in means.items()),
    )
    written = []
    with Bar(len(cases) + len(means), "pages") as bar:
        for content in contents:
            write_case_data(run.pages / f"{content['case_id']}.js", {**content, "outline": outline})
            written.append(content["case_id"])
            bar.update()
    write_case_pages(run.pages / PAGE, written, f"../{run.report.name}")
    kept = {PAGE, *(f"{name}.js" for name in written)}
    for path in run.pages.iterdir():
        if path.name not in kept:
            path.unlink()
    return means


def describe_case(found: Findings, case: Mapping, roi_relevance: Mapping[str, Mapping]) -> dict:
    """What the page of a case of the cohort shows; left and right are the patient's own.

    The normal cases that its binding ratios are held against are those of other people.
    """
    run, name = found.run, case["participant_id"]
    person = found.people[name]
    age, subject = _known(person["age"], float), person.get("subject", name)
    expected = expect_ratios([normal for normal in found.normals if normal["subject"] != subject], SBR, age)
    measures = read_json(sidecar_path(run.scan_of(name)))["measures"]
    record = read_json(sidecar_path(run.relevance_of(name)))
    files = {"spect": run.scan_of(name), "relevance": run.relevance_of(name)}
    calibrated = found.metrics["calibration"]["determined"]
    return {
        "case_id": name,
        "label": case["label"],
        "predicted": case["predicted"],
        "p_reduced": case["p_reduced"],
        "probability": found.probabilities[name] if calibrated else None,
        "volumes": {kind: unmirror(load(file, blank=True), measures["mirrored"]) for kind, file in files.items()},
        "sbr": {key: measures[key] for key in SBR},
        "normal_range": expected,
        "normal_range_source": describe_range(expected, age, [normal["age"] for normal in found.normals]),
        "relevance": name in roi_relevance
        and {"ipsilateral side": "right" if measures["mirrored"] else "left", **roi_relevance[name]},
        "explanation": {**record["method"], "sum": record["sum"]},
        "quality": measures["quality"] | {"mirrored for the network": measures["mirrored"]},
        "subject": {"set": case["set"]} | {key: person[key] for key in ("age", "sex")},
        "provenance": {key: found.run.entries()["explain"][key] for key in ("finished", "git_revision", "fingerprint")},
        "ledger": record["ledger"],
    }


def describe_mean(found: Findings, group: str, name: str) -> dict:
    """What the page of the mean of a group shows, ipsilateral on the left."""
    return {
        "case_id": name,
        "title": f"Mean of {found.groups.count(group)} {GROUP_NAMES[group]} test cases",
        "volumes": {kind: load(found.run.mean_of(f"{group}_{kind}"), blank=True) for kind in ("spect", "relevance")},
        "sides": ("I", "C"),
    }


def _known(text: str, convert: Callable = str) -> object:
    return None if text == "n/a" else convert(text)
