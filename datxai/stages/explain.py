"""Relevance maps of the chosen cases, each with a record of how it was made."""

from __future__ import annotations

from pathlib import Path

import torch

from datxai.anatomy import grid_of
from datxai.cohort.dataset import CaseDataset, open_store
from datxai.config import Config, describe_network
from datxai.errors import InputError
from datxai.explainer import Explainer, describe_method, read_composite
from datxai.files import read_json
from datxai.findings import UNLABELLED, Findings
from datxai.progress import Bar
from datxai.run import Run
from datxai.volume import RELEVANCE, Volume, save, sidecar_path


def depends(settings: Config) -> dict:
    return describe_method(settings)


def show(settings: Config) -> None:
    """Print which layer of the network gets which rule; needs only settings and writes nothing."""
    from datxai.explain.composite import describe_composite
    from datxai.model.architectures import outline

    if settings.attribution.method != "lrp":
        raise InputError(f"dry_run: attribution.method={settings.attribution.method} has no rules, only lrp has.")
    model = outline(shape=grid_of(settings).shape, **describe_network(settings.network))
    lines, options = read_composite(settings.composite, model)
    rows = describe_composite(lines, model, **options)
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        print("  ".join(f"{row[key]:<{width}}" for key, width in widths.items()).rstrip())


def outputs(run: Run) -> list[Path]:
    return [run.relevance]


def make(settings: Config, run: Run) -> None:
    cases = _choose_cases(settings, run)
    run.keep_only(run.relevance, [run.relevance_of(case["participant_id"]) for case in cases])
    _explain(cases, slice(None), settings, run)


def make_part(settings: Config, run: Run, part: slice) -> None:
    """Explain some of the batches, so that `make` can skip them."""
    _explain(_choose_cases(settings, run), part, settings, run)


def _choose_cases(settings: Config, run: Run) -> list[dict]:
    chosen_set = settings.attribution.cases
    if chosen_set not in ("test", "all"):
        raise InputError(f"attribution.cases={chosen_set}: expected test or all.")
    cases = [case for case in Findings(run).predictions if chosen_set == "all" or case["set"] in ("test", UNLABELLED)]
    if settings.target == "label" and any(case["label"] is None for case in cases):
        raise InputError(
            "target=label: there are cases without a label; choose predicted, normal, reduced, decision or difference."
        )
    return cases


def _explain(cases: list[dict], part: slice, settings: Config, run: Run) -> None:
    """Explain the ``part`` of the batches in which a map is missing.

    Batches are cut from all cases, whichever have a map: in another batch, the last digits of a map may be others.
    """
    assert run.making is not None, "the stage has not been started"
    fingerprint = run.making
    run.relevance.mkdir(parents=True, exist_ok=True)
    store, explainer = open_store(run.store), Explainer.of(settings, run)
    size = explainer.batch_size(store.shape)
    batches = [cases[start : start + size] for start in range(0, len(cases), size)][part]
    unfinished = (
        batch for batch in batches
        if not all(run.made_with(run.relevance_of(case["participant_id"]), fingerprint) for case in batch)
    )  # fmt: skip
    missing = [case for batch in unfinished for case in batch]
    dataset = CaseDataset(store, [c["participant_id"] for c in missing], [c["label"] for c in missing])
    loader = torch.utils.data.DataLoader(dataset, batch_size=size)  # only the last batch may be smaller
    names = iter(dataset.case_ids)
    with Bar(len(missing), "maps") as bar:
        for volumes, labels in loader:
            for (relevance, record), name in zip(explainer.explain(volumes, labels.tolist()), names):
                scan_record = read_json(sidecar_path(run.scan_of(name)))["history"]
                volume = Volume(relevance, store.affine, (*scan_record, {"step": "explain", **record["method"]}))
                save(volume, run.relevance_of(name), {"fingerprint": fingerprint, **record}, shows=RELEVANCE)
                bar.update()
