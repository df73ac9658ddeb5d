"""What the test set says: classification with intervals, relevance by region, peaks, mean maps, detection of errors;
and what a new scan is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from datxai.analysis import classification, detection, shift
from datxai.analysis.calibration import calibrate
from datxai.analysis.regions import COLUMNS, label_regions, measure_regions, summarise_regions
from datxai.analysis.relevance import MeanMap, check_consistency, find_peak, make_heat_map, summarise_peaks
from datxai.anatomy import Anatomy
from datxai.case import describe_appearance
from datxai.config import Config, describe
from datxai.files import read_arrays, write_arrays, write_json, write_table
from datxai.findings import GROUPS, Findings
from datxai.run import Run
from datxai.volume import Volume, save

SETS = ("train", "validation", "test")


def depends(settings: Config) -> dict:
    return {"atlas": describe(settings.atlas), "preprocessing": asdict(settings.preprocessing)}


def outputs(run: Run) -> list[Path]:
    return [run.roi_relevance, run.regions, run.doubt, run.metrics, run.means, run.shift, run.shift_cases]


def make(settings: Config, run: Run) -> None:
    findings, anatomy = Findings(run), Anatomy.of(settings)
    cases = findings.of_set("test")
    averages = _average(findings, cases)
    means = {name: average.mean for name, average in averages.items() if average.mean is not None}
    if {"TP_relevance", "TN_relevance"} <= means.keys():
        means["heat_map"] = make_heat_map(means["TP_relevance"], means["TN_relevance"])
    run.keep_only(run.means, [])
    for name, data in means.items():
        save(Volume(data, anatomy.grid.affine, ({"step": "average", "group": name},)), run.mean_of(name))
    parcels = label_regions(*anatomy.parcellation, anatomy.brain, anatomy.striatum, anatomy.grid.spacing)
    rows, parts = [], []
    for case in cases:
        relevance = findings.map_of(case["participant_id"]).data
        rows.append(_measure(relevance, case, anatomy, averages, settings))
        parts.append(measure_regions(relevance, parcels, anatomy.brain))
    write_table(run.roi_relevance, rows, list(rows[0]))
    write_table(run.regions, summarise_regions(parcels, parts, [case["group"] for case in cases]), COLUMNS)
    classifiers = _classify(findings, cases, [row["putamen_ipsilateral"] for row in rows])
    doubts = _score_doubts(findings, cases, rows, classifiers["sbr"]["cutoff"])
    write_table(run.doubt, doubts, list(doubts[0]))
    metrics = _summarise(settings, findings, rows, classifiers, doubts) | _compare_means(means, anatomy)
    write_json(run.metrics, metrics | {"shift": _hold_against_training(settings, findings, anatomy)})


def _average(findings: Findings, cases: Sequence[Mapping]) -> dict[str, MeanMap]:
    """Mean image and mean map of each group; one case in memory at a time."""
    averages = {f"{group}_{kind}": MeanMap() for group in GROUPS for kind in ("spect", "relevance")}
    for case in cases:
        name = case["participant_id"]
        averages[f"{case['group']}_spect"].add(findings.store.volume(name))
        averages[f"{case['group']}_relevance"].add(findings.map_of(name).data)
    return averages


def _measure(
    relevance: np.ndarray, case: Mapping, anatomy: Anatomy, averages: Mapping[str, MeanMap], settings: Config
) -> dict:
    """A row of roi_relevance.tsv."""
    peak = find_peak(relevance, anatomy.grid, anatomy.striatum)
    likeness = {"r_normal": None, "r_reduced": None, "consistent": None}
    normal, reduced = (
        average.without(relevance) if case["group"] == group else average.mean
        for group, average in ((group, averages[f"{group}_relevance"]) for group in ("TN", "TP"))
    )
    if normal is not None and reduced is not None:
        likeness = check_consistency(relevance, case["predicted"], normal, reduced, anatomy.brain)
    return {
        "participant_id": case["participant_id"],
        "group": case["group"],
        **anatomy.measure_map(relevance, settings.preprocessing),
        **{f"peak_{name}": value for name, value in peak.items()},
        **likeness,
    }


def _summarise(
    settings: Config, findings: Findings, rows: Sequence[Mapping], classifiers: Mapping, doubts: Sequence[Mapping]
) -> dict:
    """The content of metrics.json, but for the part of `_compare_means`."""
    lrp = settings.attribution.method == "lrp"
    return {
        "explanation": settings.explanation,
        "target": settings.target,
        "attribution": asdict(settings.attribution),
        "composite": settings.composite.name if lrp else None,
        "classifiers": classifiers,
        "detection": {
            name: {key: roc[key] for key in ("n", "errors", "auc", "auc_ci95")}
            for name, roc in detection.trace_all(doubts).items()
        },
        "calibration": _calibrate(findings),
        "peaks": summarise_peaks(
            [{"distance_mm": row["peak_distance_mm"], "inside": row["peak_inside"]} for row in rows]
        ),
        "inconsistent": sum(row["consistent"] is False for row in rows),
    }


def _compare_means(means: Mapping[str, np.ndarray], anatomy: Anatomy) -> dict:
    """The part of metrics.json on the mean maps of true negatives and true positives; empty if either is missing."""
    if "heat_map" not in means:
        return {}
    brain, ipsilateral = anatomy.brain, anatomy.regions["striatum_left"]
    return {
        "heat_map_peak": find_peak(means["heat_map"], anatomy.grid, ipsilateral),
        "mean_map_correlation": float(
            np.corrcoef(means["TN_relevance"][brain], means["TP_relevance"][brain])[0, 1]
        ),
    }


def _classify(findings: Findings, cases: Sequence[Mapping], putamen_relevance: Sequence[float]) -> dict:
    """Test-set figures of the network, of the sign of the relevance, of an SBR cutoff, and of a classification tree.

    Cutoff and tree are chosen on the training cases.
    """
    sbr, training = findings.sbr, [case for case in findings.cohort if case["set"] == "train"]
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


def _calibrate(findings: Findings) -> dict:
    """How well the network's probabilities are calibrated, with a temperature from the validation cases."""
    sets = [findings.of_set(name) for name in ("validation", "test")]
    return calibrate(*([case[key] for case in cases] for cases in sets for key in ("margin", "label")))


def _score_doubts(
    findings: Findings, cases: Sequence[Mapping], rows: Sequence[Mapping], cutoff: float
) -> list[dict]:
    """Rows of doubt.tsv: whether a case is misclassified, and the scores that may warn of it."""
    doubts = []
    for case, row in zip(cases, rows, strict=True):
        ratios = findings.sbr[case["participant_id"]]
        lower = min(ratios["putamen_left"], ratios["putamen_right"])
        scores = detection.score_doubt({**case, **row, "sbr": lower}, cutoff)
        wrong = case["label"] != case["predicted"]
        doubts.append({"participant_id": case["participant_id"], "misclassified": wrong, **scores})
    return doubts


def _hold_against_training(settings: Config, findings: Findings, anatomy: Anatomy) -> dict:
    """Fit what tells whether a scan is like the training cases, keep it, and say how it does on the test cases."""
    run, names = findings.run, {kind: [case["participant_id"] for case in findings.of_set(kind)] for kind in SETS}
    note = ""
    if settings.training.max_epochs == 0:
        note = "The network was not trained in this run, so that no scan can be held against what it was trained with."
    elif len(names["train"]) < shift.MIN_CASES:
        note = f"{len(names['train'])} training cases are too few to hold a scan against; {shift.MIN_CASES} are needed."
    fitted, rows = shift.Shift({}, {}, {}, note), []
    if not note:
        seen = _gather_features(findings, anatomy)
        if "activations" not in seen:
            note = "The run has kept no activations of its network, which are not among the measures."
        place = {name: number for number, case in enumerate(findings.predictions) for name in [case["participant_id"]]}
        of = {kind: {key: x[[place[name] for name in own]] for key, x in seen.items()} for kind, own in names.items()}
        people = [findings.people[name].get("subject", name) for name in names["train"]]
        fitted = shift.fit_shift(of["train"], of["validation"], people, note)
        rows = [
            {"participant_id": name, "set": kind, **row}
            for kind in ("validation", "test")
            for name, row in zip(names[kind], fitted.tabulate(of[kind]), strict=True)
        ]
        fitted = fitted.with_tested([row for row in rows if row["set"] == "test"])
    write_arrays(run.shift, *fitted.pack())
    write_table(run.shift_cases, rows, ["participant_id", "set", "marked", *fitted.measures])
    return fitted.summarise([row for row in rows if row["set"] == "test"])


def _gather_features(findings: Findings, anatomy: Anatomy) -> dict[str, np.ndarray]:
    """Features of all cases [n, d] by name, in the order of the predictions."""

    def describe_case(case: Mapping) -> dict[str, np.ndarray]:
        name = case["participant_id"]
        return describe_appearance(findings.store.volume(name), findings.measures_of(name), anatomy)

    cases, run = findings.predictions, findings.run
    described = [describe_case(cases[0])]  # which makes what all share
    with ThreadPoolExecutor() as threads:
        described += threads.map(describe_case, cases[1:])
    features = {name: np.stack([row[name] for row in described]) for name in described[0]}
    kept = read_arrays(run.features)[0].get("features") if run.features.is_file() else None
    if kept is not None and len(kept) == len(cases):
        features["activations"] = kept.astype(float)
    return features
