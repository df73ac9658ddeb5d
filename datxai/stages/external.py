"""Comparison of the internal and external test: the test cases of a run and another cohort that it was applied to."""

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
LABEL_FREE = ("called_reduced", "uncertain", "unlike_training")  # shares that need no labels


def depends(settings: Config) -> dict:
    return {"subgroups": settings.subgroups}


def outputs(run: Run) -> list[Path]:
    return [run.external.with_suffix(suffix) for suffix in (".html", ".tsv", ".json", "")]


def make(settings: Config, run: Run) -> None:
    findings, applied = Findings(run), Applied.open(settings)
    for column in settings.subgroups:
        require_column(findings.people.values(), column, run.participants, f"subgroups=[{column}]")
    tested = Tested(findings, applied.reference.calibration, applied.classifiers)
    internal, external = applied.describe_test(settings.subgroups), tested.describe(settings.subgroups)
    if applied.findings is not None:  # a run knows all its groups: one that it lacks has no cases
        groups = dict.fromkeys(external["groups"], describe_calls([], [], []))
        internal = {**(internal or {}), "groups": {**groups, **(internal or {})["groups"]}}
    rows = list(_compare(internal, external, applied.reference.alike))
    remarks = list(_find_remarks(settings, applied, tested, internal))
    counts, (_, table, document, figures) = _count(tested), outputs(run)
    figures.mkdir(exist_ok=True)
    write_table(table, rows, list(rows[0]))
    write_json(document, {"applied": applied.identity, "cohort": counts, "remarks": remarks})
    figure = None
    if tested.cases:
        figure = figures / "tests.png"
        save_figure(_draw(internal, external), figure.with_suffix(""))
    _write_page(settings, applied, findings, counts, rows, remarks, figure)


def _draw(internal: Mapping | None, external: Mapping) -> Figure:
    """Plot the network's performance in both tests, and in the groups of the external one."""
    tests = {"internal test": internal or {"calls": {}}, "external test": external}
    by_name = {name: test["calls"].get(NETWORK) for name, test in tests.items()}
    by_name |= {name.replace(": ", " ", 1): calls for name, calls in external["groups"].items()}
    return plot_comparison(
        {name: summarise_counts(*(calls[count] for count in COUNTS)) for name, calls in by_name.items() if calls}
    )


def _count(tested: Tested) -> dict:
    """Counts that need no labels."""
    findings, judged = tested.findings, tested.judged
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
    """Rows of external.tsv; ``internal`` is None if unknown. The sign of the relevance is compared only if both runs'
    maps are made ``alike``."""
    whole = {"group": WHOLE, "classifier": NETWORK}
    shares, all_calls, groups = ((internal or {}).get(key, {}) for key in ("shares", "calls", "groups"))
    for measure in LABEL_FREE:
        if measure in external["shares"] and (internal is None or measure in shares):
            yield whole | compare_shares(measure, shares.get(measure), external["shares"][measure])
    for name, calls in external["calls"].items():
        if name == SIGN and not alike:
            continue
        yield from (whole | {"classifier": name} | row for row in compare_calls(all_calls.get(name), calls))
        if name == NETWORK:
            yield whole | compare_shares(REST, shares.get(REST), external["shares"].get(REST))
            calibration = internal["calibration"] if internal else None
            yield from (whole | row for row in compare_calibration(calibration, external["calibration"]))
    for name, calls in external["groups"].items():
        yield from ({**whole, "group": name, **row} for row in compare_calls(groups.get(name), calls))


def _find_remarks(
    settings: Config, applied: Applied, tested: Tested, internal: Mapping | None
) -> Iterator[str]:
    """Sentences on the limits of the comparison."""
    if applied.findings is not None:
        yield from _find_overlap(applied.findings, tested.findings)
    else:
        yield from _describe_bundle_limits(settings, internal)
    n, labels = len(tested.judged), [case["label"] for case in tested.cases]
    if not labels:
        yield "No scan has a label: it is unknown how often the network is right."
    elif len(labels) < n:
        yield f"{n - len(labels)} of {n} scans have no label: they are judged and explained, but count in no accuracy."
    if len(set(labels)) == 1:
        yield "All labelled scans are of one class: there is no AUC, and either sensitivity or specificity."
    source = "run" if applied.findings is not None else "bundle"
    if not applied.reference.alike:
        yield (
            f"The relevance maps are not made in the same way as those of the {source}: no map is called consistent, "
            f"and the sign of the relevance is not compared."
        )
    elif applied.reference.means is None:
        yield f"The {source} has no mean map of one of the classes: no map is called consistent."
    if not applied.reference.calibration["determined"]:
        yield "The run could not determine a temperature: its probabilities are not calibrated."


def _describe_bundle_limits(settings: Config, internal: Mapping | None) -> Iterator[str]:
    """Sentences on what is unknown because a bundle holds no cases."""
    yield (
        "The network comes from a bundle, which knows no scan of its run: it cannot be checked whether the network was "
        "trained with scans of this cohort."
    )
    if internal is None:
        yield "The bundle's version recorded nothing of the run's own test: the external test stands alone."
    elif settings.subgroups:
        yield (
            "For its own test, a bundle holds only subgroups by sex and by decade of age, of 5 cases or more; other "
            "subgroups have no internal counterpart."
        )


def _find_overlap(trained: Findings, findings: Findings) -> Iterator[str]:
    """A sentence if scans of the cohort have the same files as scans of the run."""
    sets = {}
    for case in trained.cohort:
        path = sidecar_path(trained.run.scan_of(case["participant_id"]))
        if path.is_file():
            sets[read_json(path).get("fingerprint")] = case["set"]
    fingerprints = [read_json(sidecar_path(findings.run.scan_of(name))).get("fingerprint") for name in findings.people]
    shared = Counter(sets[fingerprint] for fingerprint in fingerprints if fingerprint in sets)
    if shared:
        seen = shared["train"] + shared["validation"]
        yield (
            f"{shared.total()} of {len(fingerprints)} scans are scans of the run itself, byte by byte, {seen} of its "
            f"training and validation: this is no external test of them."
        )


def _write_page(
    settings: Config,
    applied: Applied,
    findings: Findings,
    counts: Mapping,
    rows: Sequence[Mapping],
    remarks: Sequence[str],
    figure: Path | None,
) -> None:
    run, calibration, n = findings.run, applied.reference.calibration, counts["scans"]
    applied_report = None if applied.findings is None else applied.findings.run.report.resolve()
    write_external_report(
        run.external,
        ExternalPage(
            created=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            data=f"{settings.data.kind}, {n} scans, grid {settings.grid.name}",
            run=applied.name,
            applied=applied.identity,
            report=run.report.name,
            theirs=applied_report and os.path.relpath(applied_report, run.external.parent.resolve()),
            facts={
                "Scans": f"{n}, {counts['labelled']} with a label; {counts['left_out']} left out",
                "Called reduced": f"{counts['called_reduced']} ({format_percent(counts['called_reduced'] / n)})",
                "Uncertain": f"{counts['uncertain']} ({format_percent(counts['uncertain'] / n)})",
                "Map inconsistent": f"{counts['inconsistent']} ({format_percent(counts['inconsistent'] / n)})",
                "Quality": f"{counts['green']} green, {counts['amber']} amber (please check)",
            },
            remarks=remarks,
            rows=rows,
            half_width=calibration["half_width"],
            temperature=calibration["temperature"],
            figure=figure,
        ),
    )
