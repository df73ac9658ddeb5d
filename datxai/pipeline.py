"""The journey: which stage follows which, and whether a stage has to run at all."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from types import ModuleType

from datxai.config import ALL, COMMANDS, STAGES, Config, require_sensible
from datxai.errors import InputError
from datxai.files import read_json
from datxai.run import Run

log = logging.getLogger("datxai")

SHARDED = ("preprocess", "explain")  # stages with ``make_part``, which makes files of some cases and no table


def run(settings: Config) -> None:
    """Run one stage, all stages, or a command, as ``settings.stage`` says, in the run folder ``settings.run``.

    Raises `InputError` for everything that the user has to mend.
    """
    require_sensible(settings)
    folder = Run(settings.run)
    if settings.shard is not None and settings.stage not in SHARDED:
        raise InputError(f"shard={settings.shard}: only the stages {' and '.join(SHARDED)} are made in shards.")
    if settings.dry_run:
        if settings.stage != "explain":
            raise InputError(f"dry_run with stage={settings.stage}: only `datxai explain` can show what it would do.")
        importlib.import_module("datxai.stages.explain").show(settings)
    elif settings.stage in COMMANDS:
        importlib.import_module(f"datxai.commands.{settings.stage}").run(settings, folder)
    elif settings.stage == ALL:
        for stage in _journey(settings):
            perform(stage, settings, folder)
        _announce(folder)
    elif settings.stage in _journey(settings):
        _take_over(settings, folder)
        perform(settings.stage, settings, folder)
    else:
        raise InputError(
            f"stage={settings.stage} with data={settings.data.kind}: expected {', '.join(_journey(settings))}."
        )


def perform(name: str, settings: Config, folder: Run) -> None:
    """Make a stage's output, unless it was made from the same settings and inputs here or in the base run.

    A stage is a module of `datxai.stages` with ``depends`` (the settings that shape its output), ``outputs`` (the
    files it leaves) and ``make``. Its input is the stage before it, or what its own ``inputs`` says.
    """
    stage, config, inputs = _find(name, settings, folder)
    fingerprint, base = folder.fingerprint(name, config, inputs), _base(settings, folder)
    if folder.is_current(name, fingerprint):
        log.info("%-11s up to date", name)
    elif base and folder.adopt(name, fingerprint, base):
        log.info("%-11s taken over from %s", name, base.folder)
    elif settings.shard is not None:
        log.info("%s, shard %s", name, settings.shard)
        folder.release(name, stage.outputs(folder))
        stage.make_part(settings, folder, fingerprint, _part(settings))
    elif int(os.environ.get("RANK", 0)) > 0:  # of the processes of torchrun the first keeps the record
        stage.make(settings, folder, fingerprint)
    else:
        log.info(name)
        with folder.recording(name, config, inputs, stage.outputs(folder)) as fingerprint:
            stage.make(settings, folder, fingerprint)


def _find(name: str, settings: Config, folder: Run) -> tuple[ModuleType, dict, dict]:
    """The module of a stage, the settings that shape its output, and the fingerprints of its inputs."""
    stage = importlib.import_module(f"datxai.stages.{name}")
    journey = _journey(settings)
    before = journey[journey.index(name) - 1] if name != journey[0] else None
    inputs = {before: folder.entry(before, name)["fingerprint"]} if before else {}
    if before is None and hasattr(stage, "inputs"):
        inputs = stage.inputs(settings, folder)
    return stage, stage.depends(settings), inputs


def _take_over(settings: Config, folder: Run) -> None:
    """Take the stages before the one asked for from the base run, where there is one and the folder lacks them."""
    journey = _journey(settings)
    base = _base(settings, folder)
    for name in journey[: journey.index(settings.stage)] if base else []:
        if not folder.holds(name):
            _, config, inputs = _find(name, settings, folder)
            if not folder.adopt(name, folder.fingerprint(name, config, inputs), base):
                raise InputError(
                    f"base={base.folder}: '{name}' was made there with other settings than those given now; leave out "
                    f"what differs, or the word '{settings.stage}', so that the run makes all that it needs."
                    if base.holds(name)
                    else f"base={base.folder}: '{name}' has not been made there; run `datxai {name} "
                    f"run={base.folder}` first."
                )


def _base(settings: Config, folder: Run) -> Run | None:
    """The run that stages are taken over from; it is not the run itself."""
    if settings.base is None or Path(settings.base).resolve() == folder.folder.resolve():
        return None
    base = Run(settings.base)
    if not base.manifest.is_file():
        raise InputError(f"base={settings.base}: no run folder of datxai there (no manifest.json).")
    return base


def _part(settings: Config) -> slice:
    """Which of a stage's cases are those of the shard K/N: every N-th, from K on."""
    first, slash, n = settings.shard.partition("/")
    if not (slash and first.isdecimal() and n.isdecimal() and int(first) < int(n)):
        raise InputError(f"shard={settings.shard}: expected K/N with K from 0 to N - 1, such as 0/4.")
    return slice(int(first), None, int(n))


def _journey(settings: Config) -> list[str]:
    """The stages in order; scans that are there already are not simulated."""
    return [name for name in STAGES if name != "simulate" or settings.data.kind == "phantom"]


def _announce(folder: Run) -> None:
    """Say where the report is and how well the test set was classified."""
    log.info("\nTest set, estimate and 95 % interval in percent")
    for name, found in read_json(folder.metrics)["classifiers"].items():
        figures = [
            f"{measure} {100 * found[measure]:.1f} ({100 * found[f'{measure}_ci95'][0]:.1f} to "
            f"{100 * found[f'{measure}_ci95'][1]:.1f})"
            for measure in ("accuracy", "sensitivity", "specificity")
            if found[measure] is not None
        ]
        log.info("  %-14s %s", name, ", ".join(figures))
    log.info("\nReport: %s", folder.report)
