"""The run folder: its paths, their provenance, and what is still up to date.

``manifest.json`` holds one entry per finished stage: its configuration, inputs, versions, time. A stage is current if
its configuration and its inputs hash to the same fingerprint and its outputs are unchanged: the entry has size, time
and SHA-256 of every file. The input of a stage is the ``identity`` of the stage before it, its fingerprint and the
content of its files, so a change upstream reaches everything downstream.

A run may have several explanations. Each has separate maps, results based on them, and entries in the manifest: those
of ``default`` are in the run folder itself, those of NAME in ``explanations/NAME``.

A run may take over stages from a base run that has made them with the same fingerprint. Its folder then has links to
the files of the base, and the entry names the base.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datxai import __version__
from datxai.config import DEFAULT, EXPLAINED, entry_name
from datxai.errors import InputError
from datxai.files import hash_content, hash_json, parse_json, read_json, replacing, write_json
from datxai.integrity import describe_files, find_damage, hash_of_all
from datxai.volume import is_whole, sidecar_path

PACKAGES = ("torch", "zennit", "numpy", "scipy", "nibabel", "pydicom", "scikit-learn", "hydra-core", "matplotlib")


class Run:
    """Paths and provenance of one run folder, and of one of its explanations."""

    making: str | None = None  # fingerprint of the running stage

    def __init__(self, folder: str | Path, explanation: str = DEFAULT, full: bool = False):
        self.folder, self.explanation = Path(folder), explanation
        self.explained = self.folder if explanation == DEFAULT else self.folder / "explanations" / explanation
        self.full = full  # whether files are checked by reading them, not only by size and time

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
    features = property(lambda self: self.model / "features.safetensors")
    relevance = property(lambda self: self.explained / "relevance")
    roi_relevance = property(lambda self: self.explained / "roi_relevance.tsv")
    regions = property(lambda self: self.explained / "regions.tsv")
    doubt = property(lambda self: self.explained / "doubt.tsv")
    anatomy = property(lambda self: self.folder / "anatomy.safetensors")
    means = property(lambda self: self.explained / "means")
    metrics = property(lambda self: self.explained / "metrics.json")
    shift = property(lambda self: self.explained / "shift.safetensors")
    shift_cases = property(lambda self: self.explained / "shift.tsv")
    figures = property(lambda self: self.explained / "figures")
    report = property(lambda self: self.explained / "report.html")
    pages = property(lambda self: self.explained / "report")
    external = property(lambda self: self.explained / "external.html")

    def scan_of(self, case: str) -> Path:
        """The preprocessed volume of a case."""
        return self.preprocessed / f"{case}_space-MNI_spect.nii.gz"

    def sheet(self, number: int) -> Path:
        """A contact sheet of quality control, without its suffix; numbered from 1, with doubtful scans first."""
        return self.sheets / f"sheet_{number:02d}"

    def relevance_of(self, case: str) -> Path:
        """The relevance map of a case."""
        return self.relevance / f"{case}_relevance.nii.gz"

    def mean_of(self, name: str) -> Path:
        """A mean volume over the test set, e.g. ``TP_relevance``."""
        return self.means / f"{name}.nii.gz"

    @staticmethod
    def made_with(path: Path, fingerprint: str) -> bool:
        """Whether a volume exists, is intact, and has this fingerprint."""
        return is_whole(path) and read_json(sidecar_path(path)).get("fingerprint") == fingerprint

    @staticmethod
    def keep_only(folder: Path, paths: Iterable[Path]) -> None:
        """Remove volumes of an earlier cohort or setting, so that a folder holds only what its tables name."""
        kept = {path.name for path in paths}
        for path in [*folder.glob("*.nii.gz"), *folder.glob("*.dcm")]:
            if path.name not in kept:
                path.unlink()
                sidecar_path(path).unlink(missing_ok=True)

    def entries(self) -> dict:
        """The manifest's entries by stage; empty if nothing has been made yet. Raises `InputError` if damaged."""
        if not self.manifest.is_file():
            return {}
        entries = _parse_entries(self.manifest.read_bytes(), self.manifest)
        return {stage: dict(entry) for stage, entry in entries.items()}

    @property
    def explanations(self) -> list[str]:
        """The names of the explanations that have been made."""
        names = [name.partition("/") for name in self.entries()]
        return [explanation or DEFAULT for stage, _, explanation in names if stage == "explain"]

    def find(self, stage: str) -> dict | None:
        """The manifest's entry of a stage of this explanation; None before it has been made."""
        return self.entries().get(entry_name(stage, self.explanation))

    def command(self, stage: str) -> str:
        """The command that runs a stage of this explanation."""
        named = f" explanation={self.explanation}" if self.explanation != DEFAULT and stage in EXPLAINED else ""
        return f"datxai {stage} run={self.folder}{named}"

    def entry(self, stage: str, needed_by: str) -> dict:
        """The manifest's entry of a finished stage.

        Raises `InputError` that names the stage to run first, if it or an earlier one is missing, damaged, or older
        than its input.
        """
        entry, command = self.find(stage), self.command(stage)
        if entry is None:
            others = self.explanations
            have = "" if self.explanation in [DEFAULT, *others] else f" (what is there: {', '.join(others)})"
            raise InputError(
                f"{self.explained}: stage '{needed_by}' needs what '{stage}' makes, which is not there{have}; "
                f"run `{command}` first."
            )
        if damage := self.find_damage(stage):
            path, fault = next(iter(damage.items()))
            others = f", as are {len(damage) - 1} others" if len(damage) > 1 else ""
            raise InputError(
                f"{path}: {fault}{others}, and '{needed_by}' needs what '{stage}' made; run `{command}` first, which "
                f"makes it again."
            )
        for upstream, identity in entry["inputs"].items():
            if self.find(upstream) is not None and identity not in _identities(self.entry(upstream, stage)):
                raise InputError(
                    f"{self.explained}: '{upstream}' has been made again since '{stage}', which '{needed_by}' needs; "
                    f"run `{command}` first."
                )
        return entry

    def fingerprint(self, stage: str, config: Mapping, inputs: Mapping[str, str]) -> str:
        """A hash that identifies a stage: its name, its configuration, and the hashes of its inputs."""
        return hash_content({"stage": stage, "config": config, "inputs": inputs})

    def holds(self, stage: str) -> bool:
        """Whether the stage has been made, with any settings, and its outputs are intact."""
        return self.find(stage) is not None and not self.find_damage(stage)

    def is_current(self, stage: str, fingerprint: str) -> bool:
        """Whether the stage has been made with this fingerprint, here or in a base run, and its outputs are intact."""
        entry = self.find(stage)
        return entry is not None and entry["fingerprint"] == fingerprint and not self.find_damage(stage)

    def find_damage(self, stage: str) -> dict[Path, str]:
        """Outputs of a stage, possibly in a base run, that have changed since, and what is wrong with each.

        For stages made by versions without checksums, only missing outputs are found.
        """
        entry = self.find(stage)
        assert entry is not None, stage
        missing = [self.folder / name for name in entry["outputs"] if not (self.folder / name).exists()]
        if missing:
            return dict.fromkeys(missing, "is missing")
        if "base" in entry:
            links = [self.folder / name for name in _top_level(entry["outputs"])]
            if replaced := [link for link in links if not link.is_symlink()]:
                return dict.fromkeys(replaced, f"is no longer the link to what was taken over from {entry['base']}")
            base = Run(self.folder / entry["base"], self.explanation, self.full)
            base_entry = base.find(stage)
            if base_entry is None or _identities(base_entry) != _identities(entry):
                return {base.folder: f"has made '{stage}' again since it was taken over from there"}
            try:
                return base.find_damage(stage)
            except RecursionError:
                return {base.folder: "rests on itself"}
        files = entry.get("files", {})
        damage, now = find_damage(self.folder, files, self.full)
        if not damage and now != files:  # copied: next time, sizes and times suffice
            with suppress(OSError):
                name = entry_name(stage, self.explanation)
                self._write({**self.entries(), name: {**entry, "files": now}})
        return damage

    def identity(self, stage: str, needed_by: str) -> str:
        """A hash that identifies the output of a stage, its settings and the content of its files; see `entry`."""
        return _identities(self.entry(stage, needed_by))[-1]

    def adopt(self, stage: str, fingerprint: str, base: Run) -> bool:
        """Take over a stage from ``base``, if it is current there with this fingerprint; nothing is copied.

        The outputs become links with relative paths, so that base and run may be moved together. Returns False if
        ``base`` does not have them, or this run has files of its own at their paths.
        """
        entry = base.find(stage)
        if entry is None or not base.is_current(stage, fingerprint):
            return False
        links = [self.folder / name for name in _top_level(entry["outputs"])]
        if any(link.exists() and not link.is_symlink() for link in links):
            return False
        here, there = self.folder.resolve(), base.folder.resolve()
        for link in links:
            with replacing(link) as temporary:  # processes of torchrun may do this concurrently
                temporary.unlink()
                temporary.symlink_to(os.path.relpath(there / link.relative_to(self.folder), link.parent.resolve()))
        name = entry_name(stage, self.explanation)
        self._write({**self.entries(), name: {**entry, "base": os.path.relpath(there, here)}})
        return True

    def release(self, stage: str, outputs: Sequence[Path]) -> None:
        """Remove the stage's entry before its outputs are written; of adopted outputs, only the links are removed.

        Damaged outputs of its own are removed, so that none is mistaken for a finished one.
        """
        entries = self.entries()
        name = entry_name(stage, self.explanation)
        entry = entries.get(name)
        if entry is not None:
            for path in self.find_damage(stage) if "base" not in entry else ():
                if path.is_file():
                    path.unlink()
            del entries[name]
            self._write(entries)
        for name in _top_level(path.relative_to(self.folder).as_posix() for path in outputs):
            if (self.folder / name).is_symlink():
                (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def recording(
        self, stage: str, config: Mapping, inputs: Mapping[str, str], outputs: Sequence[Path]
    ) -> Iterator[str]:
        """Run a stage's body; write its manifest entry if, and only if, it succeeds. Yields the fingerprint.

        If the body fails before it has changed the existing outputs, their entry is restored.
        """
        fingerprint = self.fingerprint(stage, config, inputs)
        begin = time.perf_counter()
        output_names = [path.relative_to(self.folder).as_posix() for path in outputs]
        previous = self.find(stage)
        self.release(stage, outputs)
        try:
            yield fingerprint
        except BaseException:
            self._restore_entry(stage, previous)
            raise
        files = describe_files(self.folder, outputs)
        entries = self.entries()
        entries[entry_name(stage, self.explanation)] = {
            "fingerprint": fingerprint,
            "config": config,
            "config_hash": hash_content(config),
            "inputs": dict(inputs),
            "outputs": output_names,
            "output_hash": hash_of_all(files),
            "files": files,
            "versions": versions(),
            "git_revision": git_revision(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_time_s": round(time.perf_counter() - begin, 2),
        }
        self._write(entries)

    def _restore_entry(self, stage: str, entry: Mapping | None) -> None:
        """Restore the entry that a stage had before it failed, if its outputs are still intact."""
        others = self.entries()
        if entry is not None:
            self._write({**others, entry_name(stage, self.explanation): entry})
            if self.find_damage(stage):
                self._write(others)

    def _write(self, entries: Mapping[str, Mapping]) -> None:
        write_json(
            self.manifest, {stage: {**entry, "checksum": hash_json([stage, entry])} for stage, entry in entries.items()}
        )


@functools.lru_cache(maxsize=8)
def _parse_entries(data: bytes, manifest: Path) -> dict[str, dict]:
    """The entries of a manifest; cached, because a command looks them up many times, and their checksums take time."""
    entries = parse_json(data, manifest)
    for stage, entry in entries.items():
        _require_entry(manifest, stage, entry)
    return {stage: {key: entry[key] for key in entry if key != "checksum"} for stage, entry in entries.items()}


def _require_entry(manifest: Path, stage: str, entry: Any) -> None:
    """Raise `InputError` for a manifest entry that fails its checksum or has an invalid form."""
    kinds = {"fingerprint": str, "config": dict, "inputs": dict, "outputs": list}
    is_entry = isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
    content = {key: entry[key] for key in entry if key != "checksum"} if is_entry else {}
    if not is_entry or entry.get("checksum") not in (None, hash_json([stage, content])):
        raise InputError(
            f"{manifest}: what it says of '{stage}' is not as it was written; put the file back from a copy, or delete "
            f"it: `datxai run={manifest.parent}` then makes again what is not finished."
        )


def _identities(entry: Mapping) -> list[str]:
    """The fingerprint of a stage and, if its outputs have been hashed, the hash of both."""
    output_hashes = [entry["output_hash"]] if "output_hash" in entry else []
    return [entry["fingerprint"], *(hash_content([entry["fingerprint"], content]) for content in output_hashes)]


@functools.cache
def versions() -> dict[str, str]:
    """Versions of datxai, Python, and the packages that numbers depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"datxai": __version__, "python": platform.python_version(), **packages}


@functools.cache
def git_revision() -> str | None:
    """Revision of the checkout that datxai runs from (``-dirty`` if changed); None for an installed package."""
    package = Path(__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _top_level(outputs: Iterable[str]) -> list[str]:
    """The top-level files and folders, of the run folder or of an explanation's, that contain the outputs."""
    parts = [Path(name).parts for name in outputs]
    return sorted({"/".join(names[:3] if names[0] == "explanations" else names[:1]) for names in parts})
