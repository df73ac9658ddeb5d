"""Internal and external test side by side: the cohort that a run was applied to, beside that run's own test cases."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from datxai.analysis.classification import summarise_counts
from datxai.analysis.cohorts import (
    COUNTS,
    compare_calibration,
    compare_calls,
    compare_shares,
    describe_calls,
)
from datxai.applied import Applied
from datxai.cohort.table import require_column
from datxai.config import Config
from datxai.files import read_json, write_json, write_table
from datxai.findings import Findings
from datxai.pages.charts import Figure, plot_comparison
from datxai.pages.content import ExternalPage
from datxai.pages.report import write_external_report
from datxai.pages.style import save_figure
from datxai.pages.tables import format_percent
from datxai.run import Run
from datxai.tested import NETWORK, SIGN, Tested
from datxai.volume import sidecar_path

WHOLE = "all"  # the group of all cases
REST = "accuracy_of_the_rest"
FACTS = ("called_reduced", "uncertain", "unlike_training")  # what holds for scans with a label or without


def depends(settings: Config) -> dict:
    return {"subgroups": settings.subgroups}


def outputs(run: Run) -> list[Path]:
    return [run.external.with_suffix(suffix) for suffix in (".html", ".tsv", ".json", "")]


def make(settings: Config, run: Run) -> None:
    findings, known = Findings(run), Applied.open(settings)
    for column in settings.subgroups:
        require_column(findings.people.values(), column, run.participants, f"subgroups=[{column}]")
    external = Tested(findings, known.reference.calibration, known.classifiers)
    internal, found = known.describe_test(settings.subgroups), external.describe(settings.subgroups)
    if known.findings is not None:  # of which every group is known, one without a case too
        groups = dict.fromkeys(found["groups"], describe_calls([], [], []))
        internal = {**(internal or {}), "groups": {**groups, **(internal or {})["groups"]}}
    rows = list(_compare(internal, found, known.reference.alike))
    remarks = list(_find_remarks(settings, known, external, internal))
    counts, (_, table, document, figures) = _count(external), outputs(run)
    figures.mkdir(exist_ok=True)
    write_table(table, rows, list(rows[0]))
    write_json(document, {"applied": known.identity, "cohort": counts, "remarks": remarks})
    figure = None
    if external.cases:
        figure = figures / "tests.png"
        save_figure(_draw(internal, found), figure.with_suffix(""))
    _write_page(settings, known, findings, counts, rows, remarks, figure)


def _draw(internal: Mapping | None, external: Mapping) -> Figure:
    """The network in both tests, and in the groups of the external one."""
    sides = {"internal test": internal or {"calls": {}}, "external test": external}
    parts = {name: side["calls"].get(NETWORK) for name, side in sides.items()}
    parts |= {name.replace(": ", " ", 1): calls for name, calls in external["groups"].items()}
    return plot_comparison(
        {name: summarise_counts(*(calls[count] for count in COUNTS)) for name, calls in parts.items() if calls}
    )


def _count(external: Tested) -> dict:
    """What can be said without labels."""
    findings, judged = external.findings, external.judged
    people, quality = findings.people, findings.quality
    verdicts = Counter(quality[name]["verdict"] for name in people)
    return {
        "scans": len(people),
        "labelled": len(findings.of_set("test")),
        "called_reduced": sum(case["predicted"] for case in judged),
        "uncertain": sum(case["uncertain"] for case in judged),
        "inconsistent": findings.metrics["inconsistent"],
        "green": verdicts["green"],
        "amber": verdicts["amber"],
        "left_out": len(findings.skipped),
    }


def _compare(internal: Mapping | None, external: Mapping, alike: bool) -> Iterator[dict]:
    """Rows of external.tsv, of the numbers of both tests; those of the internal one may not be known. Maps are held
    against one another if they are made ``alike``."""
    whole = {"group": WHOLE, "classifier": NETWORK}
    of_internal = {part: (internal or {}).get(part, {}) for part in ("shares", "calls", "calibration", "groups")}
    for measure in FACTS:
        if measure in external["shares"] and (internal is None or measure in of_internal["shares"]):
            yield whole | compare_shares(measure, of_internal["shares"].get(measure), external["shares"][measure])
    for name, calls in external["calls"].items():
        if name == SIGN and not alike:
            continue
        rows = compare_calls(of_internal["calls"].get(name), calls)
        yield from (whole | {"classifier": name} | row for row in rows)
        if name == NETWORK:
            pair = (of_internal["shares"].get(REST), external["shares"].get(REST))
            yield whole | compare_shares(REST, *pair)
            fits = internal["calibration"] if internal else None
            yield from (whole | row for row in compare_calibration(fits, external["calibration"]))
    for name, calls in external["groups"].items():
        yield from ({**whole, "group": name, **row} for row in compare_calls(of_internal["groups"].get(name), calls))


def _find_remarks(
    settings: Config, known: Applied, external: Tested, internal: Mapping | None
) -> Iterator[str]:
    """Sentences on what the numbers cannot say."""
    if known.findings is not None:
        yield from _find_overlap(known.findings, external.findings)
    else:
        yield from _tell_of_bundle(settings, internal)
    unlabelled, tested = len(external.judged) - len(external.cases), external.cases
    if not tested:
        yield "No scan has a label: nothing is said of how often the network is right."
    elif unlabelled:
        yield (
            f"{unlabelled} of {len(external.judged)} scans have no label: they are judged and explained, and counted "
            f"in no accuracy."
        )
    if tested and len({case["label"] for case in tested}) == 1:
        yield "All labelled scans are of one class: there is no AUC, and either sensitivity or specificity."
    what = "run" if known.findings is not None else "bundle"
    if not known.reference.alike:
        yield (
            f"The relevance maps are made another way than those of the {what}: no map is called consistent, and the "
            f"sign of the relevance is not compared."
        )
    elif known.reference.means is None:
        yield f"The {what} has no mean map of one of the classes: no map is called consistent."
    if not known.reference.calibration["determined"]:
        yield "The run could not determine a temperature: its probabilities are not calibrated."


def _tell_of_bundle(settings: Config, internal: Mapping | None) -> Iterator[str]:
    """What a bundle cannot say, for it holds no case."""
    yield (
        "The network is that of a bundle, which knows no scan of its run: nothing tells here whether scans of this "
        "cohort are scans that it was trained with."
    )
    if internal is None:
        yield (
            "The bundle was made by a version that told nothing of the run's own test: the external test stands alone."
        )
    elif settings.subgroups:
        yield (
            "Of its own test a bundle tells subgroups by sex and by decade of age, of 5 cases or more; beside the "
            "others stands nothing."
        )


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
    settings: Config,
    known: Applied,
    findings: Findings,
    counts: Mapping,
    rows: Sequence[Mapping],
    remarks: Sequence[str],
    figure: Path | None,
) -> None:
    run, calibration, n = findings.run, known.reference.calibration, counts["scans"]
    theirs = None if known.findings is None else known.findings.run.report.resolve()
    write_external_report(
        run.external,
        ExternalPage(
            created=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            data=f"{settings.data.kind}, {n} scans, grid {settings.grid.name}",
            run=known.name,
            applied=known.identity,
            report=run.report.name,
            theirs=None if theirs is None else os.path.relpath(theirs, run.external.parent.resolve()),
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
