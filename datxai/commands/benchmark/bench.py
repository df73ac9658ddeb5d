"""What the trials of a benchmark share: where things lie, what they follow from, and what is still missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from datxai.anatomy import Anatomy
from datxai.case import Imaging
from datxai.config import Config, Method, describe
from datxai.device import choose_device
from datxai.errors import InputError
from datxai.explain.answers import Answers
from datxai.explain.controls import CONTROLS
from datxai.explainer import Explainer
from datxai.files import hash_code, hash_content, hash_file, read_json
from datxai.findings import Findings
from datxai.metrics import METRICS
from datxai.run import Run
from datxai.volume import load, sidecar_path

FILLS = ("mean", "blur", "brain_mean")
LESION = "lesion"  # the one metric that takes a pair
LESION_CODE = "datxai.metrics.lesion"
MAP_CODE = ("datxai.explain.attribution", "datxai.model.network", "datxai.imaging.atlas")  # and all that these import
CONTROL_CODE = ("datxai.explain.controls",)
MEASURE_CODE = ("datxai.metrics.inputs", "datxai.imaging.atlas")
REPEATED = ("parameter_randomisation", "random_logit", "max_sensitivity")  # metrics that take many more maps


class Explain(Protocol):
    """A way to explain: (model, inputs [n, 1, X, Y, Z], target, cached answers of networks) to maps [n, X, Y, Z]."""

    def __call__(self, model: nn.Module, x: Tensor, target: int | str, answers: Answers) -> Tensor: ...


@dataclass(frozen=True)
class Trial:
    """What every method has to explain: a case of the test set, or the lesioned scan of a pair.

    ``target`` is the output explained. Of a pair, ``effect`` is how far the lesion moves the network towards reduced,
    in units of the way from a typical normal to a typical reduced test case; a map has to show the lesion only if the
    network has ``seen`` it.
    """

    name: str
    target: int | str
    label: int | None = None
    predicted: int | None = None
    lesion: str | None = None
    effect: float | None = None
    seen: bool | None = None
    checked: bool = False  # by the metrics that take many more maps

    @property
    def metrics_left_out(self) -> set[str]:
        return {*(() if self.lesion else (LESION,)), *(() if self.checked else REPEATED)}


class Bench:
    """What the trials of a benchmark share."""

    def __init__(self, settings: Config, trained: Run):
        self.settings, self.options, self.run = settings, settings.benchmark, trained
        self.folder = trained.folder / "benchmark"
        self.device = choose_device(settings)
        self.findings, self.anatomy = Findings(trained), Anatomy.of(settings)
        self.store, self.grid = self.findings.store, self.anatomy.grid
        if not (self.grid.shape == self.store.shape and np.allclose(self.grid.affine, self.store.affine)):
            raise InputError(f"grid={self.grid.name}: the network of {trained.folder} was trained on another grid.")
        self._memo: tuple[str, dict] = ("", {})

    @property
    def n_jobs(self) -> int:
        return self.settings.n_jobs if self.device == "cpu" else 1

    @cached_property
    def explainer(self) -> Explainer:
        return Explainer.of(self.settings, self.run, self.anatomy)

    @cached_property
    def imaging(self) -> Imaging:
        """What pairs are preprocessed with."""
        return Imaging.of(self.settings, self.anatomy)

    @cached_property
    def explain(self) -> dict[str, Explain]:
        """The ways to explain, by the name of the method."""
        return {name: self._prepare(self.options.catalogue[name]) for name in self.options.methods}

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        """The regions of metrics, both sides together."""
        regions = self.anatomy.regions
        both = {name: regions[f"{name}_left"] | regions[f"{name}_right"] for name in ("caudate", "putamen", "striatum")}
        return {"brain": regions["brain"], **both}

    @property
    def parcels(self) -> np.ndarray:
        """Every region of the atlas: int16 labels (X, Y, Z), 0 for none."""
        return self.anatomy.parcellation[0]

    @cached_property
    def mean_scan(self) -> np.ndarray:
        """Half way between the mean normal and the mean reduced training case, (X, Y, Z); in a run that is applied,
        which has none, test case."""
        cases = self.findings.of_set("train") or self.findings.of_set("test")
        groups = [[case["participant_id"] for case in cases if case["label"] == label] for label in (0, 1)]
        means = [
            reduce(np.add, (self.store.volume(name).astype(float) for name in group)) / len(group)
            for group in groups
            if group
        ]
        return np.mean(means, axis=0)

    def pair(self, trial_name: str, kind: str) -> Path:
        """A volume of a pair: the ``lesioned`` scan, the ``healthy`` one, or where the ``lesion`` is."""
        return self.folder / "pairs" / f"{trial_name}_{kind}.nii.gz"

    def scan(self, trial: Trial) -> np.ndarray:
        return load(self.pair(trial.name, "lesioned")).data if trial.lesion else self.store.volume(trial.name)

    def lesion(self, trial: Trial) -> np.ndarray | None:
        """Where the lesion is, (X, Y, Z), bool: the voxels that it fills at least by half."""
        return load(self.pair(trial.name, "lesion")).data >= 0.5 if trial.lesion else None

    def map_of(self, trial: Trial, method: str) -> Path:
        return self.folder / "maps" / method / f"{trial.name}_relevance.nii.gz"

    def fingerprint(self, trial: Trial, method: str) -> str:
        """A hash of all that a map depends on, the code included."""
        pair, method_settings = self.pair(trial.name, "lesioned"), self.options.catalogue[method]
        made = read_json(sidecar_path(pair))["fingerprint"] if trial.lesion else None
        made_by = [asdict(method_settings), describe(self.settings.atlas), self.settings.seed]
        code = hash_code(*(MAP_CODE if method_settings.control is None else CONTROL_CODE))
        own_rules = method_settings.composite and method_settings.composite.rules_from
        code += hash_file(own_rules) if own_rules and Path(own_rules).is_file() else ""
        return hash_content([self.run.entries()["train"]["fingerprint"], made, trial.name, trial.target, made_by, code])

    def fingerprint_of_measure(self, trial: Trial, metric: str) -> str:
        """A hash of all that a measure of a map depends on, apart from the map: settings, and the metric's code."""
        raised = trial.effect is not None and trial.effect > 0
        code = hash_code(*MEASURE_CODE, LESION_CODE if metric == LESION else METRICS[metric].measure.__module__)
        return hash_content([self.options.fill, trial.seen, raised, code])

    def read(self, trial: Trial, method: str) -> dict | None:
        """The record of a map that is up to date: its cost, and ``measures`` by metric; None if there is none."""
        path = self.map_of(trial, method)
        if not Run.made_with(path, self.fingerprint(trial, method)):
            return None
        record, known = read_json(sidecar_path(path)), {*METRICS, LESION}
        measured = {name: record["measured_with"][name] for name in known & record["measured_with"].keys()}
        current = {name for name, made in measured.items() if made == self.fingerprint_of_measure(trial, name)}
        for part in ("measured_with", "measures", "seconds_of_measures"):
            record[part] = {name: value for name, value in record[part].items() if name in current}
        return record

    def find_missing(self, trial: Trial, method: str) -> list[str]:
        """The metrics of a map that are not known yet; all of them, where there is no map."""
        known = (self.read(trial, method) or {"measures": {}})["measures"]
        return [name for name in self.options.metrics if name not in {*known, *trial.metrics_left_out}]

    def memo(self, trial: Trial) -> dict:
        """The cache of a trial: what metrics can reuse for other maps of the same input."""
        if self._memo[0] != trial.name:
            self._memo = (trial.name, {})
        return self._memo[1]

    def _prepare(self, method: Method) -> Explain:
        if control := method.control:
            return lambda model, x, target, answers: CONTROLS[control](x, self.settings.seed)
        settings = replace(self.settings, attribution=method.attribution, composite=method.composite)
        explainer = Explainer.prepare(self.explainer.model, self.device, settings, self.anatomy)
        return lambda model, x, target, answers: explainer.attribute(
            x, target, model=model, ledger=False, answers=answers
        ).relevance[:, 0]


_benches: dict[str, Bench] = {}


def of_this_process(settings: Config, folder: Path) -> Bench:
    """The bench of these settings, made once in each process."""
    key = hash_content([str(folder), asdict(settings)])
    if key not in _benches:
        _benches.clear()
        _benches[key] = Bench(settings, Run(folder))
    return _benches[key]
