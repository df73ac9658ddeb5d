"""The report: figures, a page that shows and explains them, and a page of each case with a relevance map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import yaml

from datxai.analysis.normal_range import NormalRange, describe_range, judge_measures
from datxai.applied import Applied
from datxai.case import tabulate_measures
from datxai.config import STAGES, Config, is_radiological
from datxai.findings import GROUPS, Findings
from datxai.imaging.mirror import unmirror
from datxai.pages.content import CasePage, LinkedPages, RunPage
from datxai.pages.report import write_case_data, write_case_pages, write_report
from datxai.pages.style import GROUP_NAMES
from datxai.pages.tables import LABEL_NAMES
from datxai.progress import Bar
from datxai.run import Run
from datxai.run_figures import FIGURES, draw
from datxai.volume import load

Ranges = Mapping[str, NormalRange]
PAGE = "case.html"  # shows one case at a time
MISCLASSIFIED = ("participant_id", "group", "probability", "sbr", "relevance", "consistent")  # columns
UNKNOWN_MAP = {"putamen_ipsilateral": None, "consistent": None}


def depends(settings: Config) -> dict:
    return {"sides": settings.sides} if is_radiological(settings) else {}


def outputs(run: Run) -> list[Path]:
    return [run.report, run.pages, run.figures]


def make(settings: Config, run: Run) -> None:
    findings = Findings(run, is_radiological(settings))
    ranges = None if settings.applied is None else Applied.open(settings).reference.ranges
    figures = _choose_figures(settings, findings)
    for name in FIGURES:
        if name in figures:
            draw(name, findings, run.figures)
        else:
            (run.figures / f"{name}.png").unlink(missing_ok=True)
            (run.figures / f"{name}.pdf").unlink(missing_ok=True)
    run.figures.mkdir(exist_ok=True)
    pages = write_pages(findings, ranges)
    judged = "" if settings.applied is None else f", classified by the run {Path(settings.applied).resolve().name}"
    quality, cases = findings.quality.values(), tabulate_cases(findings, ranges)
    wrong = {case["participant_id"] for case in findings.misclassified}
    write_report(
        run.report,
        RunPage(
            data=f"{settings.data.kind}, {len(findings.people)} scans, grid {settings.grid.name}{judged}",
            created=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            metrics=findings.metrics,
            figures={name: run.figures / f"{name}.png" for name in figures}
            | {"sheet": run.sheet(1).with_suffix(".png")},
            cases=cases,
            pages=pages,
            quality=[{key: row[key] for key in ("participant_id", "verdict", "reason")} for row in quality],
            table1=findings.table1,
            misclassified=[
                {name: case[name] for name in MISCLASSIFIED} for case in cases if case["participant_id"] in wrong
            ]
            if findings.tested
            else None,
            skipped=findings.skipped,
            ledger=findings.average_ledger([case["participant_id"] for case in findings.tested]),
            config=yaml.safe_dump(asdict(settings), sort_keys=False),
            explanation=run.explanation,
            radiological=findings.radiological,
            external=None if settings.applied is None else run.external.name,
            manifest={stage: entry for stage in STAGES if (entry := run.find(stage))},
        ),
    )


def _choose_figures(settings: Config, findings: Findings) -> list[str]:
    """The names of the figures that the run has data for: none without labels, no training curve if a run is applied,
    and no tree if none is known."""
    if not findings.tested:
        return []
    unavailable = set() if settings.applied is None else {"training"}
    unavailable |= set() if "cart" in findings.metrics["classifiers"] else {"cart"}
    return [name for name in FIGURES if name not in unavailable]


def tabulate_cases(findings: Findings, ranges: Ranges | None = None) -> list[dict]:
    """The rows of the report's table of cases; scans that quality control left out come last.

    ``ranges`` are those of `describe_case`.
    """
    explained = {case["participant_id"] for case in findings.explained}
    rows = [_tabulate_case(findings, case, explained, ranges) for case in findings.predictions]
    left_out = (row for name, row in findings.quality.items() if name not in findings.probabilities)
    return rows + [
        {
            **dict.fromkeys(rows[0]), **{key: row[key] for key in ("participant_id", "similarity", "reason")},
            "set": "left out", "quality": row["verdict"], "flags": ["quality"],
        }
        for row in left_out
    ]  # fmt: skip


def _tabulate_case(findings: Findings, case: Mapping, explained: set[str], ranges: Ranges | None) -> dict:
    """The row of a case; it links to the case's page if the case is among the ``explained``."""
    name = case["participant_id"]
    person, quality = findings.people[name], findings.quality[name]
    sbr, p = findings.sbr[name], findings.probabilities[name]
    relevance = findings.roi_relevance.get(name, UNKNOWN_MAP)
    lower = min("putamen_left", "putamen_right", key=lambda side: sbr[side])
    ranges = ranges or findings.ranges_without(person.get("subject", name), [lower])
    judged = judge_measures(ranges, {lower: sbr[lower]}, person["age"], _none_if_missing(person["sex"]))[lower]
    flags = {
        "misclassified": case["label"] not in (None, case["predicted"]),
        "inconsistent": relevance["consistent"] is False,
        "uncertain": abs(p - 0.5) <= findings.half_width,
        "quality": quality["verdict"] != "green",
    }
    return {
        "participant_id": name,
        "set": case["set"],
        "age": person["age"],
        "sex": _none_if_missing(person["sex"]),
        "label": LABEL_NAMES.get(case["label"]),
        "predicted": LABEL_NAMES[case["predicted"]],
        "probability": p,
        "sbr": sbr[lower],
        "z": judged and judged["z"],
        "relevance": relevance["putamen_ipsilateral"],
        "consistent": relevance["consistent"],
        "quality": quality["verdict"],
        "similarity": quality["similarity"],
        "reason": _none_if_missing(quality["reason"]),
        "group": case["group"],
        "flags": [flag for flag, raised in flags.items() if raised],
        "page": _page_of(findings.run, name) if name in explained else None,
    }


def _page_of(run: Run, name: str) -> str:
    """The address of a case's page, relative to the report."""
    return f"{run.pages.name}/{PAGE}#{quote(name)}"


def write_pages(findings: Findings, ranges: Ranges | None = None) -> LinkedPages:
    """Write a page of each case with a relevance map and of each mean map, and delete other pages.

    ``ranges`` are those of `describe_case`.
    """
    run, explained = findings.run, findings.explained
    means = {group: f"mean_{group}" for group in GROUPS if findings.mean_of(f"{group}_relevance") is not None}
    pages: Iterator[CasePage] = chain(
        (describe_case(findings, case, ranges) for case in explained),
        (describe_mean(findings, group, name) for group, name in means.items()),
    )
    written = []
    with Bar(len(explained) + len(means), "pages") as bar:
        for page in pages:
            write_case_data(run.pages / f"{page.case_id}.js", page)
            written.append(page.case_id)
            bar.update()
    write_case_pages(run.pages / PAGE, written, f"../{run.report.name}", findings.radiological)
    kept = {PAGE, *(f"{name}.js" for name in written)}
    for path in run.pages.iterdir():
        if path.name not in kept:
            path.unlink()
    return LinkedPages(
        folder=run.pages.name,
        n=len(explained),
        bytes=sum(file.stat().st_size for file in run.pages.iterdir()),
        means={GROUP_NAMES[group]: _page_of(run, name) for group, name in means.items()},
    )


def describe_case(findings: Findings, case: Mapping, ranges: Ranges | None = None) -> CasePage:
    """The content of a case's page; left and right are the patient's own.

    Its binding ratios are compared with ``ranges``, by default those of the normal cases of the cohort's other people.
    """
    run, name = findings.run, case["participant_id"]
    person, measures, record = findings.people[name], findings.measures_of(name), findings.record_of_map(name)
    age, sex, ratios = person["age"], _none_if_missing(person["sex"]), tabulate_measures(measures)
    ranges = ranges or findings.ranges_without(person.get("subject", name), ratios)
    expected = judge_measures(ranges, ratios, age, sex)
    files = {"spect": run.scan_of(name), "relevance": run.relevance_of(name)}
    relevance = findings.roi_relevance.get(name)
    sides = {"ipsilateral side": "right" if measures["mirrored"] else "left"}
    return CasePage(
        case_id=name,
        label=case["label"],
        predicted=case["predicted"],
        p_reduced=case["p_reduced"],
        probability=findings.probabilities[name] if findings.metrics["calibration"]["determined"] else None,
        volumes={kind: unmirror(load(file, blank=True), measures["mirrored"]) for kind, file in files.items()},
        outline=findings.anatomy.outline,
        brain=findings.anatomy.brain,
        radiological=findings.radiological,
        sbr=ratios,
        normal_range=expected,
        normal_range_source=describe_range(ranges, expected, age, sex),
        relevance={} if relevance is None else sides | relevance,
        explanation={"name": run.explanation, **record["method"], "sum": record["sum"]},
        quality=measures["quality"] | {"mirrored for the network": measures["mirrored"]},
        subject={"set": case["set"], "age": "n/a" if age is None else f"{age:.7g}", "sex": person["sex"]},
        provenance=findings.provenance,
        ledger=record["ledger"],
    )


def describe_mean(findings: Findings, group: str, name: str) -> CasePage:
    """The content of the page of a group's mean, ipsilateral on the left."""
    files = {kind: findings.run.mean_of(f"{group}_{kind}") for kind in ("spect", "relevance")}
    return CasePage(
        case_id=name,
        title=f"Mean of {findings.groups.count(group)} {GROUP_NAMES[group]} test cases",
        volumes={kind: load(file, blank=True) for kind, file in files.items()},
        outline=findings.anatomy.outline,
        brain=findings.anatomy.brain,
        radiological=findings.radiological,
        sides=("I", "C"),
    )


def _none_if_missing(text: str) -> str | None:
    return None if text == "n/a" else text
