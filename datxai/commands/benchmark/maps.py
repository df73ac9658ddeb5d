"""The maps of a trial by each method, and their measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datxai.commands.benchmark.bench import LESION, Bench, Trial, of_this_process
from datxai.config import Config
from datxai.explain.answers import Answers
from datxai.files import read_json
from datxai.memory import measure_peak
from datxai.metrics import METRICS, Case
from datxai.metrics.flipping import blur, brain_mean
from datxai.metrics.lesion import follow_lesion
from datxai.volume import RELEVANCE, Volume, load, save, sidecar_path, write_sidecar

WARM_S = 1.0  # the first map of a method in a process is timed again if it took less, to exclude the time for imports


def explain_and_measure(settings: Config, folder: Path, trial: Trial, methods: Sequence[str]) -> None:
    """Make a trial's missing maps and measures; each is saved as soon as it is available."""
    bench = of_this_process(settings, folder)
    scan = bench.scan(trial)
    x = torch.from_numpy(np.ascontiguousarray(scan))[None, None].to(bench.device)
    for method in methods:
        answers, path = Answers(), bench.map_of(trial, method)
        record = bench.read(trial, method) or _explain(bench, x, trial, method, answers)
        relevance = torch.from_numpy(load(path, blank=True).data).to(bench.device)
        case = _make_case(bench, x, relevance, trial, partial(bench.explain[method], answers=answers))
        for name in bench.find_missing(trial, method):
            begin = time.perf_counter()
            record["measures"][name] = _measure_lesion(bench, case, trial) if name == LESION else METRICS[name](case)
            record["measured_with"][name] = bench.fingerprint_of_measure(trial, name)
            record["seconds_of_measures"][name] = round(time.perf_counter() - begin, 3)
            write_sidecar(path, record)


def _explain(bench: Bench, x: Tensor, trial: Trial, method: str, answers: Answers) -> dict:
    explain, model, path = bench.explain[method], bench.explainer.model, bench.map_of(trial, method)

    def explain_once():
        answers.forget()
        begin = time.perf_counter()
        return explain(model, x, trial.target, answers)[0].cpu().numpy(), time.perf_counter() - begin

    (relevance, seconds), peak = measure_peak(explain_once, bench.device)
    if method not in _warm and seconds < WARM_S:
        (relevance, seconds), peak = measure_peak(explain_once, bench.device)
    _warm.add(method)
    record = {
        "fingerprint": bench.fingerprint(trial, method), "method": asdict(bench.options.catalogue[method]),
        "target": trial.target, "seconds": seconds, "peak_bytes": peak,
        "measures": {}, "measured_with": {}, "seconds_of_measures": {},
    }  # fmt: skip
    history = {"step": "explain", "method": method, "target": trial.target}
    volume = Volume(np.ascontiguousarray(relevance, np.float32), bench.grid.affine, (history,))
    save(volume, path, record, shows=RELEVANCE)
    return read_json(sidecar_path(path))


def _make_case(bench: Bench, x: Tensor, relevance: Tensor, trial: Trial, explain: Callable) -> Case:
    model = bench.explainer.model

    def score(inputs):
        logits = model(inputs)
        if trial.target in ("difference", "decision"):
            sign = -1 if trial.target == "decision" and trial.predicted == 0 else 1
            return sign * (logits[:, 1] - logits[:, 0])
        return logits[:, trial.target]

    other_target = 0 if trial.target in ("difference", "decision") else 1 - int(trial.target)
    fill = {
        "mean": lambda: torch.from_numpy(bench.mean_scan).to(x),
        "blur": lambda: blur(x, bench.grid.spacing),
        "brain_mean": lambda: brain_mean(x, bench.regions["brain"]),
    }[bench.options.fill]()
    return Case(
        model=model,
        x=x,
        relevance=relevance,
        score=score,
        explain=lambda model, x: explain(model, x, trial.target),
        explain_other=lambda model, x: explain(model, x, other_target),
        fill=fill,
        parcels=bench.parcels,
        regions=bench.regions,
        spacing=bench.grid.spacing,
        truth=bench.lesion(trial) if trial.seen and trial.effect is not None and trial.effect > 0 else None,
        seed=bench.settings.seed,
        memo=bench.memo(trial),
    )


def _measure_lesion(bench: Bench, case: Case, trial: Trial) -> dict[str, float | None]:
    healthy = torch.from_numpy(load(bench.pair(trial.name, "healthy")).data)[None, None].to(case.x)
    before = case.explain(case.model, healthy)[0].cpu().numpy().astype(float)
    lesion, brain = bench.lesion(trial), bench.regions["brain"]
    assert lesion is not None and trial.effect is not None and trial.seen is not None, "the trial has no lesion"
    return follow_lesion(case.map, before, lesion, brain, case.spacing, trial.effect, trial.seen)


_warm: set[str] = set()  # methods that this process has used
