"""Comparison of explanations of one run: agreement of their maps of the same decisions, and which one leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from datxai.analysis.comparison import HOTTEST, compare_maps, count_leads, summarise_agreement
from datxai.analysis.relevance import measure_distance
from datxai.config import require_name
from datxai.errors import InputError
from datxai.files import write_json, write_table
from datxai.findings import GROUPS, Findings
from datxai.progress import Bar
from datxai.run import Run

LEADS = {  # scores of a case's map (the higher, the better) and their descriptions
    "peak": "peak nearer to the striatum",
    "sign": "sign of the relevance in the putamen right",
    "consistent": "like the mean map of the class called",
}


def compare(folder: Path, names: Sequence[str], out: Path) -> None:
    """Compare the explanations ``names`` of the run in ``folder`` on its test cases.

    ``out`` then holds ``explanations.tsv`` (a row each), ``agreement.tsv`` (a row per pair and group of cases),
    ``leads.tsv`` (per pair and measure), ``cases.tsv`` (per pair and case), ``compare.json`` and the figures. All are
    based on the same predictions: an explanation that is older than the network is refused (`InputError`).
    """
    from datxai.pages.charts import plot_agreement
    from datxai.pages.figures import plot_explanations
    from datxai.pages.style import save_figure

    explanations = _open(folder, names)
    first = next(iter(explanations.values()))
    first.require_tested("compare")
    correlation, overlap = _measure_agreement(explanations)
    cases = _tabulate_cases(explanations, correlation, overlap)
    summary = {
        "run": str(folder),
        "cases": len(first.tested),
        "explanations": [_describe(name, findings) for name, findings in explanations.items()],
        "agreement": [row for pair in combinations(explanations, 2) for row in _summarise(pair, cases)],
        "leads": [row for pair in combinations(explanations, 2) for row in _count_leads(pair, explanations)],
        "share_of_voxels": HOTTEST,
    }
    write_table(out / "cases.tsv", cases, list(cases[0]))
    for name in ("explanations", "agreement", "leads"):
        write_table(out / f"{name}.tsv", summary[name], list(summary[name][0]))
    write_json(out / "compare.json", summary)
    save_figure(plot_agreement(correlation, overlap, HOTTEST), out / "agreement")
    maps = {name: findings.maps for name, findings in explanations.items()}
    counts = {group: first.groups.count(group) for group in GROUPS}
    save_figure(plot_explanations(first.anatomy.frame, maps, counts), out / "maps")
    print("\n".join(_format_lines(summary)))
    print(f"Tables and figures: {out}")


def _open(folder: Path, names: Sequence[str]) -> dict[str, Findings]:
    """The findings of each explanation, each evaluated on the current predictions of the run."""
    option = f"explanations=[{','.join(names)}]"
    if len({*names}) < len(names) or len(names) < 2:
        raise InputError(f"{option}: expected two names or more that differ; change explanations=[NAME,NAME].")
    for name in names:
        require_name(name)
    runs = [Run(folder, name) for name in names]
    for run in runs:
        run.entry("evaluate", "compare")
    return {run.explanation: Findings(run) for run in runs}


def _measure_agreement(explanations: Mapping[str, Findings]) -> tuple[np.ndarray, np.ndarray]:
    """Correlation and overlap (cases, pairs), with the maps of one case in memory."""
    first, compared = next(iter(explanations.values())), []
    brain = first.anatomy.brain
    with Bar(len(first.tested), "cases compared") as bar:
        for case in first.tested:
            maps = [findings.map_of(case["participant_id"]).data[brain] for findings in explanations.values()]
            compared.append(compare_maps(maps))
            bar.update()
    correlation, overlap = (np.stack(values) for values in zip(*compared))
    return correlation, overlap


def _tabulate_cases(
    explanations: Mapping[str, Findings], correlation: np.ndarray, overlap: np.ndarray
) -> list[dict]:
    """The rows of cases.tsv."""
    measures = {name: findings.map_measures for name, findings in explanations.items()}
    rows = []
    for pair, (a, b) in enumerate(combinations(explanations, 2)):
        for number, (row_a, row_b) in enumerate(zip(measures[a], measures[b], strict=True)):
            assert row_a["participant_id"] == row_b["participant_id"], "cases differ in their order"
            peaks = [[row[f"peak_{axis}"] for axis in "xyz"] for row in (row_a, row_b)]
            rows.append(
                {
                    "explanation_a": a,
                    "explanation_b": b,
                    "participant_id": row_a["participant_id"],
                    "group": row_a["group"],
                    "correlation": _none_if_nan(correlation[number, pair]),
                    "overlap": _none_if_nan(overlap[number, pair]),
                    "peaks_apart_mm": measure_distance(*peaks),
                }
            )
    return rows


def _summarise(pair: tuple[str, str], cases: Sequence[Mapping]) -> list[dict]:
    """The rows of agreement.tsv of a pair: all test cases, then each group."""
    of_pair = [case for case in cases if (case["explanation_a"], case["explanation_b"]) == pair]
    rows = []
    for group in ("all", *GROUPS):
        chosen = [case for case in of_pair if group in ("all", case["group"])]
        row: dict = {"explanation_a": pair[0], "explanation_b": pair[1], "group": group, "n": len(chosen)}
        for name in ("correlation", "overlap"):
            figures = summarise_agreement(np.array([case[name] for case in chosen], float))
            row |= {f"{name}_mean": figures["mean"], f"{name}_sd": figures["sd"]}
        distances = [case["peaks_apart_mm"] for case in chosen if case["peaks_apart_mm"] is not None]
        rows.append({**row, "peaks_apart_mm_median": float(np.median(distances)) if distances else None})
    return rows


def _count_leads(pair: tuple[str, str], explanations: Mapping[str, Findings]) -> list[dict]:
    """The rows of leads.tsv of a pair."""
    a, b = (_score(explanations[name]) for name in pair)
    names = {"explanation_a": pair[0], "explanation_b": pair[1]}
    return [{**names, "measure": measure, **count_leads(a[measure], b[measure])} for measure in LEADS]


def _score(findings: Findings) -> dict[str, list[float | None]]:
    """The scores `LEADS` of each test case; None if unknown."""
    labels = {case["participant_id"]: case["label"] for case in findings.predictions}
    rows = findings.map_measures
    return {
        "peak": [None if row["peak_distance_mm"] is None else -row["peak_distance_mm"] for row in rows],
        "sign": [float((row["putamen_ipsilateral"] > 0) == bool(labels[row["participant_id"]])) for row in rows],
        "consistent": [None if row["consistent"] is None else float(row["consistent"]) for row in rows],
    }


def _describe(name: str, findings: Findings) -> dict:
    """A row of explanations.tsv, from the metrics of `evaluate`."""
    metrics = findings.metrics
    sign, peaks, errors = metrics["classifiers"]["roi_relevance"], metrics["peaks"], metrics["detection"]["map"]
    return {
        "explanation": name,
        "method": metrics["attribution"]["method"],
        "composite": metrics["composite"],
        "target": metrics["target"],
        "n": peaks["n"],
        **{f"peaks_{key}": peaks[key] for key in ("inside", "near", "median_distance_mm")},
        "inconsistent": metrics["inconsistent"],
        "mean_map_correlation": metrics.get("mean_map_correlation"),
        **{f"sign_{key}": sign[key] for key in ("accuracy", "auc")},
        "errors_found_auc": errors["auc"],
    }


def _format_lines(summary: Mapping) -> list[str]:
    """The lines to print."""
    lines = []
    for row in summary["explanations"]:
        lines.append(
            f"{row['explanation']}: {row['composite'] or row['method']}, target={row['target']}; "
            f"{row['peaks_inside']} of {row['n']} peaks in the striatum, {row['inconsistent']} maps inconsistent"
        )
    for row in summary["agreement"]:
        if row["group"] == "all":
            means = {key: row[f"{key}_mean"] for key in ("correlation", "overlap")}
            text = ", ".join(f"{key} {'n/a' if value is None else f'{value:.2f}'}" for key, value in means.items())
            lines.append(f"{row['explanation_a']} and {row['explanation_b']}, {row['n']} cases: {text}")
    for row in summary["leads"]:
        lines.append(
            f"  {LEADS[row['measure']]}: {row['explanation_a']} in {row['a']}, {row['explanation_b']} in {row['b']}, "
            f"as good in {row['tied']} (p = {row['p']:.2g})"
        )
    return lines


def _none_if_nan(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
