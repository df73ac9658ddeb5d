"""Internal and external test side by side: the cohort that a run was applied to, beside that run's own test cases."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from datxai.analysis.calibration import probability
from datxai.analysis.classification import follow_tree, summarise, tabulate_features
from datxai.analysis.cohorts import compare_calibration, compare_calls, compare_shares
from datxai.cohort.table import require_column
from datxai.config import Config
from datxai.files import read_json, write_json, write_table
from datxai.findings import UNLABELLED, Findings
from datxai.pages.charts import plot_comparison
from datxai.pages.content import ExternalPage
from datxai.pages.report import write_external_report
from datxai.pages.style import save_figure
from datxai.pages.tables import format_percent
from datxai.reader import Reference, open_applied
from datxai.run import Run
from datxai.volume import sidecar_path

WHOLE = "all"  # the group of all cases
DECADE = 10  # years of a group by age


def depends(settings: Config) -> dict:
    return {"subgroups": settings.subgroups}


def outputs(run: Run) -> list[Path]:
    return [run.external.with_suffix(suffix) for suffix in (".html", ".tsv", ".json", "")]


def make(settings: Config, run: Run) -> None:
    findings, (known, reference) = Findings(run), open_applied(settings)
    internal, external = (Side(found, reference, known.metrics["classifiers"]) for found in (known, findings))
    for column in settings.subgroups:
        require_column(findings.people.values(), column, run.participants, f"subgroups=[{column}]")
    rows = list(_compare(settings, internal, external))
    remarks = list(_find_remarks(settings, internal, external))
    _, table, document, figures = outputs(run)
    figures.mkdir(exist_ok=True)
    write_table(table, rows, list(rows[0]))
    entry = known.run.entry("evaluate", "external")
    applied = {key: entry.get(key) for key in ("fingerprint", "output_hash", "finished")}
    write_json(document, {"applied": applied, "cohort": external.count(), "remarks": remarks})
    _write_page(settings, internal, external, rows, remarks, applied)


@dataclass(frozen=True, eq=False)
class Side:
    """The test cases of a cohort, and what is held against them: ``classifiers`` and ``reference`` are those of the run
    that is applied."""

    findings: Findings
    reference: Reference
    classifiers: Mapping

    @cached_property
    def judged(self) -> list[dict]:
        """Test cases, and those without a label, with ``probability`` and whether it is ``uncertain``."""
        cases = [*self.findings.of_set("test"), *self.findings.of_set(UNLABELLED)]
        calibration = self.reference.calibration
        p = probability([case["margin"] for case in cases], calibration["temperature"])
        uncertain = np.abs(p - 0.5) <= calibration["half_width"]
        return [{**case, "uncertain": bool(doubt)} for case, doubt in zip(cases, uncertain)]

    @cached_property
    def tested(self) -> list[dict]:
        """The test cases, with what each classifier says of them: a call, and a score."""
        cases = [case for case in self.judged if case["set"] == "test"]
        names = [case["participant_id"] for case in cases]
        features = tabulate_features([self.findings.sbr[name] for name in names])
        relevance = np.array([self.findings.roi_relevance[name]["putamen_ipsilateral"] for name in names])
        calls = {
            "cnn": ([case["predicted"] for case in cases], [case["margin"] for case in cases]),
            "roi_relevance": (relevance > 0, relevance),
            "sbr": (features[:, 0] < self.classifiers["sbr"]["cutoff"], -features[:, 0]),
            "cart": follow_tree(self.classifiers["cart"]["nodes"], features),
        }
        return [
            {**case, **{name: (int(called[place]), scores[place]) for name, (called, scores) in calls.items()}}
            for place, case in enumerate(cases)
        ]

    def group_of(self, case: Mapping, column: str) -> str:
        """The value of a column of the table of participants, of an age the decade; n/a where it is not known."""
        value = self.findings.people[case["participant_id"]].get(column)
        if column == "age" and value is not None:
            first = DECADE * math.floor(value / DECADE)
            return f"{first} to {first + DECADE - 1}"
        return "n/a" if value is None else str(value)

    def cases_of(self, column: str, value: str) -> list[dict]:
        return [case for case in self.tested if self.group_of(case, column) == value]

    def count(self) -> dict:
        """What can be said without labels."""
        people, quality = self.findings.people, self.findings.quality
        verdicts = Counter(quality[name]["verdict"] for name in people)
        return {
            "scans": len(people),
            "labelled": len(self.findings.of_set("test")),
            "called_reduced": sum(case["predicted"] for case in self.judged),
            "uncertain": sum(case["uncertain"] for case in self.judged),
            "inconsistent": self.findings.metrics["inconsistent"],
            "green": verdicts["green"],
            "amber": verdicts["amber"],
            "left_out": len(self.findings.skipped),
        }


def _calls(cases: Sequence[Mapping], classifier: str) -> dict:
    """What `compare_calls` and `compare_calibration` take."""
    pairs = [case[classifier] for case in cases]
    return {
        "labels": [case["label"] for case in cases],
        "predicted": [called for called, _ in pairs],
        "scores": [score for _, score in pairs],
        "margins": [case["margin"] for case in cases],
    }


def _compare(settings: Config, internal: Side, external: Side) -> Iterator[dict]:
    """Rows of external.tsv."""
    sides = (internal, external)
    whole = {"group": WHOLE, "classifier": "cnn"}
    for measure, key in (("called_reduced", "predicted"), ("uncertain", "uncertain")):
        yield whole | compare_shares(measure, *([bool(case[key]) for case in side.judged] for side in sides))
    names = [[case["participant_id"] for case in side.judged] for side in sides]
    if all(side.findings.unlike.keys() >= {*own} for side, own in zip(sides, names)):
        marks = ([side.findings.unlike[name] for name in own] for side, own in zip(sides, names))
        yield whole | compare_shares("unlike_training", *marks)
    if not external.tested:
        return
    for name in ("cnn", *(["roi_relevance"] if _are_alike(*sides) else []), "sbr", "cart"):
        a, b = (_calls(side.tested, name) for side in sides)
        yield from (whole | {"classifier": name} | row for row in compare_calls(a, b))
        if name == "cnn":
            rest = (
                [case["label"] == case["predicted"] for case in side.tested if not case["uncertain"]] for side in sides
            )
            yield whole | compare_shares("accuracy_of_the_rest", *rest)
            fit = internal.reference.calibration
            temperature = fit["temperature"] if fit["determined"] else None
            yield from (whole | row for row in compare_calibration(a, b, temperature))
    for column in settings.subgroups:
        for value in sorted({external.group_of(case, column) for case in external.tested}):
            calls = (_calls(side.cases_of(column, value), "cnn") for side in sides)
            yield from ({**whole, "group": f"{column}: {value}", **row} for row in compare_calls(*calls))


def _are_alike(*sides: Side) -> bool:
    """Whether the maps of both sides are made the same way."""
    ours, theirs = (side.findings.run.entry("explain", "external")["config"] for side in sides)
    return ours == theirs


def _find_remarks(settings: Config, internal: Side, external: Side) -> Iterator[str]:
    """Sentences on what the numbers cannot say."""
    yield from _find_overlap(internal.findings, external.findings)
    unlabelled, tested = len(external.judged) - len(external.tested), external.tested
    if not tested:
        yield "No scan has a label: nothing is said of how often the network is right."
    elif unlabelled:
        yield (
            f"{unlabelled} of {len(external.judged)} scans have no label: they are judged and explained, and counted "
            f"in no accuracy."
        )
    if tested and len({case["label"] for case in tested}) == 1:
        yield "All labelled scans are of one class: there is no AUC, and either sensitivity or specificity."
    if not _are_alike(internal, external):
        yield (
            "The relevance maps are made another way than those of the run: no map is called consistent, and the sign "
            "of the relevance is not compared."
        )
    elif internal.reference.means is None:
        yield "The run has no mean map of one of the classes: no map is called consistent."
    if not internal.reference.calibration["determined"]:
        yield "The run could not determine a temperature: its probabilities are not calibrated."


def _find_overlap(known: Findings, findings: Findings) -> Iterator[str]:
    """A sentence where the very files of the cohort are scans of the run as well."""
    sets = {}
    for case in known.cohort:
        path = sidecar_path(known.run.scan_of(case["participant_id"]))
        if path.is_file():
            sets[read_json(path).get("fingerprint")] = case["set"]
    marks = [read_json(sidecar_path(findings.run.scan_of(name))).get("fingerprint") for name in findings.people]
    found = Counter(sets[mark] for mark in marks if mark in sets)
    if found:
        seen = sum(found[name] for name in ("train", "validation"))
        yield (
            f"{found.total()} of {len(marks)} scans are scans of the run itself, byte by byte, {seen} of its training "
            f"and validation: this is no external test of them."
        )


def _write_page(
    settings: Config, internal: Side, external: Side, rows: Sequence[Mapping], remarks: Sequence[str], applied: Mapping
) -> None:
    run, theirs = external.findings.run, internal.findings.run
    figure, counts, calibration = None, external.count(), internal.reference.calibration
    if external.tested:
        groups = {"internal test": internal.tested, "external test": external.tested}
        for column in settings.subgroups:
            for value in sorted({external.group_of(case, column) for case in external.tested}):
                groups[f"{column} {value}"] = external.cases_of(column, value)
        figure = run.external.with_suffix("") / "tests.png"
        save_figure(
            plot_comparison({name: _summarise(cases) for name, cases in groups.items()}), figure.with_suffix("")
        )
    n = counts["scans"]
    write_external_report(
        run.external,
        ExternalPage(
            created=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            data=f"{settings.data.kind}, {n} scans, grid {settings.grid.name}",
            run=theirs.folder.resolve().name,
            applied=applied,
            report=run.report.name,
            theirs=os.path.relpath(theirs.report.resolve(), run.external.parent.resolve()),
            facts={
                "Scans": f"{n}, {counts['labelled']} with a label; {counts['left_out']} left out",
                "Called reduced": f"{counts['called_reduced']} ({format_percent(counts['called_reduced'] / n)})",
                "Uncertain": f"{counts['uncertain']} ({format_percent(counts['uncertain'] / n)})",
                "Map inconsistent": f"{counts['inconsistent']} ({format_percent(counts['inconsistent'] / n)})",
                "Quality": f"{counts['green']} green, {counts['amber']} amber (to be looked at)",
            },
            remarks=remarks,
            rows=rows,
            half_width=calibration["half_width"],
            temperature=calibration["temperature"],
            figure=figure,
        ),
    )


def _summarise(cases: Sequence[Mapping]) -> dict:
    return summarise([case["label"] for case in cases], [case["predicted"] for case in cases])
