"""What the trials of a benchmark share: paths, fingerprints, and what is still missing."""

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
LESION = "lesion"  # the only metric of a pair of scans
LESION_CODE = "datxai.metrics.lesion"
MAP_CODE = ("datxai.explain.attribution", "datxai.model.network", "datxai.imaging.atlas")  # and their imports
CONTROL_CODE = ("datxai.explain.controls",)
MEASURE_CODE = ("datxai.metrics.inputs", "datxai.imaging.atlas")
REPEATED = ("parameter_randomisation", "random_logit", "max_sensitivity")  # metrics that need many additional maps


class Explain(Protocol):
    """A method: (model, inputs [n, 1, X, Y, Z], target, cache of the networks' outputs) to maps [n, X, Y, Z]."""

    def __call__(self, model: nn.Module, x: Tensor, target: int | str, answers: Answers) -> Tensor: ...


@dataclass(frozen=True)
class Trial:
    """A scan for every method to explain: a case of the test set, or the lesioned scan of a pair.

    ``target`` is the explained output. For a pair, ``effect`` is how far the lesion shifts the network's output towards
    reduced, in units of the difference between a typical normal and a typical reduced test case; a map has to show the
    lesion only if the network has ``seen`` it.
    """

    name: str
    target: int | str
    label: int | None = None
    predicted: int | None = None
    lesion: str | None = None
    effect: float | None = None
    seen: bool | None = None
    checked: bool = False  # by the metrics `REPEATED`

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
        """The preprocessing of pairs."""
        return Imaging.of(self.settings, self.anatomy)

    @cached_property
    def explain(self) -> dict[str, Explain]:
        """The methods by name."""
        return {name: self._prepare(self.options.catalogue[name]) for name in self.options.methods}

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        """The regions for metrics, both sides together."""
        regions = self.anatomy.regions
        both = {name: regions[f"{name}_left"] | regions[f"{name}_right"] for name in ("caudate", "putamen", "striatum")}
        return {"brain": regions["brain"], **both}

    @property
    def parcels(self) -> np.ndarray:
        """Labels of the atlas regions, int16 (X, Y, Z), 0 for none."""
        return self.anatomy.parcellation[0]

    @cached_property
    def mean_scan(self) -> np.ndarray:
        """Average of the mean normal and mean reduced training (in an applied run, test) case, (X, Y, Z)."""
        cases = self.findings.of_set("train") or self.findings.of_set("test")
        groups = [[case["participant_id"] for case in cases if case["label"] == label] for label in (0, 1)]
        means = [
            reduce(np.add, (self.store.volume(name).astype(float) for name in group)) / len(group)
            for group in groups
            if group
        ]
        return np.mean(means, axis=0)

    def pair(self, trial_name: str, kind: str) -> Path:
        """The path of a volume of a pair: the ``lesioned`` scan, the ``healthy`` scan, or the ``lesion``."""
        return self.folder / "pairs" / f"{trial_name}_{kind}.nii.gz"

    def scan(self, trial: Trial) -> np.ndarray:
        return load(self.pair(trial.name, "lesioned")).data if trial.lesion else self.store.volume(trial.name)

    def lesion(self, trial: Trial) -> np.ndarray | None:
        """Mask of the lesion, bool (X, Y, Z): the voxels that it fills at least by half."""
        return load(self.pair(trial.name, "lesion")).data >= 0.5 if trial.lesion else None

    def map_of(self, trial: Trial, method: str) -> Path:
        return self.folder / "maps" / method / f"{trial.name}_relevance.nii.gz"

    def fingerprint(self, trial: Trial, method: str) -> str:
        """A hash of everything that a map depends on, including the code."""
        pair, method_settings = self.pair(trial.name, "lesioned"), self.options.catalogue[method]
        pair_fingerprint = read_json(sidecar_path(pair))["fingerprint"] if trial.lesion else None
        options = [asdict(method_settings), describe(self.settings.atlas), self.settings.seed]
        code = hash_code(*(MAP_CODE if method_settings.control is None else CONTROL_CODE))
        own_rules = method_settings.composite and method_settings.composite.rules_from
        code += hash_file(own_rules) if own_rules and Path(own_rules).is_file() else ""
        network = self.run.entries()["train"]["fingerprint"]
        return hash_content([network, pair_fingerprint, trial.name, trial.target, options, code])

    def fingerprint_of_measure(self, trial: Trial, metric: str) -> str:
        """A hash of everything that a measure depends on apart from the map: settings and the metric's code."""
        towards_reduced = trial.effect is not None and trial.effect > 0
        code = hash_code(*MEASURE_CODE, LESION_CODE if metric == LESION else METRICS[metric].measure.__module__)
        return hash_content([self.options.fill, trial.seen, towards_reduced, code])

    def read(self, trial: Trial, method: str) -> dict | None:
        """The record of a map that is up to date (cost, and current ``measures`` by metric); None if there is none."""
        path = self.map_of(trial, method)
        if not Run.made_with(path, self.fingerprint(trial, method)):
            return None
        record = read_json(sidecar_path(path))
        fingerprints = {name: record["measured_with"][name] for name in {*METRICS, LESION} & {*record["measured_with"]}}
        current = {name for name, made in fingerprints.items() if made == self.fingerprint_of_measure(trial, name)}
        for key in ("measured_with", "measures", "seconds_of_measures"):
            record[key] = {name: value for name, value in record[key].items() if name in current}
        return record

    def find_missing(self, trial: Trial, method: str) -> list[str]:
        """The metrics that have not been measured on a map yet; all of them if there is no map."""
        measured = (self.read(trial, method) or {"measures": {}})["measures"]
        return [name for name in self.options.metrics if name not in {*measured, *trial.metrics_left_out}]

    def memo(self, trial: Trial) -> dict:
        """The cache of a trial, for results that metrics can reuse for other maps of the same input."""
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
    """The `Bench` for these settings, made once per process."""
    key = hash_content([str(folder), asdict(settings)])
    if key not in _benches:
        _benches.clear()
        _benches[key] = Bench(settings, Run(folder))
    return _benches[key]
