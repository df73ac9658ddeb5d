"""The phantom cohort: a scan of each subject and the table of participants.

Scans are DICOM projections, as ``data=dicom`` reads them; with ``data.raw=false`` NIfTI volumes, as ``data=folder``
reads them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path

from datxai.config import Config
from datxai.errors import InputError
from datxai.files import hash_content, write_json, write_table
from datxai.imaging.dicom import Projections, write_projections
from datxai.phantom.camera import Camera
from datxai.phantom.population import Subject, draw_population
from datxai.phantom.scan import simulate_projections, simulate_volume
from datxai.progress import parallel
from datxai.run import Run
from datxai.volume import save, sidecar_path

COLUMNS = ["participant_id", "age", "sex", "label", "diseased", "pattern", "severity", "side", "asymmetry"]
MAY_BE_ZERO = ("motion_mm", "start_angle_deg")


def depends(settings: Config) -> dict:
    return {"data": asdict(settings.data)}


def outputs(run: Run) -> list[Path]:
    return [run.simulated / "participants.tsv", run.simulated / "reads.tsv"]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    population = draw_population(settings.data.n_subjects, settings.data.seed)
    suffix = "dcm" if settings.data.raw else "nii.gz"
    paths = [run.simulated / f"{subject.participant_id}_spect.{suffix}" for subject in population]
    camera = set_camera(settings.data.camera)
    marks = [hash_content([asdict(subject), camera]) for subject in population]  # whoever else is in the cohort
    missing = [
        (subject, path, camera, mark)
        for subject, path, mark in zip(population, paths, marks)
        if not run.made_with(path, mark)
    ]
    for _ in parallel(_simulate, missing, len(missing), settings.n_jobs, "scans simulated"):
        pass
    run.keep_only(run.simulated, paths)
    people = [{column: getattr(subject, column) for column in COLUMNS} for subject in population]
    write_table(run.simulated / "participants.tsv", people, COLUMNS)
    reads = [
        {"participant_id": subject.participant_id, **read._asdict()} for subject in population for read in subject.reads
    ]
    write_table(run.simulated / "reads.tsv", reads, list(reads[0]))


def set_camera(given: dict[str, float]) -> dict[str, float]:
    """The settings of the camera, checked; whole numbers where the camera counts."""
    known = {field.name: field.default for field in fields(Camera) if isinstance(field.default, (int, float))}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"data.camera has no {name}, expected some of {', '.join(known)}.")
        enough = value > 0 or (value == 0 and name in MAY_BE_ZERO)
        if not (enough and value < math.inf) or (isinstance(known[name], int) and value != int(value)):
            raise InputError(
                f"data.camera.{name}={value:g}: expected a positive number, whole for views, rows, bins; only "
                f"{' and '.join(MAY_BE_ZERO)} may be 0."
            )
    return {name: type(known[name])(value) for name, value in given.items()}


def _simulate(subject: Subject, path: Path, camera: dict[str, float], mark: str) -> None:
    if path.suffix == ".dcm":
        counts, used = simulate_projections(subject, **camera)
        projections = Projections(counts, used.angles_deg, used.pixel_mm, used.pixel_mm, used.radius_mm)
        write_projections(
            path,
            projections,
            name=f"{subject.participant_id} of seed {subject.seed[0]}",
            patient_id=subject.participant_id,
            patient_sex=subject.sex,
            patient_age=round(subject.age),
        )
        write_json(sidecar_path(path), {"fingerprint": mark})
    else:
        save(simulate_volume(subject, **camera), path, {"fingerprint": mark}, mni=False)
