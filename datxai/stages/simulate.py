"""The phantom cohort: a scan of each subject and the table of participants, as ``data=folder`` reads them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from datxai.config import Config
from datxai.files import write_table
from datxai.phantom.population import Subject, draw_population
from datxai.phantom.scan import simulate_volume
from datxai.progress import parallel
from datxai.run import Run
from datxai.volume import save

COLUMNS = ["participant_id", "age", "sex", "label", "diseased", "pattern", "severity", "side", "asymmetry"]


def depends(settings: Config) -> dict:
    return {"data": asdict(settings.data)}


def outputs(run: Run) -> list[Path]:
    return [run.simulated / "participants.tsv", run.simulated / "reads.tsv"]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    population = draw_population(settings.data.n_subjects, settings.data.seed)
    paths = [run.simulated / f"{subject.participant_id}_spect.nii.gz" for subject in population]
    missing = [(*pair, fingerprint) for pair in zip(population, paths) if not run.made_with(pair[1], fingerprint)]
    for _ in parallel(_simulate, missing, len(missing), settings.n_jobs, "scans simulated"):
        pass
    run.keep_only(run.simulated, paths)
    people = [{column: getattr(subject, column) for column in COLUMNS} for subject in population]
    write_table(run.simulated / "participants.tsv", people, COLUMNS)
    reads = [
        {"participant_id": subject.participant_id, **read._asdict()} for subject in population for read in subject.reads
    ]
    write_table(run.simulated / "reads.tsv", reads, list(reads[0]))


def _simulate(subject: Subject, path: Path, fingerprint: str) -> None:
    save(simulate_volume(subject), path, {"fingerprint": fingerprint}, mni=False)
