"""Evaluation on the test set: classification with intervals, relevance by region, peaks, mean maps, detection of
errors, and the reference that new scans are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from datxai.analysis import classification, detection, shift
from datxai.analysis.calibration import calibrate, fit_temperature
from datxai.analysis.regions import COLUMNS, label_regions, measure_regions, summarise_regions
from datxai.analysis.relevance import MeanMap, check_consistency, find_peak, make_heat_map, summarise_peaks
from datxai.analysis.shift import Shift, fit_shift
from datxai.anatomy import Anatomy
from datxai.applied import Applied
from datxai.case import describe_appearance
from datxai.config import Config, describe
from datxai.files import read_arrays, write_arrays, write_json, write_table
from datxai.findings import GROUPS, UNLABELLED, Findings
from datxai.run import Run
from datxai.volume import RELEVANCE, UPTAKE, Volume, save

SETS = ("train", "validation", "test")
NO_SHIFT_NOTE = "The run that is applied was made by a version that did not record what its training scans are like."


def depends(settings: Config) -> dict:
    reference = {} if settings.applied is None else {"held_against": "the run that is applied"}
    return {"atlas": describe(settings.atlas), "preprocessing": asdict(settings.preprocessing), **reference}


def outputs(run: Run) -> list[Path]:
    return [run.roi_relevance, run.regions, run.doubt, run.metrics, run.means, run.shift, run.shift_cases]


def make(settings: Config, run: Run) -> None:
    findings, anatomy = Findings(run), Anatomy.of(settings, cache=run.anatomy)
    trained = Trained.of(settings, findings)
    cases, unlabelled = findings.of_set("test"), findings.of_set(UNLABELLED)
    averages = _average(findings, cases)
    means = {name: average.mean for name, average in averages.items() if average.mean is not None}
    if {"TP_relevance", "TN_relevance"} <= means.keys():
        means["heat_map"] = make_heat_map(means["TP_relevance"], means["TN_relevance"])
    run.means.mkdir(parents=True, exist_ok=True)
    run.keep_only(run.means, [])
    for name, data in means.items():
        shows = UPTAKE if name.endswith("spect") else RELEVANCE
        save(Volume(data, anatomy.grid.affine, ({"step": "average", "group": name},)), run.mean_of(name), shows=shows)
    parcels = label_regions(*anatomy.parcellation, anatomy.brain, anatomy.striatum, anatomy.grid.spacing)
    rows, by_region = [], []
    for case in [*cases, *unlabelled]:
        relevance = findings.map_of(case["participant_id"]).data
        consistency = _check_consistency(relevance, case, anatomy, averages, trained)
        rows.append(_measure(relevance, case, anatomy, settings) | consistency)
        by_region.append(measure_regions(relevance, parcels, anatomy.brain))
    write_table(run.roi_relevance, rows, list(rows[0]))
    write_table(run.regions, summarise_regions(parcels, by_region, [row["group"] for row in rows]), COLUMNS)
    tested = rows[: len(cases)]  # the others have no label
    classifiers = _classify(findings, cases, [row["putamen_ipsilateral"] for row in tested], trained) if cases else {}
    doubts = _score_doubts(findings, cases, tested, trained.cutoff)
    write_table(run.doubt, doubts, list(doubts[0]) if doubts else ["participant_id", "misclassified"])
    summary = _summarise(settings, findings, rows, classifiers, doubts, trained)
    shift_summary = _hold_against_training(settings, findings, anatomy, trained.shift)
    write_json(run.metrics, summary | _compare_means(means, anatomy) | {"shift": shift_summary})


@dataclass(frozen=True)
class Trained:
    """Results on the training and validation cases, of this run or of the run that is applied, to judge test cases by.

    Attributes
    ----------
    cutoff : binding ratio below which a case is called reduced; None for a bundle of an earlier version
    nodes : of the classification tree; None for a bundle of an earlier version
    tree : the same tree as text
    fit : `datxai.analysis.calibration.fit_temperature` of the validation cases
    means : mean maps of the true negative and true positive cases of the run that is applied; None: use this run's own
    shift : fits and limits of the run that is applied; None: fit to this run's own cases
    """

    cutoff: float | None
    nodes: Sequence[Mapping] | None
    tree: str
    fit: Mapping
    means: Sequence[np.ndarray | None] | None = None
    shift: Shift | None = None

    @classmethod
    def of(cls, settings: Config, findings: Findings) -> Trained:
        if settings.applied is not None:
            applied = Applied.open(settings)
            reference, tree = applied.reference, applied.classifiers.get("cart", {})
            cutoff = applied.classifiers.get("sbr", {}).get("cutoff")
            fit = {key: value for key, value in reference.calibration.items() if key not in ("raw", "scaled")}
            fitted = reference.shift or Shift({}, {}, {}, NO_SHIFT_NOTE)
            return cls(cutoff, tree.get("nodes"), tree.get("tree", ""), fit, reference.means or (None, None), fitted)
        training = [case for case in findings.cohort if case["set"] == "train"]
        features = classification.tabulate_features([findings.sbr[case["participant_id"]] for case in training])
        labels = [case["label"] for case in training]
        tree = classification.fit_cart(features, labels)
        validation = findings.of_set("validation")
        fit = fit_temperature(*([case[key] for case in validation] for key in ("margin", "label")))
        return cls(classification.choose_cutoff(features[:, 0], labels), tree.nodes, tree.text, fit)


def _average(findings: Findings, cases: Sequence[Mapping]) -> dict[str, MeanMap]:
    """Mean image and mean map of each group, with one case in memory at a time."""
    averages = {f"{group}_{kind}": MeanMap() for group in GROUPS for kind in ("spect", "relevance")}
    for case in cases:
        name = case["participant_id"]
        averages[f"{case['group']}_spect"].add(findings.store.volume(name))
        averages[f"{case['group']}_relevance"].add(findings.map_of(name).data)
    return averages


def _check_consistency(
    relevance: np.ndarray, case: Mapping, anatomy: Anatomy, averages: Mapping[str, MeanMap], trained: Trained
) -> dict:
    """The columns of roi_relevance.tsv on whether a map resembles those of the predicted class."""
    normal, reduced = trained.means or (
        average.without(relevance) if case["group"] == group else average.mean
        for group, average in ((group, averages[f"{group}_relevance"]) for group in ("TN", "TP"))
    )
    if normal is None or reduced is None:
        return {"r_normal": None, "r_reduced": None, "consistent": None}
    return check_consistency(relevance, case["predicted"], normal, reduced, anatomy.brain)


def _measure(relevance: np.ndarray, case: Mapping, anatomy: Anatomy, settings: Config) -> dict:
    """The other columns of roi_relevance.tsv."""
    peak = find_peak(relevance, anatomy.grid, anatomy.striatum)
    return {
        "participant_id": case["participant_id"],
        "group": case["group"],
        **anatomy.measure_map(relevance, settings.preprocessing),
        **{f"peak_{name}": value for name, value in peak.items()},
    }


def _summarise(
    settings: Config,
    findings: Findings,
    rows: Sequence[Mapping],
    classifiers: Mapping,
    doubts: Sequence[Mapping],
    trained: Trained,
) -> dict:
    """The content of metrics.json, except for `_compare_means` and the shift."""
    lrp, tested = settings.attribution.method == "lrp", findings.of_set("test")
    return {
        "explanation": settings.explanation,
        "target": settings.target,
        "attribution": asdict(settings.attribution),
        "composite": settings.composite.name if lrp else None,
        "classifiers": classifiers,
        "detection": {
            name: {key: roc[key] for key in ("n", "errors", "auc", "auc_ci95")}
            for name, roc in (detection.trace_all(doubts) if doubts else {}).items()
        },
        "calibration": calibrate(trained.fit, *([case[key] for case in tested] for key in ("margin", "label"))),
        "peaks": summarise_peaks(
            [{"distance_mm": row["peak_distance_mm"], "inside": row["peak_inside"]} for row in rows]
        ),
        "inconsistent": sum(row["consistent"] is False for row in rows),
    }


def _compare_means(means: Mapping[str, np.ndarray], anatomy: Anatomy) -> dict:
    """The entries of metrics.json on the mean maps of true negatives and true positives; empty if either is missing."""
    if "heat_map" not in means:
        return {}
    brain, ipsilateral = anatomy.brain, anatomy.regions["striatum_left"]
    return {
        "heat_map_peak": find_peak(means["heat_map"], anatomy.grid, ipsilateral),
        "mean_map_correlation": float(
            np.corrcoef(means["TN_relevance"][brain], means["TP_relevance"][brain])[0, 1]
        ),
    }


def _classify(
    findings: Findings, cases: Sequence[Mapping], putamen_relevance: Sequence[float], trained: Trained
) -> dict:
    """Test-set performance of the network, the sign of the relevance, an SBR cutoff, and a classification tree.

    Cutoff and tree are chosen on the training cases.
    """
    features = classification.tabulate_features([findings.sbr[case["participant_id"]] for case in cases])
    lower, cutoff = features[:, 0], trained.cutoff
    relevance = np.asarray(putamen_relevance)
    calls = {
        "cnn": ([case["predicted"] for case in cases], [case["p_reduced"] for case in cases], {}),
        "roi_relevance": (relevance > 0, relevance, {"cutoff": 0.0}),
    }
    if cutoff is not None:
        calls["sbr"] = (lower < cutoff, -lower, {"cutoff": cutoff})
    if trained.nodes is not None:
        tree = {"tree": trained.tree, "nodes": trained.nodes}
        calls["cart"] = (*classification.follow_tree(trained.nodes, features), tree)
    labels = [case["label"] for case in cases]
    return {
        name: {**classification.summarise(labels, predicted, scores), **parameters}
        for name, (predicted, scores, parameters) in calls.items()
    }


def _score_doubts(
    findings: Findings, cases: Sequence[Mapping], rows: Sequence[Mapping], cutoff: float | None
) -> list[dict]:
    """Rows of doubt.tsv: whether a case is misclassified, and the scores that may indicate it."""
    doubts = []
    for case, row in zip(cases, rows, strict=True):
        ratios = findings.sbr[case["participant_id"]]
        lower = min(ratios["putamen_left"], ratios["putamen_right"])
        scores = detection.score_doubt({**case, **row, "sbr": lower}, cutoff)
        wrong = case["label"] != case["predicted"]
        doubts.append({"participant_id": case["participant_id"], "misclassified": wrong, **scores})
    return doubts


def _hold_against_training(
    settings: Config, findings: Findings, anatomy: Anatomy, applied: Shift | None = None
) -> dict:
    """Save the limits that mark scans unlike the training cases, and summarise how many test cases are marked."""
    run, cases, note = findings.run, findings.predictions, "" if applied is None else applied.note
    features = {} if note else _gather_features(findings, anatomy)
    if applied is not None:
        fitted, held_out = applied.with_features(features), []
    elif note := _find_obstacle(settings, findings):
        fitted, held_out = Shift({}, {}, {}, note), []
    else:
        if "activations" not in features:
            note = "The run has kept no activations of its network, which are not among the measures."
        sets = {name: _select_set(cases, features, name) for name in SETS}
        people = [findings.people[case["participant_id"]] for case in cases if case["set"] == "train"]
        names = [person.get("subject", person["participant_id"]) for person in people]
        fitted, held_out = fit_shift(sets["train"], sets["validation"], names, note), ["validation"]
    rows = [
        {"participant_id": case["participant_id"], "set": case["set"], **row}
        for case, row in zip(cases, fitted.tabulate(features) if fitted.measures else [])
        if case["set"] in (*held_out, "test", UNLABELLED)
    ]
    tested = [row for row in rows if row["set"] not in held_out]
    with_test = fitted.with_tested(tested) if fitted.measures else fitted
    write_arrays(run.shift, *(with_test if applied is None else fitted).pack())
    write_table(run.shift_cases, rows, ["participant_id", "set", "marked", *fitted.measures])
    return with_test.summarise(tested)


def _find_obstacle(settings: Config, findings: Findings) -> str:
    """The reason why scans cannot be compared with the training cases of a run; empty if they can."""
    n = len(findings.of_set("train"))
    if settings.training.max_epochs == 0:
        return "The network was not trained in this run, so that no scan can be compared with its training scans."
    if n < shift.MIN_CASES:
        return f"{n} training cases are too few to compare a scan with; {shift.MIN_CASES} are needed."
    return ""


def _select_set(cases: Sequence[Mapping], features: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    chosen = [i for i, case in enumerate(cases) if case["set"] == name]
    return {feature: values[chosen] for feature, values in features.items()}


def _gather_features(findings: Findings, anatomy: Anatomy) -> dict[str, np.ndarray]:
    """Features of all cases [n, d] by name, in the order of the predictions."""

    def describe_case(case: Mapping) -> dict[str, np.ndarray]:
        name = case["participant_id"]
        return describe_appearance(findings.store.volume(name), findings.measures_of(name), anatomy)

    cases, run = findings.predictions, findings.run
    described = [describe_case(cases[0])]  # fills the caches that the threads share
    with ThreadPoolExecutor() as threads:
        described += threads.map(describe_case, cases[1:])
    features = {name: np.stack([row[name] for row in described]) for name in described[0]}
    activations = read_arrays(run.features)[0].get("features") if run.features.is_file() else None
    if activations is not None and len(activations) == len(cases):
        features["activations"] = activations.astype(float)
    return features
