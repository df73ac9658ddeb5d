"""Runs side by side: how well each classifies, how far their relevance maps agree, what they say together.

Of one run its explanations side by side: `datxai.commands.explanations`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from datxai.analysis.calibration import choose_uncertain, measure_reliability, measure_uncertain
from datxai.analysis.classification import summarise
from datxai.analysis.comparison import HOTTEST, compare_maps, summarise_agreement
from datxai.bundle import is_bundle, say_what_it_holds
from datxai.config import DEFAULT, Config, require_name
from datxai.errors import InputError
from datxai.files import hash_content, write_json, write_table
from datxai.findings import Findings
from datxai.lock import holding
from datxai.pages.tables import format_percent
from datxai.progress import Bar
from datxai.run import Run
from datxai.volume import Volume

SHOWN = ("accuracy", "sensitivity", "specificity")
_OF_FOLD = re.compile(r"split\.(?:fold|repeat|test)=(?:\[[^]]*\]|[^,]*),?")  # in the name of a sweep's job
PERSON = ("participant_id", "subject", "age", "sex", "label")  # what identifies a case across runs


@dataclass(frozen=True)
class Member:
    """One of the runs compared."""

    name: str
    findings: Findings

    @property
    def run(self) -> Run:
        return self.findings.run

    @property
    def metrics(self) -> dict:
        return self.findings.metrics

    @cached_property
    def cases(self) -> dict[tuple, dict]:
        """The predictions by who a case is."""
        people = self.findings.people
        return {
            tuple(people[case["participant_id"]].get(key) for key in PERSON): case for case in self.findings.predictions
        }

    def of_set(self, name: str) -> set[tuple]:
        return {person for person, case in self.cases.items() if case["set"] == name}

    def probabilities(self, people: Sequence[tuple]) -> np.ndarray:
        """The calibrated probability of reduced."""
        return self.findings.calibrate([self.cases[person]["margin"] for person in people])

    def map_of(self, person: tuple) -> Volume:
        """The relevance map of a case."""
        return self.findings.map_of(person[0])

    @cached_property
    def split(self) -> dict:
        """The settings of its split, those of its kind; empty where they are not recorded, or all cases are tested."""
        entry = self.run.find("split")
        return {} if entry is None else entry["config"].get("split", {})

    @property
    def apart_from_fold(self) -> str:
        """What its network was made from, but for the cases that are tested and for seeds."""
        scans, training = self.run.find("preprocess") or {}, self.run.entry("train", "compare")["config"]
        split = {name: value for name, value in self.split.items() if name not in ("fold", "repeat", "test")}
        recipe = {name: value for name, value in training.get("training", {}).items() if name != "seed"}
        return hash_content([scans.get("fingerprint"), split, {**training, "training": recipe}])

    def fingerprint(self, stage: str) -> str:
        return self.run.entry(stage, "compare")["fingerprint"]


def run(settings: Config, _: Run) -> None:
    """Compare the runs ``settings.runs``; a sweep's folder stands for the runs within it.

    The folder ``settings.out`` (by default ``compare``, in the sweep's folder if there is but one, else in the current
    folder) then holds ``runs.tsv``, ``agreement.tsv`` (a row per pair of runs), ``ensemble.tsv`` (a row per test case),
    ``pooled.tsv`` (of folds, a row per case), ``compare.json`` and the figures. With ``settings.explanations`` there
    is one run, whose explanations are compared.
    """
    from datxai.commands import explanations

    if not settings.runs:
        raise InputError("No run to compare; give run folders, or that of a sweep, as `datxai compare RUN...`.")
    if bundles := [path for path in map(Path, settings.runs) if is_bundle(path)]:
        raise say_what_it_holds(bundles[0], "compare")
    with ExitStack() as stack:
        if settings.explanations:
            folder = _require_one(settings)
            stack.enter_context(holding(folder))
            return explanations.compare(folder, settings.explanations, Path(settings.out or folder / "compare"))
        given, full = [Path(folder) for folder in settings.runs], settings.check == "full"
        members = _find_members(given, settings.explanation, full)
        for member in members:
            stack.enter_context(holding(member.run.folder))
            member.run.entry("evaluate", "compare")
            member.findings.require_tested("compare")
        _compare(settings, members)


def _compare(settings: Config, members: Sequence[Member]) -> None:
    from datxai.pages.charts import plot_agreement, plot_comparison
    from datxai.pages.style import save_figure

    out = Path(settings.out or (Path(settings.runs[0]) / "compare" if len(settings.runs) == 1 else "compare"))
    people, remarks = _find_common(members, "test")
    rows = {member.name: member.metrics["classifiers"]["cnn"] for member in members}
    ensemble = _combine(_differ_in(members, "train"), people)
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
    pooled = _pool_folds(members)
    if pooled:
        rows |= {name: of_group["classification"] for name, of_group in pooled.items()}
        table = [{"pooled": name, **case} for name, of_group in pooled.items() for case in of_group.pop("cases")]
        write_table(out / "pooled.tsv", table, list(table[0]))
        summary["pooled"] = pooled
        remarks += [remark for of_group in pooled.values() for remark in of_group.pop("remarks")]
    summary["remarks"] = remarks
    _write_runs(out, members, rows)
    save_figure(plot_comparison(rows), out / "runs")
    write_json(out / "compare.json", summary)
    print("\n".join(_describe(rows, summary)))
    print(f"Tables and figures: {out}")


def _require_one(settings: Config) -> Path:
    """The folder of the one run whose explanations are compared."""
    names = ",".join(settings.explanations)
    if len(settings.runs) > 1:
        raise InputError(
            f"explanations=[{names}]: {len(settings.runs)} runs given, expected one, since explanations are compared "
            f"on the same predictions; leave out the others, or compare the runs by explanation=NAME."
        )
    return Path(settings.runs[0])


def _find_members(given: Sequence[Path], explanation: str, full: bool) -> list[Member]:
    """The evaluated runs given and within the folders given, each once; their maps are those of ``explanation``."""
    require_name(explanation)
    folders: dict[Path, None] = {}
    named = "" if explanation == DEFAULT else f" explanation={explanation}"
    for place in given:
        if not place.is_dir():
            raise InputError(f"{place}: no such folder, expected a run folder or that of a sweep.")
        within = [path.parent for path in sorted(place.glob("*/manifest.json"))]
        evaluated = [folder for folder in [place, *within] if Run(folder, explanation, full).holds("evaluate")]
        for folder in sorted({*within} - {*evaluated}):
            print(f"{folder}: left out, it has not been evaluated; `datxai run='{folder}'{named}` goes on with it")
        if not evaluated:
            raise InputError(f"{place}: no evaluated run, and none within it; run `datxai run={place}{named}` first.")
        folders |= dict.fromkeys(evaluated)
    short = [folder.resolve().name for folder in folders]
    names = [str(folder) if short.count(name) > 1 else name for folder, name in zip(folders, short)]
    members = [Member(name, Findings(Run(folder, explanation, full))) for name, folder in zip(names, folders)]
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
    """One member of each group that made a stage from the same settings and inputs."""
    first: dict[str, Member] = {}
    for member in members:
        first.setdefault(member.fingerprint(stage), member)
    return list(first.values())


def _find_common(members: Sequence[Member], name: str) -> tuple[list[tuple], list[str]]:
    """The cases that are in this set in every run, and a sentence on the others."""
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
    probabilities = np.stack([member.probabilities(people) for member in members])
    mean, votes = probabilities.mean(axis=0), (probabilities > 0.5).sum(axis=0)
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
        "uncertain": {name: measure_uncertain(cases, predicted != labels) for name, cases in uncertain.items()},
        "cases": [
            {
                "participant_id": person[0],
                "label": labels[number],
                "predicted": predicted[number],
                "p_reduced": mean[number],
                "votes_reduced": votes[number],
                **{f"uncertain_{name}": bool(is_uncertain[number]) for name, is_uncertain in uncertain.items()},
            }
            for number, person in enumerate(people)
        ],
    }


def _pool_folds(members: Sequence[Member]) -> dict[str, dict]:
    """Out-of-fold predictions as one estimate: each case by the networks that did not see it.

    One entry for the runs that differ in what they test, and in seeds, alone; a case that several test (repeats) has
    the mean of their calibrated probabilities.
    """
    groups: dict[str, list[Member]] = {}
    for member in members:
        if "fold" in member.split or member.split.get("test"):
            groups.setdefault(member.apart_from_fold, []).append(member)
    several = [group for group in groups.values() if len(group) > 1]
    found = {}
    for number, group in enumerate(several, start=1):
        settings = _OF_FOLD.sub("", group[0].name).strip(",")
        name = "pooled" if len(several) == 1 else f"pooled {settings or number}"
        found[name] = _pool(group) | {"remarks": _name_missing_folds(name, group)}
    return found


def _pool(group: Sequence[Member]) -> dict:
    tested: dict[tuple, list[tuple[str, float]]] = {}
    for member in group:
        people = sorted(member.of_set("test"), key=str)
        for person, value in zip(people, member.probabilities(people)):
            tested.setdefault(person, []).append((member.name, float(value)))
    people = sorted(tested, key=str)
    labels = np.array([person[PERSON.index("label")] for person in people])
    mean = np.array([np.mean([value for _, value in tested[person]]) for person in people])
    predicted = (mean > 0.5).astype(int)
    accuracies = [member.metrics["classifiers"]["cnn"]["accuracy"] for member in group]
    return {
        "runs": [member.name for member in group],
        "classification": summarise(labels, predicted, mean),
        "accuracy_of_runs": {"mean": float(np.mean(accuracies)), "sd": float(np.std(accuracies, ddof=1))},
        "cases": [
            {
                "participant_id": person[0],
                "label": label,
                "predicted": call,
                "p_reduced": value,
                "runs": " ".join(run for run, _ in tested[person]),
            }
            for person, label, call, value in zip(people, labels, predicted, mean)
        ],
    }


def _name_missing_folds(name: str, group: Sequence[Member]) -> list[str]:
    """A sentence where some of the folds have not been evaluated."""
    if "fold" not in group[0].split:
        return []
    there = {(member.split["repeat"], member.split["fold"]) for member in group}
    repeats, folds = sorted({repeat for repeat, _ in there}), range(group[0].split["folds"])
    missing = [
        f"{fold} of repeat {repeat}" if len(repeats) > 1 else str(fold)
        for repeat in repeats
        for fold in folds
        if (repeat, fold) not in there
    ]
    return [f"Of {name} the folds {', '.join(missing)} are missing; its cases are of the others."] if missing else []


def _why_no_agreement(members: Sequence[Member], people: Sequence[tuple]) -> str | None:
    """The reason why relevance maps cannot be compared, as a sentence; None if they can."""
    if not people:
        return "No agreement of relevance maps: there is no test case in common."
    grids = [member.map_of(people[0]).grid for member in members]
    if not all(grid.same_as(grids[0]) for grid in grids):
        return "No agreement of relevance maps: they lie on different grids."
    return None


def _measure_agreement(members: Sequence[Member], people: Sequence[tuple]) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """Rows of agreement.tsv, and correlation and overlap (cases, pairs); in memory are the maps of one case."""
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
        for measure in SHOWN:
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
            ["Test set, estimate (95 % interval)", "cases", *SHOWN],
            *(
                [name, str(row["n"]), *(format_percent(row[key], row[f"{key}_ci95"]) for key in SHOWN)]
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
    """A table in columns, all but its head indented."""
    lines = [
        [cell if number == 0 or column else f"  {cell}" for column, cell in enumerate(line)]
        for number, line in enumerate(lines)
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
