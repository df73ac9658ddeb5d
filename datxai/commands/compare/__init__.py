"""Comparison of runs: classification, agreement of relevance maps, ensemble and pooled folds.

`datxai.commands.compare.explanations` compares the explanations of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import numpy as np

from datxai.analysis.comparison import HOTTEST, compare_maps, summarise_agreement
from datxai.bundle import is_bundle, say_what_it_holds
from datxai.commands.compare.member import Member, differ_in, find_common, find_members
from datxai.commands.compare.pooled import combine, pool_folds
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import write_json, write_table
from datxai.lock import holding
from datxai.pages.tables import format_percent
from datxai.progress import Bar
from datxai.run import Run

PRINTED = ("accuracy", "sensitivity", "specificity")


def run(settings: Config, _: Run) -> None:
    """Compare the runs ``settings.runs``; a sweep's folder stands for the runs in it.

    The folder ``settings.out`` (by default ``compare``, in the given folder if there is only one, else in the current
    folder) then holds ``runs.tsv``, ``agreement.tsv`` (a row per pair of runs), ``ensemble.tsv`` (a row per test case),
    ``pooled.tsv`` (of folds, a row per case), ``compare.json`` and the figures. With ``settings.explanations``, the
    explanations of one run are compared instead.
    """
    from datxai.commands.compare import explanations

    if not settings.runs:
        raise InputError("No run to compare; give run folders, or that of a sweep, as `datxai compare RUN...`.")
    if bundles := [path for path in map(Path, settings.runs) if is_bundle(path)]:
        raise say_what_it_holds(bundles[0], "compare")
    with ExitStack() as stack:
        if settings.explanations:
            folder = _require_one(settings)
            stack.enter_context(holding(folder))
            return explanations.compare(folder, settings.explanations, Path(settings.out or folder / "compare"))
        members = find_members([Path(path) for path in settings.runs], settings.explanation, settings.check == "full")
        for member in members:
            stack.enter_context(holding(member.run.folder))
            member.run.entry("evaluate", "compare")
            member.findings.require_tested("compare")
        _compare(settings, members)


def _compare(settings: Config, members: Sequence[Member]) -> None:
    from datxai.pages.charts import plot_agreement, plot_comparison
    from datxai.pages.style import save_figure

    out = Path(settings.out or (Path(settings.runs[0]) / "compare" if len(settings.runs) == 1 else "compare"))
    people, remarks = find_common(members, "test")
    rows = {member.name: member.metrics["classifiers"]["cnn"] for member in members}
    ensemble = combine(differ_in(members, "train"), people)
    summary: dict = {
        "runs": [str(member.run.folder) for member in members],
        "explanation": settings.explanation,
        "common_test_cases": len(people),
    }
    if ensemble:
        rows["ensemble"] = ensemble["classification"]
        summary["ensemble"] = {key: value for key, value in ensemble.items() if key != "cases"}
        write_table(out / "ensemble.tsv", ensemble["cases"], list(ensemble["cases"][0]))
    else:
        remarks.append("No ensemble: that takes two networks or more with test cases in common.")
    reason = _why_no_agreement(members, people)
    if reason is None:
        pairs, correlation, overlap = _measure_agreement(members, people)
        summary["agreement"] = {
            "correlation": summarise_agreement(correlation),
            "overlap": summarise_agreement(overlap) | {"share_of_voxels": HOTTEST},
        }
        write_table(out / "agreement.tsv", pairs, list(pairs[0]))
        save_figure(plot_agreement(correlation, overlap, HOTTEST), out / "agreement")
    else:
        remarks.append(reason)
    pooled = pool_folds(members)
    if pooled:
        rows |= {name: group["classification"] for name, group in pooled.items()}
        table = [{"pooled": name, **case} for name, group in pooled.items() for case in group.pop("cases")]
        write_table(out / "pooled.tsv", table, list(table[0]))
        summary["pooled"] = pooled
        remarks += [remark for group in pooled.values() for remark in group.pop("remarks")]
    summary["remarks"] = remarks
    _write_runs(out, members, rows)
    save_figure(plot_comparison(rows), out / "runs")
    write_json(out / "compare.json", summary)
    print("\n".join(_describe(rows, summary)))
    print(f"Tables and figures: {out}")


def _require_one(settings: Config) -> Path:
    """The folder of the only run, whose explanations are compared."""
    names = ",".join(settings.explanations)
    if len(settings.runs) > 1:
        raise InputError(
            f"explanations=[{names}]: {len(settings.runs)} runs given, expected one, since explanations are compared "
            f"on the same predictions; leave out the others, or compare the runs by explanation=NAME."
        )
    return Path(settings.runs[0])


def _why_no_agreement(members: Sequence[Member], people: Sequence[tuple]) -> str | None:
    """The reason why relevance maps cannot be compared, as a sentence; None if they can."""
    if not people:
        return "No agreement of relevance maps: there is no test case in common."
    grids = [member.map_of(people[0]).grid for member in members]
    if not all(grid.same_as(grids[0]) for grid in grids):
        return "No agreement of relevance maps: they lie on different grids."
    return None


def _measure_agreement(members: Sequence[Member], people: Sequence[tuple]) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """Rows of agreement.tsv, and correlation and overlap (cases, pairs), with the maps of one case in memory."""
    brain = members[0].findings.anatomy.brain
    compared = []
    with Bar(len(people), "cases compared") as bar:
        for person in people:
            compared.append(compare_maps([member.map_of(person).data[brain] for member in members]))
            bar.update()
    correlation, overlap = (np.stack(values) for values in zip(*compared))
    rows = []
    for number, (a, b) in enumerate(combinations(members, 2)):
        same = np.mean([a.cases[person]["predicted"] == b.cases[person]["predicted"] for person in people])
        row = {"run_a": a.name, "run_b": b.name, "n": len(people), "same_decision": float(same)}
        for name, values in (("correlation", correlation), ("overlap", overlap)):
            summary = summarise_agreement(values[:, number])
            row |= {f"{name}_mean": summary["mean"], f"{name}_sd": summary["sd"]}
        rows.append(row)
    return rows, correlation, overlap


def _write_runs(out: Path, members: Sequence[Member], rows: Mapping[str, Mapping]) -> None:
    calibration = {member.name: member.metrics["calibration"] for member in members}
    table = []
    for name, figures in rows.items():
        row = {"run": name, **{key: figures[key] for key in ("n", "tn", "fp", "fn", "tp")}}
        for measure in PRINTED:
            low, high = figures[f"{measure}_ci95"] or (None, None)
            row |= {measure: figures[measure], f"{measure}_low": low, f"{measure}_high": high}
        if name in calibration:
            row |= {
                "temperature": calibration[name]["temperature"],
                "ece_raw": calibration[name]["raw"]["ece"],
                "ece_scaled": calibration[name]["scaled"]["ece"],
            }
        table.append(row)
    write_table(out / "runs.tsv", table, list(table[0]))


def _describe(rows: Mapping[str, Mapping], summary: Mapping) -> list[str]:
    """The lines to print."""
    lines = _align(
        [
            ["Test set, estimate (95 % interval)", "cases", *PRINTED],
            *(
                [name, str(row["n"]), *(format_percent(row[key], row[f"{key}_ci95"]) for key in PRINTED)]
                for name, row in rows.items()
            ),
        ]
    )
    if "agreement" in summary:
        lines += ["", f"Relevance maps of the {summary['common_test_cases']} cases, every two runs: mean (SD)"]
        titles = {
            "correlation": "correlation within the brain",
            "overlap": f"overlap of the hottest {100 * HOTTEST:g} %",
        }
        for name, title in titles.items():
            mean, sd = (summary["agreement"][name][key] for key in ("mean", "sd"))
            lines.append(f"  {title}  " + ("n/a" if sd is None else f"{mean:.2f} ({sd:.2f})"))
    if "ensemble" in summary:
        lines += ["", *_describe_ensemble(summary["ensemble"])]
    return [*lines, "", *summary["remarks"]]


def _describe_ensemble(ensemble: Mapping) -> list[str]:
    titles = {"disagree": "networks disagree"}
    if ensemble["interval"]:
        low, high = ensemble["interval"]
        titles["interval"] = f"{low:.3f} <= probability <= {high:.3f}"
    lines = [["Ensemble: uncertain where", "cases", "errors caught", "right among the rest"]]
    for name, title in titles.items():
        figures = ensemble["uncertain"][name]
        cells = [
            "{} of {}, ".format(*figures[f"{key}_of"]) + format_percent(figures[key], figures[f"{key}_ci95"])
            for key in ("rate", "caught", "accuracy")
        ]
        lines.append([title, *cells])
    return _align(lines)


def _align(lines: Sequence[Sequence[str]]) -> list[str]:
    """Align the columns of a table; all lines but the header are indented."""
    lines = [
        [cell if number == 0 or column else f"  {cell}" for column, cell in enumerate(line)]
        for number, line in enumerate(lines)
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
