"""Reading of new scans by a trained run: registration, classification, relevance map, report, change since the last."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from itertools import count
from pathlib import Path

from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json
from datxai.reader import Reader
from datxai.reading import Reading, compare
from datxai.run import Run
from datxai.scan import Scan

log = logging.getLogger("datxai")

DAYS_PER_YEAR = 365.25
OTHER_PERSON = "The header of the prior scan names another person; the change is reported all the same."


def run(settings: Config, trained: Run) -> None:
    """Read new scans (``settings.scan``: a file, a folder, or a list of these) with a trained run or its bundle.

    `Reader.write` writes the results of each scan to OUT/NAME. OUT is RUN/cases by default,
    RUN/explanations/EXPLANATION/cases with an explanation other than the default, and ``cases`` with a bundle. Left and
    right are the patient's own. A scan that cannot be used raises `InputError`, and nothing is written for it; with
    ``on_error=skip`` it is listed at the end, unless no scan could be used.
    """
    if not trained.folder.is_file():  # a bundle has one explanation
        for name in (settings.explanation, *settings.explanations):
            Run(trained.folder, name).entry("evaluate", "case")
    skipped: list[tuple[Path, str]] = []
    collect = skipped if settings.on_error == "skip" else None
    scans = _find_scans(settings, collect)
    reader = Reader.of(settings, trained)
    default = Path("cases") if trained.folder.is_file() else trained.explained / "cases"
    cases = Path(settings.out) if settings.out else default
    done = 0
    for person in _gather_people(scans):
        for reading in _read_in_order(reader, settings, person, collect):
            _write(reader, _name_case(reading, cases), cases)
            done += 1
    for path, reason in skipped:
        log.warning("left out: %s", reason if str(path) in reason else f"{path}: {reason}")
    if not done:
        raise InputError(f"None of {len(skipped)} scans could be used; the first because: {skipped[0][1]}")
    if len(scans) > 1:
        log.info("%d scans read, %d left out: %s", done, len(skipped), cases)


def _find_scans(settings: Config, skipped: list[tuple[Path, str]] | None) -> list[Scan]:
    """The scans in ``settings.scan``, each once; those that cannot be opened go to ``skipped`` if it is given."""
    if not settings.scan:
        raise InputError("scan has no value; give the file or folder of the scan as scan=PATH.")
    paths = [settings.scan] if isinstance(settings.scan, str) else [str(path) for path in settings.scan]
    scans: dict[tuple[Path, ...], Scan] = {}
    for path in map(Path, paths):
        try:
            scans |= {scan.files: scan for scan in Scan.find_all(path, skipped)}
        except InputError as error:
            if skipped is None or len(paths) == 1:
                raise
            skipped.append((path, str(error)))
    if len(scans) > 1:
        for name in ("age", "sex", "prior", "prior_years"):
            if getattr(settings, name) is not None:
                raise InputError(
                    f"{name} is of one scan, and there are {len(scans)}; give it with scan=PATH of one, or leave it to "
                    f"the headers."
                )
    if settings.prior is None and settings.prior_years is not None:
        raise InputError("prior_years is how long before the scan an earlier one was; give that as prior=PATH.")
    return list(scans.values())


def _gather_people(scans: Sequence[Scan]) -> Iterator[list[tuple[Scan, str | None, date | None]]]:
    """Yield the scans of each person, with person and date, in order of the dates; in the given order if a date is
    missing. A scan of an unknown person forms a group of its own."""
    people: dict[object, list[tuple[Scan, str | None, date | None]]] = {}
    for scan in scans:
        try:
            person, day = scan.visit
        except InputError:  # reported when the scan is read
            person, day = None, None
        people.setdefault(person or scan.files, []).append((scan, person, day))
    for visits in people.values():
        dated = all(day for _, _, day in visits)
        yield sorted(visits, key=lambda visit: visit[2] or date.min) if dated else visits


def _read_in_order(
    reader: Reader, settings: Config, visits: Sequence[tuple[Scan, str | None, date | None]], skipped: list | None
) -> Iterator[Reading]:
    """Read the scans of a person, and compare each with the one before."""
    previous: tuple[Reading, date | None] | None = None
    for scan, person, day in visits:
        try:
            reading = reader.read(scan, settings.age, settings.sex)
            if settings.prior is not None:
                reading = _compare_with_prior(reader, settings, reading, person, day)
            elif previous is not None and (day is None or day != previous[1]):  # the same day is no follow-up
                reading = compare(reading, previous[0], _count_years(previous[1], day))
        except InputError as error:
            if skipped is None:
                raise
            skipped.append((scan.place, str(error)))
            continue
        previous = (replace(reading, prior=None), day)
        yield reading


def _compare_with_prior(
    reader: Reader, settings: Config, reading: Reading, person: str | None, day: date | None
) -> Reading:
    """The reading compared with that of ``settings.prior``."""
    assert settings.prior is not None
    prior = Scan.find(Path(settings.prior))
    prior_person, prior_day = prior.visit
    years = settings.prior_years or _count_years(prior_day, day)
    if years is not None and years < 0:
        raise InputError(
            f"{settings.prior}: is of a later day than {settings.scan}, expected an earlier scan; swap scan and prior."
        )
    compared = compare(reading, reader.read(prior), years)
    if person and prior_person and person != prior_person:
        compared.result["warnings"] = [*compared.result["warnings"], OTHER_PERSON]
    return compared


def _count_years(first: date | None, second: date | None) -> float | None:
    """Years from one day to another, rounded to a hundredth; None if one is unknown or both are the same."""
    if first is None or second is None or first == second:
        return None
    return round((second - first).days / DAYS_PER_YEAR, 2)


def _write(reader: Reader, reading: Reading, cases: Path) -> None:
    folder = reader.write(reading, cases / reading.name)
    result, written = reading.result, read_json(folder / "prediction.json")
    p = result["p_reduced"] if result["probability"] is None else result["probability"]
    for doubt in result["warnings"]:
        log.warning("%s", doubt)
    log.info(
        "%s: %s (p = %.3f), SBR of the lower putamen %.2f%s\nReport: %s\nSeconds: %s",
        result["scan"],
        ("normal", "reduced")[result["predicted"]],
        p,
        min(result["putamen_left"], result["putamen_right"]),
        _describe_change(result.get("prior")),
        folder / "report.html",
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in {**reader.timings, **written["timings"]}.items()),
    )


def _describe_change(prior: Mapping | None) -> str:
    """The regions that changed beyond test-retest limits, as text; empty without a prior scan."""
    if prior is None:
        return ""
    beyond = [name for name, change in prior["change"].items() if change["exceeds"]]
    regions = ", ".join(name.replace("_", " ") for name in beyond)
    return f", changed since {prior['scan']} beyond test-retest limits: {regions or 'nothing'}"


def _name_case(reading: Reading, cases: Path) -> Reading:
    """The reading, renamed if another scan has its name already, since media use the same names (IM0001)."""
    name = reading.name
    for number in count(1):
        name = reading.name if number == 1 else f"{reading.name}_{number}"
        record = cases / name / "prediction.json"
        scan_hash = reading.result.get("scan_hash")
        is_same = scan_hash and record.is_file() and read_json(record).get("scan_hash") == scan_hash
        if is_same or not (cases / name).exists():
            break
    if name != reading.name:
        log.warning("%s/%s is another scan of that name; this one is %s/%s", cases.name, reading.name, cases.name, name)
    return replace(reading, name=name)
