"""Training of the network, and its predictions for every case."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median

import numpy as np
import torch

from datxai.analysis.calibration import margin_of, probability
from datxai.analysis.normal_range import judge_measures
from datxai.anatomy import Anatomy, grid_of
from datxai.applied import Applied, identify, require_applicable, take_network
from datxai.case import SBR
from datxai.cohort.dataset import CaseDataset
from datxai.config import Config, Network, describe, describe_network
from datxai.device import choose_device
from datxai.explainer import predict_label
from datxai.files import hash_content, write_arrays, write_table
from datxai.findings import Findings
from datxai.model import checkpoint, distributed, prediction, training, weights
from datxai.model.architectures import build, hash_source, outline
from datxai.model.augmentation import Augmenter
from datxai.model.features import watching_features
from datxai.model.network import Input
from datxai.model.recipe import Recipe
from datxai.model.tracking import track
from datxai.progress import Bar
from datxai.run import Run

log = logging.getLogger("datxai")

TIMED_STEPS = 4  # batches for the estimate; the two before them are slower, since memory is not yet allocated
FORWARD_SHARE = 1 / 3  # time of a forward pass (validation) as a fraction of that of a training step


def depends(settings: Config) -> dict:
    if settings.applied is not None:
        return {"applied": identify(settings)}
    recipe = asdict(settings.training)
    del recipe["tracking"]  # does not change the result
    atlas = describe(settings.atlas) if settings.network.see != "all" else {}
    target = settings.network.target
    code = {} if target is None else {"code": hash_source(target)}
    return {"network": describe(settings.network), "training": recipe, **atlas, **code}


def check(settings: Config) -> None:
    """Refuse settings that training would fail with, or a run that cannot be applied, before any stage starts."""
    if settings.applied is not None:
        require_applicable(settings)
        return
    _recipe(settings)
    model = outline(shape=grid_of(settings).shape, **describe_network(settings.network))
    _initialise(model, settings.network)


def outputs(run: Run) -> list[Path]:
    return [
        run.model / "weights.safetensors",
        run.model / "config.yaml",
        run.model / "history.tsv",
        run.predictions,
        run.features,
    ]


def make(settings: Config, run: Run) -> None:
    """Train, then predict. If torchrun has started several processes, all of them train; process 0 does all logging and
    writing, and predicts alone."""
    if settings.applied is not None:
        _apply(settings, run)
        return
    findings, device = Findings(run), distributed.join(choose_device(settings))
    is_first = distributed.rank() == 0
    if not is_first:
        logging.disable()
    network_settings = {"shape": list(findings.store.shape), **describe_network(settings.network)}
    model = _build(settings, network_settings, findings)
    million, size = sum(p.numel() for p in model.parameters()) / 1e6, "x".join(map(str, findings.store.shape))
    log.info("  %.2f million parameters on a grid of %s, on %s", million, size, device)
    _train(model, settings, network_settings, findings, device)
    distributed.leave()
    if not is_first:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # on a normal exit, threads of the process group that are still ending can abort the process
    grid = grid_of(settings)
    description = {
        "network": network_settings,
        "grid": {"name": grid.name, "affine": grid.affine.tolist()},
        "classes": ["normal", "reduced"],
    }
    checkpoint.save_network(description, run.model / "config.yaml")
    del model
    rows = _predict(settings, findings, device)
    write_table(run.predictions, rows, list(rows[0]))


def _apply(settings: Config, run: Run) -> None:
    """Predict with the network of the run that is applied, calibrated and with the normal ranges of that run."""
    findings, reference = Findings(run), Applied.open(settings).reference
    take_network(settings, run.model)
    rows = _predict(settings, findings, choose_device(settings))
    calibration = reference.calibration
    probabilities = probability([margin_of(row) for row in rows], calibration["temperature"])
    for row, p in zip(rows, probabilities.tolist()):
        ratios, person = findings.sbr[row["participant_id"]], findings.people[row["participant_id"]]
        sbr = {name: ratios[name] for name in SBR}
        judged = judge_measures(reference.ranges, sbr, person["age"], person.get("sex"))
        row |= {
            "probability": p if calibration["determined"] else None,
            "uncertain": abs(p - 0.5) <= calibration["half_width"],
            **{f"sbr_{name}": ratio for name, ratio in sbr.items()},
            **{f"z_{name}": expected and expected["z"] for name, expected in judged.items()},
            **{key: findings.quality[row["participant_id"]][key] for key in ("verdict", "reason", "similarity")},
        }
    write_table(run.predictions, rows, list(dict.fromkeys(key for row in rows for key in row)))


def _build(settings: Config, network_settings: Mapping, findings: Findings) -> torch.nn.Sequential:
    """The network with its initial weights, its mask and its mean scan."""
    model = build(**network_settings, seed=settings.training.seed)
    input_layer = getattr(model, "input", None)
    if isinstance(input_layer, Input):
        input_layer.mask.copy_(torch.from_numpy(Anatomy.of(settings).view(network_settings["see"])))
        if settings.network.centre and settings.training.max_epochs > 0:  # else the mean comes with the weights
            names = [case["participant_id"] for case in findings.cohort if case["set"] == "train"]
            mean = sum(findings.store.volume(name) / len(names) for name in names)
            input_layer.mean.copy_(torch.from_numpy(mean))
    _initialise(model, settings.network)
    return model


def _initialise(model: torch.nn.Sequential, settings: Network) -> None:
    """Load pretrained weights and freeze layers if the settings ask for it."""
    if settings.weights is not None:
        weights.load_pretrained(model, settings.weights, settings.rename, settings.initial)
    if settings.freeze:
        weights.freeze(model, settings.freeze)


def _describe_initialisation(settings: Config) -> dict:
    """The settings of `_initialise` that are not empty."""
    described = describe(settings.network)
    return {name: value for name in ("weights", "rename", "initial", "freeze") if (value := described[name])}


def _train(
    model: torch.nn.Sequential, settings: Config, network_settings: Mapping, findings: Findings, device: str
) -> None:
    """Train with a progress bar and tracking; the best weights are saved in the run folder."""
    run, recipe, initialisation = findings.run, settings.training, _describe_initialisation(settings)
    sets = {name: _list_cases(findings, name) for name in ("train", "validation")}
    if recipe.max_epochs == 0:
        training.keep(model, sets["train"], sets["validation"], _recipe(settings), run.model, device)
        return
    with ExitStack() as stack:
        exit_if_signalled = stack.enter_context(_ending_in_order())
        split_fingerprint = run.entry("split", "train")["fingerprint"]
        callbacks = {"on_batch": lambda n: exit_if_signalled()}
        if distributed.rank() == 0:
            n_batches, n_validation = (math.ceil(len(sets[name]) / recipe.batch_size) for name in sets)
            bar = stack.enter_context(Bar(recipe.max_epochs * n_batches, "batches"))
            send = stack.enter_context(track(recipe.tracking, run.folder, depends(settings)["training"]))
            estimate = _estimate(n_batches, n_validation, recipe.max_epochs, bar.say)
            callbacks = {
                "on_batch": lambda n: (exit_if_signalled(), bar.update(n), estimate(n)),
                "on_epoch": lambda row: (bar.say(_describe(row)), send(row)),
            }
        training.train(
            model,
            sets["train"],
            sets["validation"],
            _recipe(settings),
            folder=run.model,
            fingerprint=hash_content([split_fingerprint, {**network_settings, **initialisation}]),
            augmenter=Augmenter(tuple(findings.store.grid.spacing.tolist()), **asdict(recipe.augmentation)),
            device=device,
            **callbacks,
        )


def _recipe(settings: Config) -> Recipe:
    return Recipe(**{field.name: getattr(settings.training, field.name) for field in fields(Recipe)})


def _predict(settings: Config, findings: Findings, device: str) -> list[dict]:
    """Predict every case with the weights of the best epoch, and save the features that the last layer receives."""
    model, _ = checkpoint.load(findings.run.model, device, settings.network.target)
    with watching_features(model) as features:
        logits = prediction.predict(model, _list_cases(findings), settings.training.batch_size, device)
    write_arrays(findings.run.features, {"features": np.concatenate(features)} if features else {})
    return [{**case, **predict_label(pair)} for case, pair in zip(findings.cohort, logits)]


def _list_cases(findings: Findings, set_name: str | None = None) -> CaseDataset:
    """The cases of a set, or all of them, with their labels."""
    cases = [case for case in findings.cohort if set_name in (None, case["set"])]
    names, labels = ([case[key] for case in cases] for key in ("participant_id", "label"))
    return CaseDataset(findings.store, names, labels)


def _describe(row: Mapping) -> str:
    return (
        f"  epoch {row['epoch']:>2}: loss {row['train_loss']:.4f} in training, {row['validation_loss']:.4f} in "
        f"validation; {row['validation_accuracy']:.1%} of the validation set right"
    )


def _estimate(n_batches: int, n_validation: int, max_epochs: int, say: Callable[[str], None]) -> Callable[[int], None]:
    """A callback for completed batches; after timing `TIMED_STEPS` of them it says how long training will take."""
    ends, done = [], 0

    def on_batch(n: int) -> None:
        nonlocal done
        done += n
        ends.append(time.perf_counter())
        if len(ends) == TIMED_STEPS + 2:
            step = median(after - before for before, after in itertools.pairwise(ends[1:]))
            epoch = step * (n_batches + n_validation * FORWARD_SHARE)
            left = epoch * (max_epochs - done / n_batches)
            say(
                f"  about {_duration(epoch)} an epoch, at most {_duration(left)} in all; if stopped before, the same "
                f"command goes on"
            )

    return on_batch


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "less than a second"


@contextmanager
def _ending_in_order() -> Iterator[Callable[[], None]]:
    """On SIGTERM, which a cluster sends before it reclaims the machine, exit as on Ctrl-C, without half-written files.

    The yielded function has to be called regularly. It exits if the signal arrived while Python was swallowing
    exceptions, as in callbacks of weak references.
    """
    signals: list[int] = []

    def handle(number: int, _: object) -> None:
        signals.append(number)
        exit_if_signalled()

    def exit_if_signalled() -> None:
        if signals:
            raise KeyboardInterrupt if signals[0] == signal.SIGINT else SystemExit(128 + signals[0])

    handled = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield exit_if_signalled
    except SystemExit:
        log.info("  terminated; the same command goes on from the last state")
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
