"""The run folder: where everything lies, what made it, and what is still up to date.

``manifest.json`` holds one entry per finished stage: its configuration, what it was made from, versions, time. A
stage is current if its configuration and its inputs hash to the same fingerprint and its outputs are there. The
fingerprint of a stage contains those of the stages before it, so a change upstream reaches everything downstream.

A run may take over stages from a base run that has made them with the same fingerprint. Its folder then holds links
to what lies there, and the entry names the base.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from datxai import __version__
from datxai.errors import InputError
from datxai.files import hash_content, read_json, replacing, write_json
from datxai.volume import sidecar_path

PACKAGES = ("torch", "zennit", "numpy", "scipy", "nibabel", "pydicom", "scikit-learn", "hydra-core", "matplotlib")


class Run:
    """Paths and provenance of one run folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    manifest = property(lambda self: self.folder / "manifest.json")
    simulated = property(lambda self: self.folder / "simulated")
    participants = property(lambda self: self.folder / "participants.tsv")
    skipped = property(lambda self: self.folder / "skipped.tsv")
    preprocessed = property(lambda self: self.folder / "preprocessed")
    store = property(lambda self: self.preprocessed / "volumes.npy")
    sbr = property(lambda self: self.folder / "sbr.tsv")
    qc = property(lambda self: self.folder / "qc.tsv")
    sheets = property(lambda self: self.folder / "qc")
    template = property(lambda self: self.folder / "template.nii.gz")
    split = property(lambda self: self.folder / "split.tsv")
    table1 = property(lambda self: self.folder / "table1.tsv")
    model = property(lambda self: self.folder / "model")
    predictions = property(lambda self: self.folder / "predictions.tsv")
    relevance = property(lambda self: self.folder / "relevance")
    roi_relevance = property(lambda self: self.folder / "roi_relevance.tsv")
    regions = property(lambda self: self.folder / "regions.tsv")
    doubt = property(lambda self: self.folder / "doubt.tsv")
    anatomy = property(lambda self: self.folder / "anatomy.safetensors")
    means = property(lambda self: self.folder / "means")
    metrics = property(lambda self: self.folder / "metrics.json")
    figures = property(lambda self: self.folder / "figures")
    report = property(lambda self: self.folder / "report.html")
    pages = property(lambda self: self.folder / "report")

    def scan_of(self, case: str) -> Path:
        """The preprocessed volume of a case."""
        return self.preprocessed / f"{case}_space-MNI_spect.nii.gz"

    def sheet(self, number: int) -> Path:
        """A contact sheet of quality control, without its suffix; they count from 1, the doubtful scans first."""
        return self.sheets / f"sheet_{number:02d}"

    def relevance_of(self, case: str) -> Path:
        """The relevance map of a case."""
        return self.relevance / f"{case}_relevance.nii.gz"

    def mean_of(self, name: str) -> Path:
        """A mean volume over the test set, e.g. ``TP_relevance``."""
        return self.means / f"{name}.nii.gz"

    @staticmethod
    def made_with(path: Path, fingerprint: str) -> bool:
        """Whether a volume is there, whole, and marked with this fingerprint."""
        record = sidecar_path(path)
        return path.is_file() and record.is_file() and read_json(record).get("fingerprint") == fingerprint

    @staticmethod
    def keep_only(folder: Path, paths: Iterable[Path]) -> None:
        """Remove volumes that an earlier cohort or setting left, so that a folder holds what its tables name."""
        kept = {path.name for path in paths}
        for path in [*folder.glob("*.nii.gz"), *folder.glob("*.dcm")]:
            if path.name not in kept:
                path.unlink()
                sidecar_path(path).unlink(missing_ok=True)

    def entries(self) -> dict:
        """The manifest, stage by stage; empty where nothing has been made yet."""
        return read_json(self.manifest) if self.manifest.is_file() else {}

    def entry(self, stage: str, needed_by: str) -> dict:
        """The manifest's entry of a finished stage.

        `InputError` names the stage to run first, if it or one before it is not there or older than what it rests on.
        """
        entries = self.entries()
        if not self.holds(stage):
            raise InputError(
                f"{self.folder}: stage '{needed_by}' needs what '{stage}' makes, which is not there; "
                f"run `datxai {stage} run={self.folder}` first."
            )
        for before, fingerprint in entries[stage]["inputs"].items():
            if before in entries and self.entry(before, stage)["fingerprint"] != fingerprint:
                raise InputError(
                    f"{self.folder}: '{before}' has been made again since '{stage}', which '{needed_by}' needs; "
                    f"run `datxai {stage} run={self.folder}` first."
                )
        return entries[stage]

    def fingerprint(self, stage: str, config: Mapping, inputs: Mapping[str, str]) -> str:
        """What identifies the output of a stage: its name, its configuration, and the hashes of its inputs."""
        return hash_content({"stage": stage, "config": config, "inputs": inputs})

    def holds(self, stage: str) -> bool:
        """Whether the stage has been made, with whatever settings, and its outputs still exist."""
        entries = self.entries()
        return stage in entries and self.is_current(stage, entries[stage]["fingerprint"])

    def is_current(self, stage: str, fingerprint: str) -> bool:
        """Whether the stage has been made with this fingerprint, here or in a base run, and its outputs still exist."""
        entry = self.entries().get(stage)
        if entry is None or entry["fingerprint"] != fingerprint:
            return False
        if "base" in entry and not Run(self.folder / entry["base"]).is_current(stage, fingerprint):
            return False
        return all((self.folder / name).exists() for name in entry["outputs"])

    def adopt(self, stage: str, fingerprint: str, base: Run) -> bool:
        """Take a stage over from ``base``, if it is current there with this fingerprint; nothing is copied.

        The outputs are linked to (relative paths, so that base and run may be moved together). False where ``base``
        does not have them, or files of this run's own stand in their place.
        """
        if not base.is_current(stage, fingerprint):
            return False
        entry = base.entries()[stage]
        links = [self.folder / name for name in _top_level(entry["outputs"])]
        if any(link.exists() and not link.is_symlink() for link in links):
            return False
        here, there = self.folder.resolve(), base.folder.resolve()
        for link in links:
            with replacing(link) as temporary:  # processes of torchrun may do this all at once
                temporary.unlink()
                temporary.symlink_to(os.path.relpath(there / link.name, here))
        write_json(self.manifest, {**self.entries(), stage: {**entry, "base": os.path.relpath(there, here)}})
        return True

    def release(self, stage: str, outputs: Sequence[Path]) -> None:
        """Forget the stage, whose outputs are about to be written; of what was taken over only the links go."""
        entries = self.entries()
        if entries.pop(stage, None) is not None:
            write_json(self.manifest, entries)
        for name in _top_level(path.relative_to(self.folder).as_posix() for path in outputs):
            if (self.folder / name).is_symlink():
                (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def recording(
        self, stage: str, config: Mapping, inputs: Mapping[str, str], outputs: Sequence[Path]
    ) -> Iterator[str]:
        """Run a stage's body; write its manifest entry when, and only when, it ends well. Yields the fingerprint."""
        fingerprint = self.fingerprint(stage, config, inputs)
        begin = time.perf_counter()
        made = [path.relative_to(self.folder).as_posix() for path in outputs]
        self.release(stage, outputs)
        yield fingerprint
        entries = self.entries()
        entries[stage] = {
            "fingerprint": fingerprint,
            "config": config,
            "config_hash": hash_content(config),
            "inputs": dict(inputs),
            "outputs": made,
            "versions": versions(),
            "git_revision": git_revision(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_time_s": round(time.perf_counter() - begin, 2),
        }
        write_json(self.manifest, entries)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of datxai, Python, and the packages that numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"datxai": __version__, "python": platform.python_version(), **found}


@functools.cache
def git_revision() -> str | None:
    """Revision of the checkout that datxai runs from (``-dirty`` if changed); None for an installed package."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _top_level(outputs: Iterable[str]) -> list[str]:
    """The files and folders of the run folder that outputs are, or lie in."""
    return sorted({Path(name).parts[0] for name in outputs})
