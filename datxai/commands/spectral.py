"""Spectral relevance analysis of a run: whether its maps show one way of deciding, or several."""

from __future__ import annotations

import logging

import numpy as np

from datxai.case import outline_of
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import write_json, write_table
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.results import read_predictions
from datxai.run import Run
from datxai.volume import load

log = logging.getLogger("datxai")

CLASSES = ("normal", "reduced")
COLUMNS = ("participant_id", "predicted", "group", "cluster", "prototype", "outside_brain", "x", "y")
CELL_MM = 12.0  # about the resolution of a scan


def run(settings: Config, folder: Run) -> None:
    """Group the relevance maps of the cases predicted normal, and of those predicted reduced.

    RUN/spectral then holds ``clusters.tsv`` (a row per case), ``spectral.json`` (eigenvalues, gap and p value; and of
    each group size, prototype and relevance outside the brain) and a figure per class. Too small a class is left out.
    """
    from datxai.analysis.figures import plot_strategies
    from datxai.analysis.slices import Frame
    from datxai.analysis.spectral import MIN_MAPS, find_strategies, shrink
    from datxai.analysis.style import save_figure

    folder.entry("explain", "spectral")
    cases = [case for case in read_predictions(folder) if folder.relevance_of(case["participant_id"]).is_file()]
    grid = load(folder.relevance_of(cases[0]["participant_id"]), blank=True).grid
    regions = make_regions(grid, load_atlas(settings.atlas.labels, settings.atlas.names))
    frame = Frame(grid, outline_of(regions), regions["brain"])
    out, rows, summary = folder.folder / "spectral", [], {}
    for label, name in enumerate(CLASSES):
        chosen = [case for case in cases if case["predicted"] == label]
        if len(chosen) < MIN_MAPS:
            log.info("%s: %d maps of cases predicted so, groups need %d", name, len(chosen), MIN_MAPS)
            continue
        names = [case["participant_id"] for case in chosen]
        maps = [load(folder.relevance_of(case), blank=True).data for case in names]
        found = find_strategies(np.stack([shrink(data, grid.spacing, CELL_MM) for data in maps]), seed=settings.seed)
        outside = [_share_outside(data, regions["brain"]) for data in maps]
        save_figure(plot_strategies(frame, found, maps, names), out / name)
        groups = [
            {
                "n": int(members.sum()),
                "prototype": names[prototype],
                "outside_brain": float(np.mean(np.array(outside)[members])),
                "misclassified": sum(case["label"] != label for case, in_it in zip(chosen, members) if in_it),
            }
            for prototype, members in ((p, found.clusters == k) for k, p in enumerate(found.prototypes))
        ]
        summary[name] = {
            "n": len(names),
            "gap": found.gap,
            "p": found.p,
            "eigenvalues": found.eigenvalues,
            "groups": groups,
        }
        rows += [
            {
                "participant_id": case["participant_id"],
                "predicted": label,
                "group": case["group"],
                "cluster": cluster + 1,
                "prototype": place in found.prototypes,
                "outside_brain": share,
                "x": x,
                "y": y,
            }
            for place, (case, cluster, share, (x, y)) in enumerate(
                zip(chosen, found.clusters, outside, found.embedding)
            )
        ]
        kind = "one kind of map" if found.n == 1 else f"{found.n} kinds of maps"
        log.info("%s: %d cases, %s (eigengap %.2f, p = %.3f)", name, len(names), kind, found.gap, found.p)
        for number, group in enumerate(groups, start=1):
            log.info(
                "  group %d: %d cases, like %s; outside the brain %.0f %% of the relevance; %d misclassified",
                number, group["n"], group["prototype"], 100 * group["outside_brain"], group["misclassified"],
            )  # fmt: skip
    if not summary:
        raise InputError(
            f"{folder.folder}: fewer than {MIN_MAPS} relevance maps in each class, expected more in one of them; "
            f"run `datxai explain run={folder.folder} attribution.cases=all`."
        )
    write_table(out / "clusters.tsv", rows, COLUMNS)
    write_json(out / "spectral.json", summary)
    log.info("Groups and figures: %s", out)


def _share_outside(relevance: np.ndarray, brain: np.ndarray) -> float:
    absolute = np.abs(relevance, dtype=float)
    return float(absolute[~brain].sum() / (absolute.sum() or 1.0))
