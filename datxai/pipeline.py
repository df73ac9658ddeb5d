"""The journey: which stage follows which, and whether a stage has to run at all."""

from __future__ import annotations

import importlib
import logging

from datxai.config import ALL, CASE, STAGES, Config
from datxai.errors import InputError
from datxai.files import read_json
from datxai.run import Run

log = logging.getLogger("datxai")


def run(settings: Config) -> None:
    """Run one stage, all stages, or one case, as ``settings.stage`` says, in the run folder ``settings.run``.

    Raises `InputError` for everything that the user has to mend.
    """
    folder = Run(settings.run)
    if settings.stage == CASE:
        from datxai.case import report_case

        report_case(settings, folder)
    elif settings.stage == ALL:
        for stage in _journey(settings):
            perform(stage, settings, folder)
        _announce(folder)
    elif settings.stage in _journey(settings):
        perform(settings.stage, settings, folder)
    else:
        raise InputError(
            f"stage={settings.stage} with data={settings.data.kind}: expected {', '.join(_journey(settings))}."
        )


def perform(name: str, settings: Config, folder: Run) -> None:
    """Make a stage's output, unless it is there and was made from the same settings and inputs.

    A stage is a module of `datxai.stages` with ``depends`` (the settings that shape its output), ``outputs`` (the
    files it leaves) and ``make``. Its input is the stage before it, or what its own ``inputs`` says.
    """
    stage = importlib.import_module(f"datxai.stages.{name}")
    journey = _journey(settings)
    before = journey[journey.index(name) - 1] if name != journey[0] else None
    inputs = {before: folder.entry(before, name)["fingerprint"]} if before else {}
    if before is None and hasattr(stage, "inputs"):
        inputs = stage.inputs(settings, folder)
    config = stage.depends(settings)
    if folder.is_current(name, folder.fingerprint(name, config, inputs)):
        log.info("%-11s up to date", name)
        return
    log.info(name)
    with folder.recording(name, config, inputs, stage.outputs(folder)) as fingerprint:
        stage.make(settings, folder, fingerprint)


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
