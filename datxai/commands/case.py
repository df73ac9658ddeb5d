"""New scans through a trained run: registration, classification, relevance map, report, change since the last."""

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

DAYS = 365.25  # of a year
OTHER_PERSON = "The header of the prior scan names another person; the change is told all the same."


def run(settings: Config, trained: Run) -> None:
    """Read new scans (``settings.scan``: a file, a folder, or a list of these) by a trained run, or the bundle of one.

    OUT/NAME holds what `Reader.write` writes of each; OUT is RUN/cases by default, RUN/explanations/EXPLANATION/cases
    if the scans are explained by another than the default, and the folder cases by a bundle. Left and right are the
    patient's own. Of a scan that cannot be used nothing is written (`InputError`); with ``on_error=skip`` it is listed
    at the end, unless there is no other.
    """
    if not trained.folder.is_file():  # a bundle has one explanation
        for name in (settings.explanation, *settings.explanations):
            Run(trained.folder, name).entry("evaluate", "case")
    skipped: list[tuple[Path, str]] = []
    collect = skipped if settings.on_error == "skip" else None
    scans = _find_scans(settings, collect)
    reader = Reader.of(settings, trained)
    within = Path("cases") if trained.folder.is_file() else trained.explained / "cases"
    cases = Path(settings.out) if settings.out else within
    done = 0
    for person in _gather_people(scans):
        for reading in _read_in_order(reader, settings, person, collect):
            _write(reader, _name_case(reading, cases), cases)
            done += 1
    for place, reason in skipped:
        log.warning("left out: %s", reason if str(place) in reason else f"{place}: {reason}")
    if not done:
        raise InputError(f"None of {len(skipped)} scans could be used; the first because: {skipped[0][1]}")
    if len(scans) > 1:
        log.info("%d scans read, %d left out: %s", done, len(skipped), cases)


def _find_scans(settings: Config, skipped: list[tuple[Path, str]] | None) -> list[Scan]:
    """The scans that are asked for, each once; those that cannot be opened go to ``skipped``, where there is such."""
    if not settings.scan:
        raise InputError("scan has no value; give the file or folder of the scan as scan=PATH.")
    places = [settings.scan] if isinstance(settings.scan, str) else [str(place) for place in settings.scan]
    scans: dict[tuple[Path, ...], Scan] = {}
    for place in map(Path, places):
        try:
            scans |= {scan.files: scan for scan in Scan.find_all(place, skipped)}
        except InputError as error:
            if skipped is None or len(places) == 1:
                raise
            skipped.append((place, str(error)))
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
    """The scans of each person, with whom and when they tell, from the first to the last; a scan that does not tell
    whom it is of stands alone. Scans without a date stand in the order given."""
    people: dict[object, list[tuple[Scan, str | None, date | None]]] = {}
    for scan in scans:
        try:
            person, day = scan.visit
        except InputError:  # which its reader will say
            person, day = None, None
        people.setdefault(person or scan.files, []).append((scan, person, day))
    for visits in people.values():
        dated = all(day for _, _, day in visits)
        yield sorted(visits, key=lambda visit: visit[2] or date.min) if dated else visits


def _read_in_order(
    reader: Reader, settings: Config, visits: Sequence[tuple[Scan, str | None, date | None]], skipped: list | None
) -> Iterator[Reading]:
    """The readings of the scans of a person, each beside that of the one before."""
    before: tuple[Reading, date | None] | None = None
    for scan, person, day in visits:
        try:
            reading = reader.read(scan, settings.age, settings.sex)
            if settings.prior is not None:
                reading = _compare_with_given(reader, settings, reading, person, day)
            elif before is not None and (day is None or day != before[1]):  # another series of one day is no follow-up
                reading = compare(reading, before[0], _count_years(before[1], day))
        except InputError as error:
            if skipped is None:
                raise
            skipped.append((scan.place, str(error)))
            continue
        before = (replace(reading, prior=None), day)
        yield reading


def _compare_with_given(
    reader: Reader, settings: Config, reading: Reading, person: str | None, day: date | None
) -> Reading:
    """The reading beside that of ``settings.prior``."""
    assert settings.prior is not None
    earlier = Scan.find(Path(settings.prior))
    other, first = earlier.visit
    years = settings.prior_years or _count_years(first, day)
    if years is not None and years < 0:
        raise InputError(
            f"{settings.prior}: is of a later day than {settings.scan}, expected an earlier scan; exchange scan and "
            f"prior."
        )
    compared = compare(reading, reader.read(earlier), years)
    if person and other and person != other:
        compared.result["warnings"] = [*compared.result["warnings"], OTHER_PERSON]
    return compared


def _count_years(first: date | None, second: date | None) -> float | None:
    """Years from one day to another, to a hundredth; None where one is not known, or both are the same."""
    if first is None or second is None or first == second:
        return None
    return round((second - first).days / DAYS, 2)


def _write(reader: Reader, reading: Reading, cases: Path) -> None:
    place = reader.write(reading, cases / reading.name)
    result, written = reading.result, read_json(place / "prediction.json")
    p = result["p_reduced"] if result["probability"] is None else result["probability"]
    for doubt in result["warnings"]:
        log.warning("%s", doubt)
    log.info(
        "%s: %s (p = %.3f), SBR of the lower putamen %.2f%s\nReport: %s\nSeconds: %s",
        result["scan"],
        ("normal", "reduced")[result["predicted"]],
        p,
        min(result["putamen_left"], result["putamen_right"]),
        _say_change(result.get("prior")),
        place / "report.html",
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in {**reader.timings, **written["timings"]}.items()),
    )


def _say_change(prior: Mapping | None) -> str:
    """What changed most beyond test-retest limits, in words; empty without a prior scan."""
    if prior is None:
        return ""
    beyond = [name for name, change in prior["change"].items() if change["exceeds"]]
    named = ", ".join(name.replace("_", " ") for name in beyond)
    return f", changed since {prior['scan']} beyond test-retest limits: {named or 'nothing'}"


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
        log.warning("%s/%s is another scan of that name; this one is %s/%s", cases.name, reading.name, cases.name, name)
    return replace(reading, name=name)
