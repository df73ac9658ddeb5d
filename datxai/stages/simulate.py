"""Simulation of the phantom cohort: a scan of each subject and the table of participants.

Scans are DICOM projections, as ``data=dicom`` reads them, or NIfTI volumes, as ``data=folder`` reads them. Volumes are
reconstructed the way each subject's site does it (``data.reconstruction=sites``), or by a short cut
(``data.raw=false``).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from datxai.config import Config, Phantom
from datxai.data_source import makes_projections, set_camera
from datxai.files import hash_content, write_table
from datxai.imaging.dicom import Projections, write_projections
from datxai.imaging.reconstruction import reconstruct
from datxai.phantom.population import Subject, draw_population
from datxai.phantom.scan import simulate_projections, simulate_volume
from datxai.progress import on_one_thread, parallel
from datxai.run import Run
from datxai.volume import save, write_sidecar

COLUMNS = ["participant_id", "age", "sex", "label", "diseased", "pattern", "severity", "side", "asymmetry", "site"]


def depends(settings: Config) -> dict:
    return {"data": asdict(settings.data)}


def outputs(run: Run) -> list[Path]:
    return [run.simulated / "participants.tsv", run.simulated / "reads.tsv", run.simulated]


def make(settings: Config, run: Run) -> None:
    data = settings.data
    assert isinstance(data, Phantom)
    population = draw_population(data.n_subjects, data.seed)
    suffix = "dcm" if makes_projections(data) else "nii.gz"
    paths = [run.simulated / f"{subject.participant_id}_spect.{suffix}" for subject in population]
    camera = set_camera(data.camera)
    options = {"camera": camera, "raw": data.raw, "reconstruction": data.reconstruction}
    fingerprints = [hash_content([asdict(subject), options]) for subject in population]
    missing = [
        (subject, path, camera, data.raw, fingerprint)
        for subject, path, fingerprint in zip(population, paths, fingerprints)
        if not run.made_with(path, fingerprint)
    ]
    for _ in parallel(simulate_scan, missing, len(missing), settings.n_jobs, "scans simulated"):
        pass
    run.keep_only(run.simulated, paths)
    people = [
        {column: getattr(subject, column, None) for column in COLUMNS} | {"site": subject.acquisition.site}
        for subject in population
    ]
    write_table(run.simulated / "participants.tsv", people, COLUMNS)
    reads = [
        {"participant_id": subject.participant_id, **read._asdict()} for subject in population for read in subject.reads
    ]
    write_table(run.simulated / "reads.tsv", reads, list(reads[0]))


@on_one_thread
def simulate_scan(subject: Subject, path: Path, camera: dict[str, Any], raw: bool, fingerprint: str) -> None:
    """Write the scan of a subject to ``path``: projections (.dcm), their reconstruction at its site (.nii.gz), or,
    unless ``raw``, the volume of the short cut."""
    if not raw:
        save(simulate_volume(subject, **camera), path, {"fingerprint": fingerprint}, mni=False)
        return
    counts, used = simulate_projections(subject, **camera)
    if path.suffix == ".gz":
        options = subject.acquisition.reconstruction
        volume = reconstruct(counts, used.angles_deg, used.pixel_mm, **options)
        save(volume, path, {"fingerprint": fingerprint, "site": subject.acquisition.site}, mni=False)
        return
    write_projections(
        path,
        Projections(counts, used.angles_deg, used.pixel_mm, used.pixel_mm, np.asarray(used.radius_mm)),
        name=f"{subject.participant_id} of seed {subject.seed[0]}",
        patient_id=subject.participant_id,
        patient_sex=subject.sex,
        patient_age=round(subject.age),
    )
    write_sidecar(path, {"fingerprint": fingerprint})
