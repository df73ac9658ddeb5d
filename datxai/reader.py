"""A trained run that reads new scans: what `datxai case` does once and `datxai serve` again and again.

    reader = Reader.open("runs/phantom")
    reading = reader.read("scan.dcm")
    reading.result["probability"], reading.relevance     # the map in MNI space, the patient's own sides
    reader.write(reading, "out/scan")
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from datxai import __version__
from datxai.anatomy import load_anatomy
from datxai.case import SBR, Explainer, Imaging, grid_of, measure_map, outline_of, predict_label, read_path
from datxai.config import Config, restore
from datxai.errors import InputError
from datxai.files import read_json, write_json
from datxai.results import read_normals, read_predictions
from datxai.run import Run
from datxai.volume import Volume, load, resample, save

MAX_AGE = 120  # years
SCREEN_DPI = 150  # of the figure of a case, which the page shows only where its viewer cannot run


@dataclass(frozen=True, eq=False)
class Reading:
    """What a run says of one scan. Left and right are the patient's own.

    Attributes
    ----------
    name : of the scan's file or folder, without suffix
    scan, own_relevance : Volume in the scan's own space, as far as it is RAS+
    spect, relevance : Volume in MNI space on the network's grid; scaled uptake, and relevance
    result : what is written as ``prediction.json``: ``predicted``, ``p_reduced``, ``probability``, binding ratios with
        their ``normal_range``, ``quality``, ``consistent``, ``warnings``, ``peak``, ``ledger``, ``timings`` in seconds
    source : of the DICOM results, where these are asked for
    """

    name: str
    scan: Volume
    spect: Volume
    relevance: Volume
    own_relevance: Volume
    result: dict
    source: object = None


@dataclass
class Reader:
    """Holds what every scan needs: network, template, regions, mean maps, normal cases. Load once, read many."""

    settings: Config
    run: Run
    imaging: Imaging
    explainer: Explainer
    regions: Mapping[str, np.ndarray]  # on the network's grid
    timings: dict[str, float] = field(default_factory=dict)  # of loading

    @classmethod
    def open(cls, folder: str | os.PathLike, **changes) -> Reader:
        """The reader of a finished run, with the settings it was made with; ``changes`` replace some of them.

        ``Reader.open("runs/phantom", target="difference", device="cpu")``. Raises `InputError` if the folder holds no
        finished run.
        """
        run = Run(folder)
        run.entry("evaluate", "case")
        record = run.folder / ".hydra" / "config.yaml"
        if not record.is_file():
            raise InputError(f"{record}: no such file, expected the settings of the run; make the run again.")
        try:
            settings = replace(restore(yaml.safe_load(record.read_text(encoding="utf-8"))), **changes)
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
            raise InputError(
                f"{record}: does not hold the settings of a run ({' '.join(str(error).split())}); make the run again."
            ) from error
        if settings.composite.rules_from is not None and "composite" not in changes:
            raise InputError(
                f"{record}: composite.rules_from={settings.composite.rules_from} is Python code that would be "
                f"executed; if you trust it, give the composite as Reader.open(folder, composite=...)."
            )
        return cls.of(settings, run)

    @classmethod
    def of(cls, settings: Config, run: Run) -> Reader:
        """The reader of a run for settings that are known already."""
        run.entry("evaluate", "case")
        if settings.target == "label":
            raise InputError("target=label needs a labelled case; choose predicted, normal, reduced or difference.")
        from datxai.imaging.registration import prepare

        timings: dict[str, float] = {}
        with ThreadPoolExecutor(1) as beside:
            explainer = beside.submit(_load_network, settings, run, timings)
            with _timed(timings, "load atlas"):
                anatomy = load_anatomy(settings, run.anatomy)
                if settings.registration.kind == "affine":
                    prepare(anatomy.bases)
            with _timed(timings, "load figures"):  # for which the first scan would else wait
                importlib.import_module("datxai.analysis.document").prepare()
            imaging = Imaging(settings, grid_of(settings), anatomy.working, anatomy.bases)
            reader = cls(settings, run, imaging, None, anatomy.regions, timings)
            for name in ("means", "calibration", "normals"):  # kept from here on
                getattr(reader, name)
            reader.explainer = explainer.result()
            return reader

    @cached_property
    def means(self) -> list[np.ndarray] | None:
        """Mean relevance maps of the true negative and true positive test cases; None if one has no case, or if these
        maps were made another way, which a map of this reader must not be held against."""
        from datxai.stages.explain import depends

        made = self.run.entry("explain", "case")
        if self.run.fingerprint("explain", depends(self.settings), made["inputs"]) != made["fingerprint"]:
            return None
        paths = [self.run.mean_of(f"{group}_relevance") for group in ("TN", "TP")]
        return [load(path, blank=True).data for path in paths] if all(path.exists() for path in paths) else None

    @cached_property
    def calibration(self) -> Mapping:
        """The temperature of the run's validation cases, and half the width of what is called uncertain about 0.5."""
        from datxai.analysis.calibration import choose_uncertain, probability

        found = read_json(self.run.metrics)["calibration"]
        cases = [case for case in read_predictions(self.run) if case["set"] == "validation"]
        margins = [case["logit_reduced"] - case["logit_normal"] for case in cases]
        known = bool(cases)
        half_width = choose_uncertain(probability(margins, found["temperature"])) if known else 0.0
        return {**found, "half_width": half_width}

    @cached_property
    def normals(self) -> list[dict]:
        """Age and binding ratios of the run's normal cases."""
        return read_normals(self.run)

    def read(self, path: str | os.PathLike, age: float | None = None) -> Reading:
        """Read one scan: a NIfTI file, a DICOM file, or a folder with one DICOM series; projections are reconstructed.

        ``age`` in years; where it is not given, that of the DICOM header. Raises `InputError` with one sentence for
        what cannot be used. Nothing is written.
        """
        import torch

        from datxai.analysis.calibration import probability
        from datxai.analysis.normal_range import expect_ratios
        from datxai.analysis.relevance import check_consistency, find_peak
        from datxai.imaging.mirror import unmirror

        path, timings = Path(path), {}
        with _timed(timings, "read"):
            source = self._find_source(path)
            scan = read_path(path, self.settings)
            subject = _read_subject(path)
        age = subject["age"] if age is None else age
        if age is not None and not 0 <= age <= MAX_AGE:
            raise InputError(f"{path}: the age is {age:g}, expected years, from 0 to {MAX_AGE}; give it as age=YEARS.")
        with _timed(timings, "register"):
            volume, measures = self.imaging.process(scan, path)
        with _timed(timings, "explain"):
            ((relevance, record),) = self.explainer.explain(torch.from_numpy(volume.data)[None, None])
        found = predict_label(record["logits"])
        margin = found["logit_reduced"] - found["logit_normal"]
        calibrated = float(probability([margin], self.calibration["temperature"])[0])
        with _timed(timings, "compare"):
            mirrored = measures["mirrored"]
            spect = unmirror(volume, mirrored)
            here = unmirror(volume.after("explain", relevance, **record["method"]), mirrored)
            own = resample(here, scan.grid, np.linalg.inv(measures["transform"]), step="to_scan_space")
            striatum = self.regions["striatum_left"] | self.regions["striatum_right"]
            peak = find_peak(here.data, volume.grid, striatum)
            likeness = {"consistent": None}
            if self.means is not None:
                likeness = check_consistency(relevance, found["predicted"], *self.means, self.regions["brain"])
            expected = expect_ratios(self.normals, SBR, age)
        name = path.resolve().name
        result = {
            "scan": name,
            "age": age,
            "sex": subject["sex"],
            "tracer": subject["tracer"],
            **found,
            "probability": calibrated if self.calibration["determined"] else None,
            "uncertain": abs(calibrated - 0.5) <= self.calibration["half_width"],
            **measures,
            "normal_range": expected,
            **record,
            "roi_relevance": measure_map(relevance, volume.grid, self.regions, self.settings),
            "peak": peak,
            **likeness,
            "timings": timings,
            "made_by": {"datxai": __version__, "run": self.run.entry("evaluate", "case")["fingerprint"]},
        }
        result["warnings"] = _find_doubts(result)
        for suffix in (".gz", ".nii", ".dcm"):
            name = name.removesuffix(suffix)
        if source is not None and source.deidentified:
            name = result["scan"] = str(source.elements["PatientID"])
            scan, spect, here, own = (_forget_file(made) for made in (scan, spect, here, own))
        return Reading(name, scan, spect, here, own, result, source)

    def write(self, reading: Reading, folder: str | os.PathLike) -> Path:
        """Write a reading to ``folder``: report.html and .pdf, prediction.json, NIfTI volumes, DICOM where asked for.

        Everything is made beside the folder and then moved into it, so a failure leaves nothing behind. What an
        earlier reading left is replaced, except for DICOM, whose names are new each time. Returns the folder.
        """
        from datxai.analysis.document import write_case_pdf
        from datxai.analysis.figures import plot_case
        from datxai.analysis.report import write_case_report
        from datxai.analysis.slices import Frame
        from datxai.analysis.style import save_figure

        folder, name, result = Path(folder), reading.name, reading.result
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        try:
            volumes = {
                "relevance in the scan's own space": (f"{name}_relevance.nii.gz", reading.own_relevance, False),
                "relevance in MNI space": (f"{name}_space-MNI_relevance.nii.gz", reading.relevance, True),
                "scan in MNI space": (f"{name}_space-MNI_spect.nii.gz", reading.spect, True),
            }
            downloads = {"PDF": "report.pdf", "numbers (JSON)": "prediction.json"}
            downloads |= {f"{what} (NIfTI)": file for what, (file, *_) in volumes.items()}
            if reading.source is not None:
                with _timed(result["timings"], "dicom"):
                    for made in self._write_dicom(reading, place):
                        kind = "map" if made.name.startswith("relevance-map") else "colour pictures"
                        downloads[f"relevance {kind} (DICOM)"] = made.name
            with _timed(result["timings"], "write"), ThreadPoolExecutor(1) as beside:
                saved = [beside.submit(save, volume, place / file, mni=mni) for file, volume, mni in volumes.values()]
                grid, peak = reading.relevance.grid, result["peak"]
                centre = [0.0, 0.0, 0.0] if peak["x"] is None else [peak["x"], peak["y"], peak["z"]]
                index = np.rint(grid.mm_to_index(centre)).astype(int)
                frame = Frame(grid, outline_of(self.regions), self.regions["brain"])
                figure = plot_case(frame, reading.spect.data, reading.relevance.data, index, ("L", "R"))
                save_figure(figure, place / "case", ("png",), SCREEN_DPI)
                content = self._describe(reading) | {"figures": {"case": place / "case.png"}, "downloads": downloads}
                write_case_pdf(place / "report.pdf", content)
                for each in saved:
                    each.result()
            with _timed(result["timings"], "page"):
                write_case_report(place / "report.html", content)
            write_json(place / "prediction.json", result)
            folder.mkdir(exist_ok=True)
            for made in place.iterdir():
                os.replace(made, folder / made.name)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return folder

    def _describe(self, reading: Reading) -> dict:
        """The content of `datxai.analysis.report.write_case_report`."""
        from datxai.analysis.normal_range import describe_range

        result = reading.result
        evaluated = self.run.entry("evaluate", "case")
        return {
            "case_id": reading.name,
            "created": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            "predicted": result["predicted"],
            "p_reduced": result["p_reduced"],
            "probability": result["probability"],
            "volumes": {"spect": reading.spect, "relevance": reading.relevance},
            "own_volumes": {
                "spect": replace(reading.scan, data=reading.scan.data / np.float32(result["reference_value"])),
                "relevance": reading.own_relevance,
            },
            "outline": outline_of(self.regions),
            "sbr": {key: result[key] for key in SBR},
            "normal_range": result["normal_range"],
            "normal_range_source": describe_range(
                result["normal_range"], result["age"], [case["age"] for case in self.normals]
            ),
            "subject": {"age": result["age"], "sex": result["sex"]},
            "relevance": {
                "ipsilateral side": "right" if result["mirrored"] else "left",
                **result["roi_relevance"],
                "likeness_to_mean_TN": result.get("r_normal"),
                "likeness_to_mean_TP": result.get("r_reduced"),
                "consistent": result["consistent"],
            },
            "explanation": {
                **result["method"],
                "seed (normal, reduced)": ", ".join(f"{value:.4g}" for value in result["seed"]),
                "sum": result["sum"],
            },
            "quality": result["quality"] | {key: result[key] for key in ("reference_value", "mirrored")},
            "provenance": {"datxai": __version__} | {key: evaluated[key] for key in ("finished", "fingerprint")},
            "timings": result["timings"],
            "warnings": result["warnings"],
            "ledger": result["ledger"],
        }

    def _find_source(self, path: Path):
        """Whose scan it is, where results are to be filed as DICOM."""
        if not self.settings.dicom:
            if self.settings.deidentify:
                raise InputError("deidentify=true needs dicom=true: only DICOM results name a patient; give both.")
            return None
        from datxai.imaging import dicom

        source = dicom.read_source(path)
        return dicom.deidentify(source) if self.settings.deidentify else source

    def _write_dicom(self, reading: Reading, place: Path) -> list[Path]:
        from datxai.analysis.viewer import relevance_colours
        from datxai.imaging import dicom

        method = reading.result["method"]
        words = f"Relevance ({', '.join(str(method[key]) for key in ('attribution', 'composite') if key in method)})"
        return dicom.write_dicom_results(
            place, reading.source, reading.own_relevance, reading.scan, relevance_colours(), words[:64]
        )


def _load_network(settings: Config, run: Run, timings: dict[str, float]) -> Explainer:
    with _timed(timings, "load network"):
        return Explainer.of(settings, run)


def _find_doubts(result: Mapping) -> list[str]:
    """Why a reading is not to be relied on, a sentence each."""
    doubts, judged = [], result["quality"]
    if judged["verdict"] != "green":
        doubts.append(f"The registration is doubtful: {judged['reason']}.")
    if result["tracer"]:
        from datxai.imaging.dicom import is_dat_tracer

        if not is_dat_tracer(result["tracer"]):
            doubts.append(
                f"The header names the tracer {result['tracer']}; the network knows scans of the dopamine transporter "
                f"alone, and calls any other normal or reduced as well."
            )
    if result["uncertain"]:
        doubts.append("The probability is close to one half: the network is uncertain.")
    if result["consistent"] is False:
        doubts.append("The map is more like those of the other class: the decision may be wrong.")
    return doubts


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - begin, 3)


def _read_subject(path: Path) -> dict:
    """Age, sex and tracer, as far as the header of a DICOM scan tells them."""
    if path.is_file() and path.name.lower().endswith((".nii", ".nii.gz")):
        return {"age": None, "sex": None, "tracer": None}
    from datxai.imaging import dicom

    return dicom.read_subject(path)


def _forget_file(volume: Volume) -> Volume:
    """Without the names of files in the record."""
    steps = ({key: value for key, value in step.items() if key != "file"} for step in volume.history)
    return replace(volume, history=tuple(steps))
