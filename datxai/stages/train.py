"""The network: trained, and its predictions for every case."""

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
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch

from datxai.case import choose_device, grid_of, predict_label
from datxai.cohort.dataset import CaseDataset, open_store
from datxai.config import Config, describe
from datxai.files import hash_content, write_table
from datxai.imaging.atlas import load_atlas, make_view
from datxai.model import checkpoint, distributed, network, training
from datxai.model.augmentation import Augmentation
from datxai.model.tracking import track
from datxai.progress import Bar
from datxai.results import read_cases
from datxai.run import Run

log = logging.getLogger("datxai")

TIMED_STEPS = 4  # for the estimate, after the first two, which meet fresh memory
FORWARD_SHARE = 1 / 3  # of a training step; validation is a forward pass


def depends(settings: Config) -> dict:
    chosen = asdict(settings.training)
    del chosen["tracking"]  # changes nothing in the result
    looked_up = describe(settings.atlas) if settings.network.see != "all" else {}
    return {"network": asdict(settings.network), "training": chosen, **looked_up}


def outputs(run: Run) -> list[Path]:
    return [
        run.model / "weights.safetensors",
        run.model / "config.yaml",
        run.model / "history.tsv",
        run.predictions,
    ]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    """Train, then predict. Of the processes that torchrun has started all train; process 0 says and writes everything,
    and goes on alone."""
    store, cases, device = open_store(run.store), read_cases(run), distributed.join(choose_device(settings))
    is_first = distributed.rank() == 0
    if not is_first:
        logging.disable()
    arguments = {"shape": list(store.shape), **asdict(settings.network)}
    model = network.build(**arguments, seed=settings.training.seed)
    if hasattr(model, "input"):
        seen = make_view(store.grid, load_atlas(settings.atlas.labels, settings.atlas.names), settings.network.see)
        model.input.mask.copy_(torch.from_numpy(seen))
        if settings.network.centre:
            training_cases = [case["participant_id"] for case in cases if case["set"] == "train"]
            model.input.mean.copy_(torch.from_numpy(sum(store.volume(n) / len(training_cases) for n in training_cases)))
    million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    log.info("  %.2f million parameters on a grid of %s, on %s", million, "x".join(map(str, store.shape)), device)
    sets = {
        name: CaseDataset(store, [case["participant_id"] for case in of_set], [case["label"] for case in of_set])
        for name in ("train", "validation")
        for of_set in [[case for case in cases if case["set"] == name]]
    }
    chosen = settings.training
    with ExitStack() as stack:
        heed = stack.enter_context(_ending_in_order())
        watch = {"on_batch": lambda n: heed()}
        if is_first:
            n_batches, n_validation = (math.ceil(len(sets[name]) / chosen.batch_size) for name in sets)
            bar = stack.enter_context(Bar(chosen.max_epochs * n_batches, "batches"))
            send = stack.enter_context(track(chosen.tracking, run.folder, depends(settings)["training"]))
            estimate = _estimate(n_batches, n_validation, chosen.max_epochs, bar.say)
            watch = {
                "on_batch": lambda n: (heed(), bar.update(n), estimate(n)),
                "on_epoch": lambda row: (bar.say(_describe(row)), send(row)),
            }
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
            save_memory=chosen.save_memory,
            shard=chosen.shard,
            augmentation=Augmentation(tuple(store.grid.spacing.tolist()), **asdict(chosen.augmentation)),
            seed=chosen.seed,
            device=device,
            **watch,
        )
    distributed.leave()
    if not is_first:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # done; at an ordinary exit, threads of the process group that still end can abort the process
    grid = grid_of(settings)
    description = {
        "network": arguments,
        "grid": {"name": grid.name, "affine": grid.affine.tolist()},
        "classes": ["normal", "reduced"],
    }
    checkpoint.save_network(description, run.model / "config.yaml")
    del model
    model, _ = checkpoint.load(run.model, device)  # the best epoch
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


def _estimate(n_batches: int, n_validation: int, max_epochs: int, say: Callable[[str], None]) -> Callable[[int], None]:
    """What is to be told of batches done; after some of them it says how long training will take."""
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
                f"  about {_duration(epoch)} an epoch, at most {_duration(left)} in all; stopped before, the same "
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
    """SIGTERM, as a cluster sends it before it takes the machine away, ends the process without half-written files, as
    Ctrl-C does.

    What is yielded is to be called now and then: it ends a process that was told to end where Python drops exceptions
    (in callbacks of weak references, say).
    """
    told = []

    def end(number: int, _) -> None:
        told.append(number)
        heed()

    def heed() -> None:
        if told:
            raise KeyboardInterrupt if told[0] == signal.SIGINT else SystemExit(128 + told[0])

    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, end) for number in heard}
    try:
        yield heed
    except SystemExit:
        log.info("  terminated; the same command goes on from the last state")
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
