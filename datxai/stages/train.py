"""The network: trained, and its predictions for every case."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from datxai.case import choose_device, grid_of, predict_label
from datxai.cohort.dataset import CaseDataset, open_store
from datxai.config import Config
from datxai.files import hash_content, write_table
from datxai.model import checkpoint, network, training
from datxai.progress import Bar
from datxai.results import read_cases
from datxai.run import Run

log = logging.getLogger("datxai")


def depends(settings: Config) -> dict:
    return {
        "network": asdict(settings.network),
        "training": asdict(settings.training),
    }


def outputs(run: Run) -> list[Path]:
    return [
        run.model / "weights.safetensors",
        run.model / "config.yaml",
        run.model / "history.tsv",
        run.predictions,
    ]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    store, cases, device = open_store(run.store), read_cases(run), choose_device(settings)
    arguments = {"shape": list(store.shape), **asdict(settings.network)}
    model = network.build(**arguments, seed=settings.training.seed)
    million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    log.info("  %.2f million parameters on a grid of %s, on %s", million, "x".join(map(str, store.shape)), device)
    sets = {
        name: CaseDataset(store, [case["participant_id"] for case in of_set], [case["label"] for case in of_set])
        for name in ("train", "validation")
        for of_set in [[case for case in cases if case["set"] == name]]
    }
    chosen = settings.training
    with Bar(chosen.max_epochs * math.ceil(len(sets["train"]) / chosen.batch_size), "batches") as bar:
        training.train(
            model,
            sets["train"],
            sets["validation"],
            folder=run.model,
            fingerprint=hash_content([run.entry("split", "train")["fingerprint"], arguments]),
            batch_size=chosen.batch_size,
            learning_rate=chosen.learning_rate,
            max_epochs=chosen.max_epochs,
            patience=chosen.patience,
            precision=chosen.precision,
            seed=settings.training.seed,
            device=device,
            on_batch=bar.update,
            on_epoch=lambda row: bar.say(_describe(row)),
        )
    checkpoint.load_weights(model, run.model / "weights.safetensors")  # those of the best epoch
    grid = grid_of(settings)
    description = {
        "network": arguments,
        "grid": {"name": grid.name, "affine": grid.affine.tolist()},
        "classes": ["normal", "reduced"],
    }
    checkpoint.save_network(description, run.model / "config.yaml")
    everyone = CaseDataset(store, [case["participant_id"] for case in cases], [case["label"] for case in cases])
    logits = training.predict(model, everyone, chosen.batch_size, device)
    rows = [{**case, **predict_label(pair)} for case, pair in zip(cases, logits)]
    columns = ["participant_id", "set", "label", "predicted", "p_reduced", "logit_normal", "logit_reduced"]
    write_table(run.predictions, rows, columns)


def _describe(row: Mapping) -> str:
    return (
        f"  epoch {row['epoch']:>2}: loss {row['train_loss']:.4f} in training, {row['validation_loss']:.4f} in "
        f"validation; {row['validation_accuracy']:.1%} of the validation set right"
    )
