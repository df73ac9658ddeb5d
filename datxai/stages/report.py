"""The figures, and one page that shows and explains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import yaml

from datxai.analysis import figures
from datxai.analysis.classification import FEATURES, tabulate_features
from datxai.analysis.report import write_report
from datxai.analysis.slices import Frame
from datxai.case import grid_of, outline_of
from datxai.cohort.dataset import VolumeStore, open_store
from datxai.config import Config
from datxai.files import read_json, read_table
from datxai.imaging.atlas import load_atlas, make_regions, make_template
from datxai.results import GROUPS, read_ledger, read_predictions, read_roi_relevance, read_sbr, read_table1
from datxai.run import Run
from datxai.volume import load

FIGURES = ("fig3", "fig3_all_slices", "fig4", "fig5", "training", "table1", "sbr")

MISCLASSIFIED = ("participant_id", "group", "p_reduced", "putamen_ipsilateral", "consistent")  # columns of that table


def depends(settings: Config) -> dict:
    return {"atlas": asdict(settings.atlas)}


def outputs(run: Run) -> list[Path]:
    return [run.report, *(run.figures / f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf"))]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    metrics, measured, table1 = read_json(run.metrics), read_roi_relevance(run), read_table1(run)
    cases = [case | measured[case["participant_id"]] for case in read_predictions(run) if case["set"] == "test"]
    missed = [case for case in cases if case["label"] != case["predicted"]]
    _draw(settings, run, cases, missed, table1, metrics)
    write_report(
        run.report,
        {
            "data": f"{settings.data.kind}, {len(read_table(run.participants))} scans, grid {settings.grid.name}",
            "created": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            "metrics": metrics,
            "figures": {name: run.figures / f"{name}.png" for name in FIGURES},
            "table1": table1,
            "misclassified": [{name: case[name] for name in MISCLASSIFIED} for case in missed],
            "skipped": read_table(run.skipped),
            "ledger": read_ledger(run, [case["participant_id"] for case in cases]),
            "config": yaml.safe_dump(asdict(settings), sort_keys=False),
            "manifest": run.entries(),
        },
    )


def _draw(
    settings: Config, run: Run, cases: list[dict], missed: list[dict], table1: list[dict], metrics: Mapping
) -> None:
    grid, store = grid_of(settings), open_store(run.store)
    atlas = load_atlas(settings.atlas.labels, settings.atlas.names)
    regions = make_regions(grid, atlas)
    frame = Frame(grid, outline_of(regions), regions["brain"])
    means = {path.name.removesuffix(".nii.gz"): load(path, blank=True).data for path in run.means.glob("*.nii.gz")}
    images = {group: means.get(f"{group}_spect") for group in GROUPS}
    maps = {group: means.get(f"{group}_relevance") for group in GROUPS} | {"heat": means.get("heat_map")}
    groups = [case["group"] for case in cases]
    sbr = read_sbr(run)
    features = tabulate_features([sbr[case["participant_id"]] for case in cases])
    drawn = (
        figures.plot_mean_maps(
            frame,
            images | {"template": make_template(grid, atlas).data},
            maps,
            {group: groups.count(group) for group in GROUPS},
        ),
        figures.plot_all_slices(frame, maps),
        figures.plot_misclassified(frame, images, maps, (_with_volumes(run, store, case) for case in missed)),
        figures.plot_roi_histogram(
            frame,
            regions["putamen_roi_left"],
            images["TN"],
            [case["putamen_ipsilateral"] for case in cases],
            groups,
        ),
        figures.plot_training(read_table(run.model / "history.tsv")),
        figures.plot_table1(table1),
        figures.plot_sbr(
            features[:, FEATURES.index("putamen_ipsilateral")],
            features[:, FEATURES.index("caudate_putamen_ratio")],
            [case["label"] for case in cases],
            metrics["classifiers"]["sbr"]["cutoff"],
        ),
    )
    for name, figure in zip(FIGURES, drawn, strict=True):
        figures.save_figure(figure, run.figures / name)


def _with_volumes(run: Run, store: VolumeStore, case: Mapping) -> dict:
    name = case["participant_id"]
    return {
        **case,
        "case_id": name,
        "image": store.volume(name),
        "relevance": load(run.relevance_of(name), blank=True).data,
    }
