"""A relevance map of every chosen case, with the record of how it was made beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from datxai.case import Explainer
from datxai.cohort.dataset import CaseDataset, open_store
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json
from datxai.progress import Bar
from datxai.results import read_predictions
from datxai.run import Run
from datxai.volume import Volume, save, sidecar_path


def depends(settings: Config) -> dict:
    composite = asdict(settings.composite) if settings.attribution.method == "lrp" else None
    chosen = {key: value for key, value in asdict(settings.attribution).items() if key != "batch_size"}
    return {"attribution": chosen, "composite": composite, "target": settings.target}


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
