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
    return {"attribution": asdict(settings.attribution), "composite": composite, "target": settings.target}


def outputs(run: Run) -> list[Path]:
    return [run.relevance]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    chosen = settings.attribution
    if chosen.cases not in ("test", "all"):
        raise InputError(f"attribution.cases={chosen.cases}: expected test or all.")
    cases = [case for case in read_predictions(run) if chosen.cases == "all" or case["set"] == "test"]
    paths = [run.relevance_of(case["participant_id"]) for case in cases]
    run.relevance.mkdir(exist_ok=True)
    run.keep_only(run.relevance, paths)
    missing = [case for case, path in zip(cases, paths) if not run.made_with(path, fingerprint)]
    store, explainer = open_store(run.store), Explainer.of(settings, run)
    dataset = CaseDataset(store, [c["participant_id"] for c in missing], [c["label"] for c in missing])
    loader = torch.utils.data.DataLoader(dataset, batch_size=chosen.batch_size)
    names = iter(dataset.case_ids)
    with Bar(len(missing), "maps") as bar:
        for volumes, labels in loader:
            for (relevance, record), name in zip(explainer.explain(volumes, labels.tolist()), names):
                scan_record = read_json(sidecar_path(run.scan_of(name)))["history"]
                volume = Volume(relevance, store.affine, (*scan_record, {"step": "explain", **record["method"]}))
                save(volume, run.relevance_of(name), {"fingerprint": fingerprint, **record})
                bar.update()
