"""What the test set says: classification with intervals, relevance by region, peaks, mean maps, detection of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from datxai.analysis import classification, detection
from datxai.analysis.calibration import calibrate
from datxai.analysis.regions import COLUMNS, label_regions, measure_regions, summarise_regions
from datxai.analysis.relevance import MeanMap, check_consistency, find_peak, make_heat_map, summarise_peaks
from datxai.case import grid_of, measure_map
from datxai.cohort.dataset import open_store
from datxai.config import Config, describe
from datxai.files import write_json, write_table
from datxai.imaging.atlas import load_atlas, make_parcellation, make_regions
from datxai.results import GROUPS, read_cases, read_predictions, read_sbr
from datxai.run import Run
from datxai.volume import Grid, Volume, load, save


def depends(settings: Config) -> dict:
    return {"atlas": describe(settings.atlas), "preprocessing": asdict(settings.preprocessing)}


def outputs(run: Run) -> list[Path]:
    return [run.roi_relevance, run.regions, run.doubt, run.metrics, run.means]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    grid = grid_of(settings)
    atlas = load_atlas(settings.atlas.labels, settings.atlas.names)
    regions = make_regions(grid, atlas)
    cases = [case for case in read_predictions(run) if case["set"] == "test"]
    averages = _average(run, cases)
    means = {name: average.mean for name, average in averages.items() if average.n}
    if {"TP_relevance", "TN_relevance"} <= means.keys():
        means["heat_map"] = make_heat_map(means["TP_relevance"], means["TN_relevance"])
    run.keep_only(run.means, [])
    for name, data in means.items():
        save(Volume(data, grid.affine, ({"step": "average", "group": name},)), run.mean_of(name))
    striatum = regions["striatum_left"] | regions["striatum_right"]
    parcels = label_regions(*make_parcellation(grid, atlas), regions["brain"], striatum, grid.spacing)
    rows, parts = [], []
    for case in cases:
        relevance = load_map(run, case["participant_id"])
        rows.append(_measure(relevance, case, grid, regions, averages, settings))
        parts.append(measure_regions(relevance, parcels, regions["brain"]))
    write_table(run.roi_relevance, rows, list(rows[0]))
    write_table(run.regions, summarise_regions(parcels, parts, [case["group"] for case in cases]), COLUMNS)
    classifiers = _classify(run, cases, [row["putamen_ipsilateral"] for row in rows])
    doubts = _doubt(run, cases, rows, classifiers["sbr"]["cutoff"])
    write_table(run.doubt, doubts, list(doubts[0]))
    lrp = settings.attribution.method == "lrp"
    metrics = {
        "target": settings.target,
        "attribution": asdict(settings.attribution),
        "composite": settings.composite.name if lrp else None,
        "classifiers": classifiers,
        "detection": {
            name: {key: roc[key] for key in ("n", "errors", "auc", "auc_ci95")}
            for name, roc in detection.trace_all(doubts).items()
        },
        "calibration": _calibrate(read_predictions(run)),
        "peaks": summarise_peaks(
            [{"distance_mm": row["peak_distance_mm"], "inside": row["peak_inside"]} for row in rows]
        ),
        "inconsistent": sum(row["consistent"] is False for row in rows),
    }
    if "heat_map" in means:
        brain = regions["brain"]
        metrics["heat_map_peak"] = find_peak(means["heat_map"], grid, regions["striatum_left"])
        metrics["mean_map_correlation"] = float(
            np.corrcoef(means["TN_relevance"][brain], means["TP_relevance"][brain])[0, 1]
        )
    write_json(run.metrics, metrics)


def _average(run: Run, cases: Sequence[Mapping]) -> dict[str, MeanMap]:
    """Mean image and mean map of each group; one case in memory at a time."""
    store = open_store(run.store)
    averages = {f"{group}_{kind}": MeanMap() for group in GROUPS for kind in ("spect", "relevance")}
    for case in cases:
        name = case["participant_id"]
        averages[f"{case['group']}_spect"].add(store.volume(name))
        averages[f"{case['group']}_relevance"].add(load_map(run, name))
    return averages


def _measure(
    relevance: np.ndarray,
    case: Mapping,
    grid: Grid,
    regions: Mapping[str, np.ndarray],
    averages: Mapping[str, MeanMap],
    settings: Config,
) -> dict:
    """A row of roi_relevance.tsv."""
    peak = find_peak(relevance, grid, regions["striatum_left"] | regions["striatum_right"])
    likeness = {"r_normal": None, "r_reduced": None, "consistent": None}
    others = [
        average.without(relevance) if case["group"] == group else average.mean
        for group, average in ((group, averages[f"{group}_relevance"]) for group in ("TN", "TP"))
    ]
    if all(mean is not None for mean in others):
        likeness = check_consistency(relevance, case["predicted"], *others, regions["brain"])
    return {
        "participant_id": case["participant_id"],
        "group": case["group"],
        **measure_map(relevance, grid, regions, settings),
        **{f"peak_{name}": value for name, value in peak.items()},
        **likeness,
    }


def _classify(run: Run, cases: Sequence[Mapping], putamen_relevance: Sequence[float]) -> dict:
    """Test-set figures of the network, of the sign of the relevance, of an SBR cutoff, and of a classification tree.

    Cutoff and tree are chosen on the training cases.
    """
    sbr = read_sbr(run)
    training = [case for case in read_cases(run) if case["set"] == "train"]
    known = classification.tabulate_features([sbr[case["participant_id"]] for case in training])
    features = classification.tabulate_features([sbr[case["participant_id"]] for case in cases])
    lower, known_labels = features[:, 0], [case["label"] for case in training]
    cutoff = classification.choose_cutoff(known[:, 0], known_labels)
    tree = classification.fit_cart(known, known_labels)
    relevance = np.asarray(putamen_relevance)
    calls = {
        "cnn": ([case["predicted"] for case in cases], [case["p_reduced"] for case in cases], {}),
        "roi_relevance": (relevance > 0, relevance, {"cutoff": 0.0}),
        "sbr": (lower < cutoff, -lower, {"cutoff": cutoff}),
        "cart": (tree.predict(features), tree.score(features), {"tree": tree.text, "nodes": tree.nodes}),
    }
    labels = [case["label"] for case in cases]
    return {
        name: {**classification.summarise(labels, predicted, scores), **more}
        for name, (predicted, scores, more) in calls.items()
    }


def _calibrate(cases: Sequence[Mapping]) -> dict:
    """How well the network's probabilities are calibrated, with a temperature from the validation cases."""
    chosen = ([case for case in cases if case["set"] == name] for name in ("validation", "test"))
    return calibrate(
        *(
            values
            for group in chosen
            for values in (
                [case["logit_reduced"] - case["logit_normal"] for case in group],
                [case["label"] for case in group],
            )
        )
    )


def _doubt(run: Run, cases: Sequence[Mapping], rows: Sequence[Mapping], cutoff: float) -> list[dict]:
    """Rows of doubt.tsv: whether a case is misclassified, and what speaks for it."""
    sbr, doubts = read_sbr(run), []
    for case, row in zip(cases, rows, strict=True):
        name = case["participant_id"]
        lower = min(sbr[name]["putamen_left"], sbr[name]["putamen_right"])
        scores = detection.score_doubt({**case, **row, "sbr": lower}, cutoff)
        doubts.append({"participant_id": name, "misclassified": case["label"] != case["predicted"], **scores})
    return doubts


def load_map(run: Run, case: str) -> np.ndarray:
    """The relevance map of a case, (X, Y, Z)."""
    return load(run.relevance_of(case), blank=True).data
