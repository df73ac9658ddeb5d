"""One new scan through a trained run: registration, classification, relevance map, report."""

from __future__ import annotations

import logging

from datxai.config import Config
from datxai.errors import InputError
from datxai.reader import Reader
from datxai.run import Run

log = logging.getLogger("datxai")


def run(settings: Config, trained: Run) -> None:
    """Read one new scan (``settings.scan``) by a trained run.

    RUN/cases/NAME holds what `Reader.write` writes; left and right are the patient's own. Nothing is written if the
    scan cannot be used (`InputError`).
    """
    trained.entry("evaluate", "case")
    if settings.scan is None:
        raise InputError("scan has no value; give the file or folder of the scan as scan=PATH.")
    reader = Reader.of(settings, trained)
    reading = reader.read(settings.scan, settings.age)
    place = reader.write(reading, trained.folder / "cases" / reading.name)
    result = reading.result
    p = result["p_reduced"] if result["probability"] is None else result["probability"]
    for doubt in result["warnings"]:
        log.warning("%s", doubt)
    log.info(
        "%s: %s (p = %.3f), SBR of the lower putamen %.2f\nReport: %s\nSeconds: %s",
        result["scan"],
        ("normal", "reduced")[result["predicted"]],
        p,
        min(result["putamen_left"], result["putamen_right"]),
        place / "report.html",
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in {**reader.timings, **result["timings"]}.items()),
    )
