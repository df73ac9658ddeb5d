"""One new scan through a trained run: registration, classification, relevance map, report."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import count
from pathlib import Path

from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json
from datxai.reader import Reader, Reading
from datxai.run import Run

log = logging.getLogger("datxai")


def run(settings: Config, trained: Run) -> None:
    """Read one new scan (``settings.scan``) by a trained run, or by the bundle of one.

    RUN/cases/NAME holds what `Reader.write` writes, RUN/explanations/EXPLANATION/cases/NAME if the scan is explained by
    another than the default; by a bundle it is cases/NAME, and ``settings.out`` is another place for NAME. Left and
    right are the patient's own. Nothing is written if the scan cannot be used (`InputError`).
    """
    if settings.scan is None:
        raise InputError("scan has no value; give the file or folder of the scan as scan=PATH.")
    reader = Reader.of(settings, trained)
    reading = reader.read(settings.scan, settings.age)
    cases = Path("cases") if trained.folder.is_file() else trained.explained / "cases"
    cases = cases if settings.out is None else Path(settings.out)
    reading = _name_case(reading, cases)
    place = reader.write(reading, cases / reading.name)
    result, written = reading.result, read_json(place / "prediction.json")
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
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in {**reader.timings, **written["timings"]}.items()),
    )


def _name_case(reading: Reading, cases: Path) -> Reading:
    """The reading, renamed if another scan has its name already: on media all scans are called alike (IM0001)."""
    name = reading.name
    for number in count(1):
        name = reading.name if number == 1 else f"{reading.name}_{number}"
        record = cases / name / "prediction.json"
        own = reading.result.get("scan_hash")
        if not (cases / name).exists() or (own and record.is_file() and read_json(record).get("scan_hash") == own):
            break
    if name != reading.name:
        log.warning("cases/%s is another scan of that name; this one is cases/%s", reading.name, name)
    return replace(reading, name=name)
