"""A relevance map of every chosen case, with the record of how it was made beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from datxai.case import Explainer, grid_of, read_composite
from datxai.cohort.dataset import CaseDataset, open_store
from datxai.config import Config, describe
from datxai.errors import InputError
from datxai.files import hash_file, read_json
from datxai.progress import Bar
from datxai.results import read_predictions
from datxai.run import Run
from datxai.volume import Volume, save, sidecar_path


def depends(settings: Config) -> dict:
    composite = asdict(settings.composite) if settings.attribution.method == "lrp" else None
    if composite and composite["rules_from"] and Path(composite["rules_from"]).is_file():
        composite["rules_from"] = hash_file(composite["rules_from"])
    chosen = {key: value for key, value in asdict(settings.attribution).items() if key != "batch_size"}
    atlas = {"atlas": describe(settings.atlas)} if settings.attribution.parcels else {}
    return {"attribution": chosen, "composite": composite, "target": settings.target, **atlas}


def show(settings: Config) -> None:
    """Print which layer of the network gets which rule. It takes nothing but settings, and makes nothing."""
    from datxai.explain.composite import describe_composite
    from datxai.model import network

    if settings.attribution.method != "lrp":
        raise InputError(f"dry_run: attribution.method={settings.attribution.method} has no rules, only lrp has.")
    with torch.device("meta"):  # the weights are not needed
        model = network.build(grid_of(settings).shape, **asdict(settings.network))
    lines, how = read_composite(settings.composite)
    rows = describe_composite(lines, model, **how)
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        print("  ".join(f"{row[key]:<{width}}" for key, width in widths.items()).rstrip())


def outputs(run: Run) -> list[Path]:
    return [run.relevance]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    cases = _choose_cases(settings, run)
    run.keep_only(run.relevance, [run.relevance_of(case["participant_id"]) for case in cases])
    _explain(cases, settings, run, fingerprint)


def make_part(settings: Config, run: Run, fingerprint: str, part: slice) -> None:
    """Explain some of the cases; `make` finds their maps done."""
    _explain(_choose_cases(settings, run)[part], settings, run, fingerprint)


def _choose_cases(settings: Config, run: Run) -> list[dict]:
    which = settings.attribution.cases
    if which not in ("test", "all"):
        raise InputError(f"attribution.cases={which}: expected test or all.")
    return [case for case in read_predictions(run) if which == "all" or case["set"] == "test"]


def _explain(cases: list[dict], settings: Config, run: Run, fingerprint: str) -> None:
    """Explain the cases whose map is not there yet."""
    run.relevance.mkdir(exist_ok=True)
    missing = [case for case in cases if not run.made_with(run.relevance_of(case["participant_id"]), fingerprint)]
    store, explainer = open_store(run.store), Explainer.of(settings, run)
    dataset = CaseDataset(store, [c["participant_id"] for c in missing], [c["label"] for c in missing])
    loader = torch.utils.data.DataLoader(dataset, batch_size=explainer.batch_size(store.shape))
    names = iter(dataset.case_ids)
    with Bar(len(missing), "maps") as bar:
        for volumes, labels in loader:
            for (relevance, record), name in zip(explainer.explain(volumes, labels.tolist()), names):
                scan_record = read_json(sidecar_path(run.scan_of(name)))["history"]
                volume = Volume(relevance, store.affine, (*scan_record, {"step": "explain", **record["method"]}))
                save(volume, run.relevance_of(name), {"fingerprint": fingerprint, **record})
                bar.update()
