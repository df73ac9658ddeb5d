"""Planning of `datxai apply`: a separate folder, and the settings of the run, or the bundle, that judges another cohort
there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from datxai.bundle import MOST, SETTINGS, WEIGHTS, Bundle
from datxai.config import Config
from datxai.errors import InputError
from datxai.order import Order, group_of
from datxai.record import CODE, OF_COHORT, RECORD, Record, read_record, require_same, say

OF_BUNDLE = "bundle"  # subfolder of a run folder for template and atlas of an applied bundle
BEGUN = (".hydra", ".lock", "datxai.log", "anatomy.safetensors", "preprocessed")  # files that may precede the record


def require_apart(order: Order, run: Path, applied: Path) -> None:
    """Raise `InputError` for a folder that cannot hold results for another cohort, or a run that cannot be applied."""
    if not (applied.is_file() or (applied / "manifest.json").is_file()):
        raise InputError(
            f"run={applied}: no run folder of datxai there (no manifest.json), expected a finished run; make one with "
            f"`datxai run={applied}`."
        )
    run_path, applied_path = run.resolve(), applied.resolve()
    if run_path == applied_path or applied_path in run_path.parents or run_path in applied_path.parents:
        raise InputError(
            f"to={run}: is, holds or lies in the run that is applied, {applied}, which is only read; choose another "
            f"to=DIR."
        )
    record = read_record(run)
    applied_before = None if record is None else record.values.get("applied")
    if record is None and run.is_dir() and any(path.name not in BEGUN for path in run.iterdir()):
        raise InputError(f"to={run}: holds files that no run has made ({RECORD} is missing); choose another to=DIR.")
    if record is not None and (applied_before is None or Path(applied_before).resolve() != applied_path):
        content = "a run of its own" if applied_before is None else f"what the run {applied_before} says"
        raise InputError(
            f"to={run}: holds {content}, expected a new folder, or what {applied} says; choose another to=DIR."
        )
    if record is None and not {"data", "experiment"} & {group_of(key) for key in order.given}:
        raise InputError(
            f"run={applied}: no cohort is given to apply it to; give data=folder data.root=DIR, or data=dicom, "
            f"ppmi or phantom."
        )


def make_record(order: Order, record: Record, applied: Path) -> Record:
    """The record of an applied run as taken over: without code, and without the runs on which it was based."""
    for setting in CODE:
        group, name = setting.split(".")
        value = record.values.get(group, {}).get(name)
        if value is not None and not {setting, group} & {*order.given}:
            raise InputError(
                f"{applied / RECORD}: {setting}={value} is Python code that would be executed; if you trust it, name "
                f"it on the command line: {setting}={value}"
            )
    return replace(record, values={**record.values, "base": None, "applied": None, "subgroups": []})


def read_bundle(order: Order, run: Path, path: Path) -> tuple[Record, tuple[str, ...]]:
    """The initial record of a run that continues with a bundle, and its fixed settings."""
    bundle = Bundle.open(path, only=[SETTINGS])
    record = bundle.with_files_in(run / OF_BUNDLE).of_explanation(order.explanation)
    return record, tuple(name for name in bundle.fixed if group_of(name) not in OF_COHORT)


def require_trained_with(settings: Config, run: Path, before: Record | None, now: Record) -> None:
    """Raise `InputError` for settings that differ from those with which the applied network was trained, or for another
    cohort than the one already in the folder, whose record is ``before``."""
    assert settings.applied is not None
    applied = Path(settings.applied)
    if applied.is_file():
        Bundle.open(applied, [SETTINGS]).require_same(now, "apply", run / OF_BUNDLE)
    elif (trained := read_record(applied)) is not None and trained.choices:
        require_same(applied, trained, now, "apply")
    if before is not None:
        old, new = before.settings(), now.settings()
        for setting in ("data.kind", "data.root", "data.collection", "data.seed", "data.n_subjects"):
            if old.get(setting) != new.get(setting):
                raise InputError(
                    f"to={run}: holds the cohort of {setting}={say(old.get(setting))}, not of "
                    f"{say(new.get(setting))}; choose another to=DIR."
                )


@contextmanager
def unpacking(settings: Config, folder: Path) -> Iterator[None]:
    """Unpack template and atlas of an applied bundle, if any, into the run folder; remove them again if no stage has
    been run with them."""
    unpacked = folder / OF_BUNDLE
    if settings.applied is None or not Path(settings.applied).is_file() or unpacked.exists():
        yield
        return
    try:
        Bundle.open(settings.applied, [name for name in MOST if name != WEIGHTS]).write_files(unpacked)
        yield
    finally:
        if unpacked.is_dir() and not (folder / "manifest.json").is_file():
            shutil.rmtree(unpacked)
