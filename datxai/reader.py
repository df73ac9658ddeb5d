"""A trained run that reads new scans, as used by `datxai case` for one and by `datxai serve` for many.

    reader = Reader.open("runs/phantom")                 # or a bundle made by `datxai bundle`: model.datxai
    reading = reader.read("scan.dcm")
    reading.result["probability"], reading.relevance     # the map in MNI space, on the patient's own sides
    reader.write(reading, "out/scan")
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datxai import __version__
from datxai.anatomy import Anatomy
from datxai.bundle import Bundle
from datxai.case import Imaging, describe_appearance, tabulate_measures
from datxai.config import DEFAULT, EXPLAINING, Config, require_name, restore
from datxai.device import choose_device
from datxai.errors import InputError
from datxai.explainer import Explainer, predict_label
from datxai.lock import holding
from datxai.reading import MapOf, Reading, deidentify_subject, find_doubts, forget_files, timed
from datxai.record import RECORD, read_record
from datxai.reference import Reference
from datxai.run import Run
from datxai.scan import Scan
from datxai.volume import Volume, resample

if TYPE_CHECKING:
    from datxai.imaging.dicom import Source

log = logging.getLogger("datxai")

MAX_AGE = 120  # years


@dataclass(frozen=True, eq=False)
class Reader:
    """Everything needed to read scans, loaded once: network, template, regions, mean maps, normal cases."""

    settings: Config
    imaging: Imaging
    anatomy: Anatomy
    explainer: Explainer
    reference: Reference
    timings: Mapping[str, float]  # of loading, in seconds
    beside: Mapping[str, tuple[Explainer, Reference]] = field(default_factory=dict)  # other explanations of the run
    source: Run | Bundle | None = None  # the run or bundle from which all of it was loaded

    @classmethod
    def open(cls, path: str | os.PathLike, **changes) -> Reader:
        """The reader of a finished run, or of a bundle made from one, with its settings; ``changes`` replace some.

        ``Reader.open("runs/phantom", target="difference", device="cpu")``. Raises `InputError` if the folder does not
        hold a finished run, or the file is not an intact bundle.
        """
        run = Run(Path(path), changes.get("explanation", DEFAULT))
        if run.folder.is_file():
            bundle = Bundle.open(run.folder)
            return cls._of(replace(bundle.settings, **changes), bundle)
        run.entry("evaluate", "case")
        return cls.of(_restore(run, **changes), run)

    @classmethod
    def of(cls, settings: Config, run: Run) -> Reader:
        """The reader of a run, or of the bundle named by its ``folder``, for given settings."""
        if run.folder.is_file():
            bundle = Bundle.open(run.folder)
            if settings.explanation not in (DEFAULT, bundle.explanation):
                raise InputError(
                    f"explanation={settings.explanation}: {run.folder} is a bundle of one explanation, "
                    f"{bundle.explanation}; leave it out."
                )
            return cls._of(bundle.localise(replace(settings, explanation=bundle.explanation)), bundle)
        with holding(run.folder):
            return cls._of(settings, run)

    @classmethod
    def _of(cls, settings: Config, run: Run | Bundle) -> Reader:
        if settings.target == "label":
            raise InputError("target=label needs a labelled case; choose predicted, normal, reduced or difference.")
        _require_explanations(settings, run)
        timings: dict[str, float] = {}
        anatomy = Anatomy.of(settings, cache=run.anatomy)
        with ThreadPoolExecutor(1) as other_thread:
            network = other_thread.submit(_load_network, settings, run, anatomy, timings)
            with timed(timings, "load atlas"):
                imaging = Imaging.of(settings, anatomy.keep())
                if settings.registration.kind == "affine":
                    importlib.import_module("datxai.imaging.registration").prepare(imaging.bases)
            with timed(timings, "load figures"):  # so that the first scan does not wait for them
                importlib.import_module("datxai.pages.document").prepare()
            in_bundle = isinstance(run, Bundle)
            reference = Reference.of_bundle(settings, run) if in_bundle else Reference.of(settings, run)
            explainer = network.result()
            beside = {} if in_bundle else dict(_find_beside(settings, run, explainer, anatomy))
            return cls(settings, imaging, anatomy, explainer, reference, timings, beside, run)

    def read(self, path: str | os.PathLike | Scan, age: float | None = None, sex: str | None = None) -> Reading:
        """Read one scan: a NIfTI file, a DICOM file, or a folder with one DICOM series; projections are reconstructed.

        ``age`` in years and ``sex`` (F or M) default to those of the DICOM header. Raises `InputError` with one
        sentence for an unusable scan. Nothing is written.
        """
        import torch

        from datxai.model.features import watching_features

        timings = {}
        with timed(timings, "read"):
            scan = path if isinstance(path, Scan) else Scan.find(Path(path))
            path = scan.place
            source = self._find_source(scan)
            voxels = scan.read(self.settings.reconstruction)
            subject, day = scan.subject, scan.visit[1]
            fingerprint = scan.hash
        if source is not None and source.deidentified:
            subject = deidentify_subject(subject)
        age, sex = subject["age"] if age is None else age, sex or subject["sex"]
        if age is not None and not 0 <= age <= MAX_AGE:
            raise InputError(f"{path}: the age is {age:g}, expected years, from 0 to {MAX_AGE}; give it as age=YEARS.")
        with timed(timings, "register"):
            volume, measures = self.imaging.process(voxels, path)
        x = torch.from_numpy(volume.data)[None, None]
        with timed(timings, "explain"):
            with watching_features(self.explainer.model) as features:
                ((relevance, record),) = self.explainer.explain(x)
            others = {name: explainer.explain(x)[0] for name, (explainer, _) in self.beside.items()}
        with timed(timings, "compare"):
            spect, shown, own_relevance = _transform_back(volume, relevance, record["method"], measures, voxels)
            judged = self._judge(relevance, record, measures, shown, age, sex)
            judged["shift"] = self._compare_with_training(volume, measures, features)
            beside = {
                name: self._describe_beside(name, data, other, volume, measures, voxels)
                for name, (data, other) in others.items()
            }
        name = _name(path)
        result = {
            "scan": name, "scan_hash": fingerprint, "age": age, "sex": sex, "tracer": subject["tracer"],
            **({"scan_date": day.isoformat()} if day and not (source and source.deidentified) else {}),
            "explanation": self.settings.explanation,
            **judged,
            **({"beside": {other: map_.result for other, map_ in beside.items()}} if beside else {}),
            "timings": timings,
            "made_by": {"datxai": __version__, "run": self.reference.evaluated["fingerprint"], **self._identify()},
        }  # fmt: skip
        result["warnings"] = [*find_doubts(result), *([subject["doubt"]] if subject["doubt"] and age is None else [])]
        name = re.sub(r"(\.nii|\.dcm|\.hdr|\.img)?(\.gz)?$", "", name, flags=re.IGNORECASE)
        reading = Reading(name, voxels, spect, shown, own_relevance, result, source, beside)
        if source is not None and source.deidentified:
            return forget_files(reading, str(source.elements["PatientID"]))
        return reading

    def read_many(self, paths: Iterable[str | os.PathLike], on_error: str = "raise") -> Iterator[Reading]:
        """Read scans one after the other by `read`, lazily.

        An unusable scan raises `InputError`, and later ones are not read; with ``on_error="skip"`` it is logged as a
        warning and skipped.
        """
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error is {on_error}, expected raise or skip.")
        return self._read_many(paths, on_error == "skip")

    def _read_many(self, paths: Iterable[str | os.PathLike], skips: bool) -> Iterator[Reading]:
        for path in paths:
            try:
                reading = self.read(path)
            except InputError as error:
                if not skips:
                    raise
                log.warning("left out: %s", error)
                continue
            yield reading

    def _judge(
        self,
        relevance: np.ndarray,
        record: Mapping,
        measures: Mapping,
        shown: Volume,
        age: float | None,
        sex: str | None,
    ) -> dict:
        """The results of a scan: decision and its probability, binding ratios with their normal range, location of the
        relevance, and consistency of the map. ``shown`` is the map on the patient's own sides."""
        from datxai.analysis.calibration import margin_of, probability
        from datxai.analysis.normal_range import judge_measures

        decision, reference = predict_label(record["logits"]), self.reference
        calibration = reference.calibration
        ratios = tabulate_measures(measures)
        calibrated = float(probability([margin_of(decision)], calibration["temperature"])[0])
        return {
            **decision,
            "probability": calibrated if calibration["determined"] else None,
            "uncertain": abs(calibrated - 0.5) <= calibration["half_width"],
            **measures,
            **ratios,
            "normal_range": judge_measures(reference.ranges, ratios, age, sex),
            **record,
            **self._measure(relevance, decision["predicted"], shown, reference),
        }

    def _identify(self) -> dict[str, str]:
        """The source of the network and its architecture, for the results."""
        folder = {} if self.source is None else {"folder": self.source.folder.resolve().name}
        return {**folder, "network": self.settings.network.architecture}

    def _compare_with_training(
        self, volume: Volume, measures: Mapping, features: Sequence[np.ndarray]
    ) -> dict | None:
        """Whether a scan is like the run's training cases; ``features`` are those of each batch of the network, the
        scan itself first."""
        if self.reference.shift is None or not self.reference.shift.measures:
            return None
        appearance = describe_appearance(volume.data, measures, self.anatomy)
        return self.reference.shift.judge(appearance | ({"activations": features[0][0]} if features else {}))

    def _measure(self, relevance: np.ndarray, predicted: int, shown: Volume, reference: Reference) -> dict:
        """Location of the relevance in a map, and whether the map is consistent."""
        from datxai.analysis.relevance import check_consistency, find_peak

        likeness = {"consistent": None}
        if reference.means is not None:
            normal, reduced = reference.means
            likeness = check_consistency(relevance, predicted, normal, reduced, self.anatomy.brain)
        return {
            "roi_relevance": self.anatomy.measure_map(relevance, self.settings.preprocessing),
            "peak": find_peak(shown.data, shown.grid, self.anatomy.striatum),
            **likeness,
        }

    def _describe_beside(
        self, name: str, relevance: np.ndarray, record: Mapping, volume: Volume, measures: Mapping, voxels: Volume
    ) -> MapOf:
        """The map of another explanation, transformed back like the first one."""
        _, shown, own = _transform_back(volume, relevance, record["method"], measures, voxels)
        predicted = predict_label(record["logits"])["predicted"]
        measured = self._measure(relevance, predicted, shown, self.beside[name][1])
        return MapOf(shown, own, {**{key: record[key] for key in ("method", "seed", "sum", "ledger")}, **measured})

    def write(self, reading: Reading, folder: str | os.PathLike, home: str | None = None) -> Path:
        """Write a reading to ``folder``, see `datxai.case_folder.write_reading`. Returns the folder."""
        from datxai.case_folder import write_reading

        return write_reading(reading, Path(folder), self.anatomy, self.reference, home)

    def _find_source(self, scan: Scan) -> Source | None:
        """Patient and study of the scan, if results are to be filed as DICOM."""
        if not self.settings.dicom:
            if self.settings.deidentify:
                raise InputError("deidentify=true needs dicom=true: only DICOM results name a patient; give both.")
            return None
        from datxai.imaging.dicom import deidentify

        return deidentify(scan.source) if self.settings.deidentify else scan.source


def _restore(run: Run, **changes) -> Config:
    """The recorded settings of a run's explanation, with ``changes``."""
    record = read_record(run.folder)
    if record is None or not record.values:
        raise InputError(f"{run.folder / RECORD}: no settings of the run are recorded; make the run again.")
    settings = replace(restore(record.of_explanation(run.explanation).values), **changes)
    if settings.composite.rules_from is not None and "composite" not in changes:
        raise InputError(
            f"{run.folder / RECORD}: composite.rules_from={settings.composite.rules_from} is Python code that "
            f"would be executed; if you trust it, give the composite as Reader.open(folder, composite=...)."
        )
    if settings.network.target is not None and "network" not in changes:
        raise InputError(
            f"{run.folder / RECORD}: network.target={settings.network.target} is Python code that would be executed; "
            f"if you trust it, give the network as Reader.open(folder, network=...)."
        )
    return settings


def _require_explanations(settings: Config, run: Run | Bundle) -> None:
    """Raise `InputError` for missing explanations, before anything is loaded or cached in the run folder."""
    if isinstance(run, Bundle):
        if settings.explanations:
            raise InputError(
                f"explanations=[{','.join(settings.explanations)}]: {run.folder} is a bundle of one explanation, "
                f"{run.explanation}; leave it out, or give the run folder."
            )
        return
    run.entry("evaluate", "case")
    for name in settings.explanations:
        require_name(name)
        Run(run.folder, name).entry("evaluate", "case")


def _find_beside(
    settings: Config, run: Run, explainer: Explainer, anatomy: Anatomy
) -> Iterator[tuple[str, tuple[Explainer, Reference]]]:
    """The other requested explanations of the run, all for its present network."""
    for name in dict.fromkeys(settings.explanations):
        if name != settings.explanation:
            other = Run(run.folder, name)
            merged = _restore(other, network=settings.network)
            merged = replace(settings, **{key: getattr(merged, key) for key in EXPLAINING}, explanation=name)
            if merged.target == "label":
                raise InputError(f"explanation={name}: its target=label needs a labelled case; leave it out.")
            prepared = Explainer.prepare(explainer.model, explainer.device, merged, anatomy)
            yield name, (prepared, Reference.of(merged, other))


def _load_network(settings: Config, run: Run | Bundle, anatomy: Anatomy, timings: dict[str, float]) -> Explainer:
    with timed(timings, "load network"):
        if isinstance(run, Bundle):
            device = choose_device(settings)
            return Explainer.prepare(run.load_network(device), device, settings, anatomy)
        return Explainer.of(settings, run, anatomy)


def _transform_back(
    volume: Volume, relevance: np.ndarray, method: Mapping, measures: Mapping, voxels: Volume
) -> tuple[Volume, Volume, Volume]:
    """Scan and map in MNI space on the patient's own sides, and the map in the scan's own space."""
    from datxai.imaging.mirror import unmirror

    spect = unmirror(volume, measures["mirrored"])
    shown = unmirror(volume.after("explain", relevance, **method), measures["mirrored"])
    own_relevance = resample(shown, voxels.grid, np.linalg.inv(measures["transform"]), step="to_scan_space")
    return spect, shown, own_relevance


def _name(path: Path) -> str:
    """The name of a scan from the given path, since a link may point to a file named by a hash."""
    absolute = Path(os.path.abspath(path))
    return (absolute.parent if absolute.name.upper() == "DICOMDIR" else absolute).name
