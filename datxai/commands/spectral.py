"""Spectral relevance analysis of a run: whether its maps show one decision strategy or several."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datxai.analysis.spectral import MIN_MAPS, Strategies, find_strategies, shrink
from datxai.anatomy import Anatomy
from datxai.config import Config, is_radiological
from datxai.errors import InputError
from datxai.files import write_json, write_table
from datxai.findings import Findings
from datxai.run import Run

log = logging.getLogger("datxai")

CLASSES = ("normal", "reduced")
COLUMNS = ("participant_id", "predicted", "group", "cluster", "prototype", "outside_brain", "x", "y")
CELL_MM = 12.0  # about the resolution of a scan


def run(settings: Config, folder: Run) -> None:
    """Group the relevance maps of the cases predicted normal, and of those predicted reduced.

    RUN/spectral then holds ``clusters.tsv`` (a row per case), ``spectral.json`` (eigenvalues, gap and p value; for each
    group, size, prototype and relevance outside the brain) and a figure per class. Too small a class is left out.
    """
    folder.entry("explain", "spectral")
    findings, atlas = Findings(folder), settings.atlas
    grid = findings.map_of(findings.explained[0]["participant_id"]).grid
    anatomy = Anatomy(grid, atlas.labels, atlas.names, radiological=is_radiological(settings))
    out, rows, summary = folder.explained / "spectral", [], {}
    for label, name in enumerate(CLASSES):
        cases = [case for case in findings.explained if case["predicted"] == label]
        if len(cases) < MIN_MAPS:
            log.info("%s: %d maps of cases predicted so, groups need %d", name, len(cases), MIN_MAPS)
            continue
        strategies, outside = _find_groups(findings, cases, anatomy, settings, out / name)
        summary[name] = _summarise(strategies, cases, outside)
        rows += _tabulate(strategies, cases, outside)
        _log_groups(name, summary[name])
    if not summary:
        raise InputError(
            f"{folder.folder}: fewer than {MIN_MAPS} relevance maps in each class, expected more in one of them; "
            f"run `datxai explain run={folder.folder} attribution.cases=all`."
        )
    write_table(out / "clusters.tsv", rows, COLUMNS)
    write_json(out / "spectral.json", summary)
    log.info("Groups and figures: %s", out)


def _find_groups(
    findings: Findings, cases: Sequence[Mapping], anatomy: Anatomy, settings: Config, figure: Path
) -> tuple[Strategies, list[float]]:
    """Group the cases' maps and draw the groups; also returns the share of each map's relevance outside the brain."""
    from datxai.pages.figures import plot_strategies
    from datxai.pages.style import save_figure
    from datxai.pages.tables import describe_output

    names = [case["participant_id"] for case in cases]
    maps = [findings.map_of(name).data for name in names]
    shrunk = np.stack([shrink(data, anatomy.grid.spacing, CELL_MM) for data in maps])
    strategies = find_strategies(shrunk, seed=settings.seed)
    explained = describe_output(settings.target, cases[0]["predicted"])
    save_figure(plot_strategies(anatomy.frame, strategies, maps, names, explained), figure)
    return strategies, [_share_outside(data, anatomy.brain) for data in maps]


def _summarise(strategies: Strategies, cases: Sequence[Mapping], outside: Sequence[float]) -> dict:
    """The entry of a class in spectral.json."""
    groups = []
    wrong = np.array([case["label"] not in (None, case["predicted"]) for case in cases])
    for cluster, prototype in enumerate(strategies.prototypes):
        members = strategies.clusters == cluster
        groups.append(
            {
                "n": int(members.sum()),
                "prototype": cases[prototype]["participant_id"],
                "outside_brain": float(np.mean(np.array(outside)[members])),
                "misclassified": int(wrong[members].sum()),
            }
        )
    spectrum = {"gap": strategies.gap, "p": strategies.p, "eigenvalues": strategies.eigenvalues}
    return {"n": len(cases), **spectrum, "groups": groups}


def _tabulate(strategies: Strategies, cases: Sequence[Mapping], outside: Sequence[float]) -> list[dict]:
    """The rows of clusters.tsv of a class."""
    return [
        {
            "participant_id": case["participant_id"],
            "predicted": case["predicted"],
            "group": case["group"],
            "cluster": cluster + 1,
            "prototype": i in strategies.prototypes,
            "outside_brain": fraction_outside,
            "x": x,
            "y": y,
        }
        for i, (case, cluster, fraction_outside, (x, y)) in enumerate(
            zip(cases, strategies.clusters, outside, strategies.embedding)
        )
    ]


def _log_groups(name: str, summary: Mapping) -> None:
    n_groups = len(summary["groups"])
    kinds = "one kind of map" if n_groups == 1 else f"{n_groups} kinds of maps"
    log.info("%s: %d cases, %s (eigengap %.2f, p = %.3f)", name, summary["n"], kinds, summary["gap"], summary["p"])
    for number, group in enumerate(summary["groups"], start=1):
        log.info(
            "  group %d: %d cases, like %s; outside the brain %.0f %% of the relevance; %d misclassified",
            number, group["n"], group["prototype"], 100 * group["outside_brain"], group["misclassified"],
        )  # fmt: skip


def _share_outside(relevance: np.ndarray, brain: np.ndarray) -> float:
    absolute = np.abs(relevance, dtype=float)
    return float(absolute[~brain].sum() / (absolute.sum() or 1.0))
