"""Runs side by side: how well each classifies, how far their relevance maps agree, what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from datxai.analysis.calibration import choose_uncertain, measure_reliability, measure_uncertain, probability
from datxai.analysis.classification import summarise
from datxai.analysis.comparison import HOTTEST, compare_maps, summarise_agreement
from datxai.analysis.tables import format_percent
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json, read_table, write_json, write_table
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.progress import Bar
from datxai.results import read_predictions
from datxai.run import Run
from datxai.volume import load

SHOWN = ("accuracy", "sensitivity", "specificity")
PERSON = ("participant_id", "subject", "age", "sex", "label")  # what tells a case from one of another cohort


@dataclass(frozen=True)
class Member:
    """One of the runs compared."""

    name: str
    run: Run

    @cached_property
    def metrics(self) -> dict:
        return read_json(self.run.metrics)

    @cached_property
    def cases(self) -> dict[tuple, dict]:
        """The predictions by who a case is."""
        people = {row["participant_id"]: tuple(row[key] for key in PERSON) for row in read_table(self.run.participants)}
        return {people[case["participant_id"]]: case for case in read_predictions(self.run)}

    def of_set(self, name: str) -> set[tuple]:
        return {person for person, case in self.cases.items() if case["set"] == name}

    def probabilities(self, people: Sequence[tuple]) -> np.ndarray:
        """The calibrated probability of reduced."""
        margins = [self.cases[person]["logit_reduced"] - self.cases[person]["logit_normal"] for person in people]
        return probability(margins, self.metrics["calibration"]["temperature"])

    def fingerprint(self, stage: str) -> str:
        return self.run.entries()[stage]["fingerprint"]


def run(settings: Config, _: Run) -> None:
    """Compare the runs ``settings.runs``; a sweep's folder stands for the runs within it.

    The folder ``settings.out`` (by default ``compare``, in the sweep's folder if there is but one, else in the current
    folder) then holds ``runs.tsv``, ``agreement.tsv`` (a row per pair of runs), ``ensemble.tsv`` (a row per test case),
    ``compare.json`` and the figures.
    """
    from datxai.analysis.charts import plot_agreement, plot_comparison
    from datxai.analysis.style import save_figure

    if not settings.runs:
        raise InputError("No run to compare; give run folders, or that of a sweep, as `datxai compare RUN...`.")
    members = _find_members([Path(given) for given in settings.runs])
    out = Path(settings.out or (Path(settings.runs[0]) / "compare" if len(settings.runs) == 1 else "compare"))
    people, remarks = _find_common(members, "test")
    rows = {member.name: member.metrics["classifiers"]["cnn"] for member in members}
    ensemble = _combine(_differ_in(members, "train"), people)
    found: dict = {"runs": [str(member.run.folder) for member in members], "common_test_cases": len(people)}
    if ensemble:
        rows["ensemble"] = ensemble["classification"]
        found["ensemble"] = {key: value for key, value in ensemble.items() if key != "cases"}
        write_table(out / "ensemble.tsv", ensemble["cases"], list(ensemble["cases"][0]))
    else:
        remarks.append("No ensemble: that takes two networks or more with test cases in common.")
    reason = _why_no_agreement(members, people)
    if reason is None:
        pairs, correlation, overlap = _measure_agreement(members, people)
        found["agreement"] = {
            "correlation": summarise_agreement(correlation),
            "overlap": summarise_agreement(overlap) | {"share_of_voxels": HOTTEST},
        }
        write_table(out / "agreement.tsv", pairs, list(pairs[0]))
        save_figure(plot_agreement(correlation, overlap, HOTTEST), out / "agreement")
    else:
        remarks.append(reason)
    found["remarks"] = remarks
    _write_runs(out, members, rows)
    save_figure(plot_comparison(rows), out / "runs")
    write_json(out / "compare.json", found)
    print("\n".join(_describe(rows, found)))
    print(f"Tables and figures: {out}")


def _find_members(given: Sequence[Path]) -> list[Member]:
    """The evaluated runs given and within the folders given, each once."""
    folders: dict[Path, None] = {}
    for place in given:
        if not place.is_dir():
            raise InputError(f"{place}: no such folder, expected a run folder or that of a sweep.")
        within = [path.parent for path in sorted(place.glob("*/manifest.json"))]
        evaluated = [folder for folder in [place, *within] if Run(folder).holds("evaluate")]
        for folder in sorted({*within} - {*evaluated}):
            print(f"{folder}: left out, it has not been evaluated; `datxai run='{folder}'` goes on with it")
        if not evaluated:
            raise InputError(f"{place}: no evaluated run, and none within it; run `datxai run={place}` first.")
        folders |= dict.fromkeys(evaluated)
    short = [folder.resolve().name for folder in folders]
    members = [
        Member(str(folder) if short.count(name) > 1 else name, Run(folder)) for folder, name in zip(folders, short)
    ]
    for member in members:
        member.run.entry("evaluate", "compare")
    different = _differ_in(members, "evaluate")
    for member in members:
        if member not in different:
            print(f"{member.run.folder}: left out, it is the same as another run")
    if len(different) < 2:
        raise InputError(f"{', '.join(map(str, given))}: one run only, expected two or more that differ.")
    return different


def _differ_in(members: Sequence[Member], stage: str) -> list[Member]:
    """The first of those that made a stage from the same settings and inputs."""
    first: dict[str, Member] = {}
    for member in members:
        first.setdefault(member.fingerprint(stage), member)
    return list(first.values())


def _find_common(members: Sequence[Member], name: str) -> tuple[list[tuple], list[str]]:
    """The cases that are in this set in every run, and what is to be said of the others."""
    sets = [member.of_set(name) for member in members]
    common = set.intersection(*sets)
    remarks = []
    if any(people != common for people in sets):
        sizes = ", ".join(str(len(people)) for people in sets)
        remarks.append(f"The {name} sets differ ({sizes} cases); the {len(common)} cases in all of them are compared.")
    return [person for person in members[0].cases if person in common], remarks


def _combine(members: Sequence[Member], people: Sequence[tuple]) -> dict | None:
    """The mean of the networks' calibrated probabilities, and two ways to call a case uncertain."""
    if len(members) < 2 or not people:
        return None
    each = np.stack([member.probabilities(people) for member in members])
    mean, votes = each.mean(axis=0), (each > 0.5).sum(axis=0)
    labels = np.array([members[0].cases[person]["label"] for person in people])
    predicted = (mean > 0.5).astype(int)
    uncertain = {"disagree": (votes > 0) & (votes < len(members))}
    validation, _ = _find_common(members, "validation")
    half_width = None
    if validation:
        half_width = choose_uncertain(np.mean([member.probabilities(validation) for member in members], axis=0))
        uncertain["interval"] = np.abs(mean - 0.5) <= half_width
    reliability = measure_reliability(mean, labels)
    return {
        "members": len(members),
        "classification": summarise(labels, predicted, mean),
        "ece": reliability["ece"],
        "ece_if_calibrated": reliability["ece_if_calibrated"],
        "brier": float(((mean - labels) ** 2).mean()),
        "interval": None if half_width is None else [0.5 - half_width, 0.5 + half_width],
        "validation_cases": len(validation),
        "uncertain": {name: measure_uncertain(chosen, predicted != labels) for name, chosen in uncertain.items()},
        "cases": [
            {
                "participant_id": person[0],
                "label": labels[number],
                "predicted": predicted[number],
                "p_reduced": mean[number],
                "votes_reduced": votes[number],
                **{f"uncertain_{name}": bool(chosen[number]) for name, chosen in uncertain.items()},
            }
            for number, person in enumerate(people)
        ],
    }


def _why_no_agreement(members: Sequence[Member], people: Sequence[tuple]) -> str | None:
    """The reason why relevance maps cannot be compared, as a sentence; None if they can."""
    if not people:
        return "No agreement of relevance maps: there is no test case in common."
    grids = [load(_map_of(member, people[0]), blank=True).grid for member in members]
    if not all(grid.same_as(grids[0]) for grid in grids):
        return "No agreement of relevance maps: they lie on different grids."
    return None


def _measure_agreement(members: Sequence[Member], people: Sequence[tuple]) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """Rows of agreement.tsv, and correlation and overlap (cases, pairs); in memory are the maps of one case."""
    grid = load(_map_of(members[0], people[0]), blank=True).grid
    atlas = load_atlas(**members[0].run.entries()["evaluate"]["config"]["atlas"])
    brain = make_regions(grid, atlas)["brain"]
    found = []
    with Bar(len(people), "cases compared") as bar:
        for person in people:
            found.append(compare_maps([load(_map_of(member, person), blank=True).data[brain] for member in members]))
            bar.update()
    correlation, overlap = (np.stack(values) for values in zip(*found))
    rows = []
    for number, (a, b) in enumerate(combinations(members, 2)):
        same = np.mean([a.cases[person]["predicted"] == b.cases[person]["predicted"] for person in people])
        row = {"run_a": a.name, "run_b": b.name, "n": len(people), "same_decision": float(same)}
        for name, values in (("correlation", correlation), ("overlap", overlap)):
            summary = summarise_agreement(values[:, number])
            row |= {f"{name}_mean": summary["mean"], f"{name}_sd": summary["sd"]}
        rows.append(row)
    return rows, correlation, overlap


def _map_of(member: Member, person: tuple) -> Path:
    return member.run.relevance_of(person[0])


def _write_runs(out: Path, members: Sequence[Member], rows: Mapping[str, Mapping]) -> None:
    calibration = {member.name: member.metrics["calibration"] for member in members}
    table = []
    for name, found in rows.items():
        row = {"run": name, **{key: found[key] for key in ("n", "tn", "fp", "fn", "tp")}}
        for measure in SHOWN:
            low, high = found[f"{measure}_ci95"] or (None, None)
            row |= {measure: found[measure], f"{measure}_low": low, f"{measure}_high": high}
        if name in calibration:
            row |= {
                "temperature": calibration[name]["temperature"],
                "ece_raw": calibration[name]["raw"]["ece"],
                "ece_scaled": calibration[name]["scaled"]["ece"],
            }
        table.append(row)
    write_table(out / "runs.tsv", table, list(table[0]))


def _describe(rows: Mapping[str, Mapping], found: Mapping) -> list[str]:
    """The lines to print."""
    lines = _align(
        [
            ["Test set, estimate (95 % interval)", "cases", *SHOWN],
            *(
                [name, str(row["n"]), *(format_percent(row[key], row[f"{key}_ci95"]) for key in SHOWN)]
                for name, row in rows.items()
            ),
        ]
    )
    if "agreement" in found:
        lines += ["", f"Relevance maps of the {found['common_test_cases']} cases, every two runs: mean (SD)"]
        titles = {
            "correlation": "correlation within the brain",
            "overlap": f"overlap of the hottest {100 * HOTTEST:g} %",
        }
        for name, title in titles.items():
            mean, sd = (found["agreement"][name][key] for key in ("mean", "sd"))
            lines.append(f"  {title}  " + ("n/a" if sd is None else f"{mean:.2f} ({sd:.2f})"))
    if "ensemble" in found:
        lines += ["", *_describe_ensemble(found["ensemble"])]
    return [*lines, "", *found["remarks"]]


def _describe_ensemble(ensemble: Mapping) -> list[str]:
    titles = {"disagree": "networks disagree"}
    if ensemble["interval"]:
        low, high = ensemble["interval"]
        titles["interval"] = f"{low:.3f} <= probability <= {high:.3f}"
    lines = [["Ensemble: uncertain where", "cases", "errors caught", "right among the rest"]]
    for name, title in titles.items():
        found = ensemble["uncertain"][name]
        told = [
            f"{found[f'{key}_of'][0]} of {found[f'{key}_of'][1]}, {format_percent(found[key], found[f'{key}_ci95'])}"
            for key in ("rate", "caught", "accuracy")
        ]
        lines.append([title, *told])
    return _align(lines)


def _align(lines: Sequence[Sequence[str]]) -> list[str]:
    """A table in columns, all but its head indented."""
    lines = [
        [cell if number == 0 or column else f"  {cell}" for column, cell in enumerate(line)]
        for number, line in enumerate(lines)
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
