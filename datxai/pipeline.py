"""The pipeline: the order of the stages, and whether a stage has to run at all."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import cast

from datxai.config import ALL, COMMANDS, STAGES, Config, entry_name, require_name, require_sensible
from datxai.errors import InputError
from datxai.files import read_json, read_table
from datxai.run import Run
from datxai.stages import FromOutside, Sharded, Stage

log = logging.getLogger("datxai")

SHARDED = ("preprocess", "explain")  # stages with ``make_part``, which writes the files of some cases and no table


def run(settings: Config) -> None:
    """Run one stage, all stages, or a command, depending on ``settings.stage``, in the run folder ``settings.run``.

    Raises `InputError` for everything that the user has to correct.
    """
    require_sensible(settings)
    require_name(settings.explanation)
    folder = Run(settings.run, settings.explanation, settings.check == "full")
    if settings.shard is not None and settings.stage not in SHARDED:
        raise InputError(f"shard={settings.shard}: only the stages {' and '.join(SHARDED)} are made in shards.")
    if settings.dry_run:
        if settings.stage != "explain":
            raise InputError(f"dry_run with stage={settings.stage}: only `datxai explain` can show what it would do.")
        importlib.import_module("datxai.stages.explain").show(settings)
    elif settings.stage in COMMANDS:
        importlib.import_module(f"datxai.commands.{settings.stage}").run(settings, folder)
    elif settings.stage == ALL:
        importlib.import_module("datxai.stages.train").check(settings)
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
    """Run a stage, unless its output was made from the same settings and inputs here or in the base run.

    A stage's input is the stage before it; the first stage's is given by its own ``inputs``, if it has any.
    """
    stage, config, inputs = _find(name, settings, folder)
    fingerprint, base = folder.fingerprint(name, config, inputs), _base(settings, folder)
    folder.making = fingerprint
    title = entry_name(name, settings.explanation)
    for path, fault in (folder.find_damage(name) if folder.find(name) else {}).items():
        log.warning("%s: %s", path, fault)
    if folder.is_current(name, fingerprint):
        log.info("%-11s up to date", title)
    elif base and folder.adopt(name, fingerprint, base):
        log.info("%-11s taken over from %s", title, base.folder)
    elif settings.shard is not None:
        log.info("%s, shard %s", title, settings.shard)
        folder.release(name, stage.outputs(folder))
        assert isinstance(stage, Sharded), name  # like all in SHARDED
        stage.make_part(settings, folder, _select_shard(settings))
    elif int(os.environ.get("RANK", 0)) > 0:  # the first process of torchrun keeps the record
        stage.make(settings, folder)
    else:
        log.info(title)
        with folder.recording(name, config, inputs, stage.outputs(folder)):
            stage.make(settings, folder)


def _find(name: str, settings: Config, folder: Run) -> tuple[Stage, dict, dict]:
    """The module of a stage, the settings on which its output depends, and the fingerprints of its inputs."""
    stage = cast(Stage, importlib.import_module(f"datxai.stages.{name}"))
    journey = _journey(settings)
    previous = journey[journey.index(name) - 1] if name != journey[0] else None
    inputs = {previous: folder.identity(previous, name)} if previous else {}
    if previous is None and isinstance(stage, FromOutside):
        inputs = stage.inputs(settings, folder)
    return stage, stage.depends(settings), inputs


def _take_over(settings: Config, folder: Run) -> None:
    """Adopt missing stages before the requested one from the base run, if there is one."""
    journey = _journey(settings)
    base = _base(settings, folder)
    if base is None:
        return
    for name in journey[: journey.index(settings.stage)]:
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
    """The run from which stages are adopted, if it is not the run itself."""
    if settings.base is None or Path(settings.base).resolve() == folder.folder.resolve():
        return None
    base = Run(settings.base, settings.explanation, folder.full)
    if not base.manifest.is_file():
        raise InputError(f"base={settings.base}: no run folder of datxai there (no manifest.json).")
    return base


def _select_shard(settings: Config) -> slice:
    """The slice of a stage's cases that belong to the shard K/N: every N-th, from K on."""
    assert settings.shard is not None
    first, slash, n = settings.shard.partition("/")
    if not (slash and first.isdecimal() and n.isdecimal() and int(first) < int(n)):
        raise InputError(f"shard={settings.shard}: expected K/N with K from 0 to N - 1, such as 0/4.")
    return slice(int(first), None, int(n))


def _journey(settings: Config) -> list[str]:
    """The stages in order, without `simulate` if there are real scans, and without `external` unless a run is
    applied."""
    excluded = {"simulate"} if settings.data.kind != "phantom" else set()
    excluded |= {"external"} if settings.applied is None else set()
    return [name for name in STAGES if name not in excluded]


def _announce(folder: Run) -> None:
    """Log the test results and the path of the report."""
    classifiers = read_json(folder.metrics)["classifiers"]
    if classifiers:
        log.info("\nTest set, estimate and 95 % interval in percent")
    for name, measures in classifiers.items():
        figures = [
            f"{measure} {100 * measures[measure]:.1f} ({100 * measures[f'{measure}_ci95'][0]:.1f} to "
            f"{100 * measures[f'{measure}_ci95'][1]:.1f})"
            for measure in ("accuracy", "sensitivity", "specificity")
            if measures[measure] is not None
        ]
        log.info("  %-14s %s", name, ", ".join(figures))
    log.info("\nReport: %s", folder.report)
    if folder.find("external") is not None:
        log.info("Beside the test of the run that is applied: %s", folder.external)


def find_objective(settings: Config) -> float | None:
    """The number that a sweep optimises, named by ``settings.objective``; None before it is available.

    Raises `InputError` if metrics.json has no number of that name.
    """
    folder = Run(settings.run, settings.explanation)
    if settings.objective == "validation_accuracy":
        rows = read_table(folder.predictions) if folder.predictions.is_file() else []
        correct = [row["predicted"] == row["label"] for row in rows if row["set"] == "validation"]
        return sum(correct) / len(correct) if correct else None
    if not folder.metrics.is_file():
        return None
    value = read_json(folder.metrics)
    for name in settings.objective.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(
            f"objective={settings.objective}: no number in {folder.metrics}, expected validation_accuracy or a name "
            f"such as classifiers.cnn.accuracy; change objective=NAME."
        )
    return float(value)
