"""Registers each scan to MNI space, scales, measures, mirrors and resamples it to the network's grid."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from datxai.anatomy import Anatomy, grid_of
from datxai.case import HALVES, SBR, Imaging, describe_imaging
from datxai.cohort.dataset import open_store, write_store_of
from datxai.cohort.sources import CohortScan
from datxai.cohort.table import MISSING, refuse, require_column
from datxai.config import Config
from datxai.data_source import find_scans
from datxai.errors import InputError
from datxai.files import hash_content, hash_once, read_json, write_table
from datxai.progress import on_one_thread, parallel
from datxai.run import Run
from datxai.scan import Scan
from datxai.volume import UPTAKE, load, save, sidecar_path

log = logging.getLogger("datxai")


def depends(settings: Config) -> dict:
    return {"data": asdict(settings.data), **_depends_of_scan(settings)}


def _depends_of_scan(settings: Config) -> dict:
    """The settings that the volume of one scan depends on, whatever the rest of the cohort."""
    return {"reconstruction": asdict(settings.reconstruction), **describe_imaging(settings)}


def inputs(settings: Config, run: Run) -> dict[str, str]:
    """A hash of all scans and of their rows in the table of participants."""
    scans, skipped = find_scans(settings, run)
    content, first_with = [], {}
    for scan in scans:
        try:
            hashes = [hash_once(file) for file in scan.files]
        except InputError as error:
            refuse(scan.case_id, str(error), skipped if settings.on_error == "skip" else None)
            continue
        content.append([scan.case_id, describe(scan), hashes])
        if (other := first_with.setdefault(tuple(sorted(hashes)), scan)) is not scan:
            raise InputError(
                f"{other.files[0]} and {scan.files[0]}: are the same scan, byte by byte, for {other.case_id} and "
                f"{scan.case_id}, expected scans of their own; keep one."
            )
    return {"scans": hash_content([content, skipped])}


def outputs(run: Run) -> list[Path]:
    return [run.participants, run.sbr, run.skipped, run.preprocessed, run.store, run.qc, run.sheets]


def make(settings: Config, run: Run) -> None:
    scans, skipped = find_scans(settings, run)
    for column in settings.subgroups:  # the evaluation needs them: fail before hours of work
        require_column(map(describe, scans), column, "the participants", f"subgroups=[{column}]")
    measures: dict[str, dict] = {}
    Anatomy.of(settings, cache=run.anatomy).keep()  # once, not in each process and each later stage
    write_store_of(run.store, _collect(scans, settings, run, measures, skipped), grid_of(settings))
    used = [scan for scan in scans if scan.case_id in measures]
    run.keep_only(run.preprocessed, [run.scan_of(case) for case in measures])
    people = [describe(scan) for scan in used]
    columns = ["participant_id", "subject", "age", "sex", "label", *(key for row in people for key in row)]
    write_table(run.participants, people, list(dict.fromkeys(columns)))
    rows = [{"participant_id": case, **measured} for case, measured in measures.items()]
    write_table(run.sbr, rows, ["participant_id", *SBR, *HALVES, "mirrored", "reference_value", "similarity"])
    rows = [{"participant_id": case, "reason": reason} for case, reason in skipped]
    write_table(run.skipped, rows, ["participant_id", "reason"])
    quality = [{"participant_id": case, **measured["quality"]} for case, measured in measures.items()]
    rejected = [{"participant_id": case, "verdict": "red", "reason": reason} for case, reason in skipped]
    write_table(run.qc, quality + rejected, list(quality[0]))
    _draw_sheets(settings, run, quality)
    doubtful = sum(row["verdict"] != "green" for row in quality)
    if doubtful:
        log.warning("  quality control is not sure of %d scans; the reasons are in %s", doubtful, run.qc)
    if skipped:
        log.warning("  %d scans used, %d left out; the reasons are in %s", len(used), len(skipped), run.skipped)


def _collect(
    scans: list[CohortScan], settings: Config, run: Run, measures: dict[str, dict], skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and volume of each scan; fills ``measures``, and ``skipped`` with the reasons why scans, or files
    beside them, were left out."""
    for scan, outcome in zip(scans, _preprocess_all(scans, settings, run)):
        if isinstance(outcome, str):
            skipped.append((scan.case_id, outcome))
        else:
            measures[scan.case_id], volume, passed_over = outcome
            skipped += ((f"{scan.case_id}/{name}", reason) for name, reason in passed_over)
            yield scan.case_id, volume
    if not measures:
        raise InputError(f"None of {len(scans)} scans could be used; the first because: {skipped[0][1]}")


def make_part(settings: Config, run: Run, part: slice) -> None:
    """Preprocess some of the scans, so that `make` can skip them."""
    scans, _ = find_scans(settings, run)
    Anatomy.of(settings, cache=run.anatomy).keep()
    for _ in _preprocess_all(scans[part], settings, run):
        pass


def _preprocess_all(
    scans: list[CohortScan], settings: Config, run: Run
) -> Iterator[tuple[dict, np.ndarray, list] | str]:
    """Yield the result of `_preprocess` for each scan."""
    imaging_hash = hash_content(_depends_of_scan(settings))
    tasks = (
        (scan, _find_hashes(scan), run.scan_of(scan.case_id), settings, imaging_hash, run.anatomy) for scan in scans
    )
    return parallel(_preprocess, tasks, len(scans), settings.n_jobs, "scans preprocessed")


def _draw_sheets(settings: Config, run: Run, quality: list[dict]) -> None:
    """Draw contact sheets of all scans: first those that are not green, then the rest, least similar first."""
    from datxai.pages.contact import PER_SHEET, plot_contact_sheet
    from datxai.pages.style import save_figure

    store = open_store(run.store)
    frame = Anatomy.of(settings, cache=run.anatomy).frame
    rows = sorted(quality, key=lambda row: (row["verdict"] == "green", row["similarity"]))
    shutil.rmtree(run.sheets, ignore_errors=True)
    for start in range(0, len(rows), PER_SHEET):
        scans = [
            {"name": row["participant_id"], "verdict": row["verdict"], "image": store.volume(row["participant_id"])}
            for row in rows[start : start + PER_SHEET]
        ]
        title = f"Scans {start + 1} to {start + len(scans)} of {len(rows)}, from the least like the template"
        save_figure(plot_contact_sheet(frame, scans, title), run.sheet(start // PER_SHEET + 1))


def describe(scan: CohortScan) -> dict:
    """The scan's row of participants.tsv; ``subject`` is the value of a column of that name, else the participant."""
    person = scan.participant
    subject = person.extra.get("subject", "")
    return {
        **person.extra,
        "participant_id": scan.case_id,
        "subject": person.participant_id if subject.lower() in MISSING else subject,
        "age": person.age,
        "sex": person.sex,
        "label": person.label,
    }


def _find_hashes(scan: CohortScan) -> list[str] | None:
    """Hashes of a scan's files, cached since `inputs`; None if a file cannot be read."""
    with suppress(InputError):
        return [hash_once(file) for file in scan.files]
    return None


@on_one_thread
def _preprocess(
    scan: CohortScan, hashes: list[str] | None, path: Path, settings: Config, imaging_hash: str, anatomy: Path | None
) -> tuple[dict, np.ndarray, list] | str:
    """Preprocess a scan, or load the saved result.

    Returns its measures, its volume (X, Y, Z), and the name of each file that was passed over with the reason; or the
    reason why the scan is skipped. ``hashes`` are those of its files, ``imaging_hash`` is that of `_depends_of_scan`,
    ``anatomy`` is the file with the anatomy.
    """
    try:
        hashes = hashes or [hash_once(file) for file in scan.files]
        fingerprint = hash_content([imaging_hash, scan.format, hashes])
        if Run.made_with(path, fingerprint):
            sidecar = read_json(sidecar_path(path))
            if sidecar["measures"].keys() >= set(HALVES):  # earlier versions did not measure these
                return sidecar["measures"], load(path).data, sidecar.get("passed_over", [])  # nor list these
        imaging = _prepare_imaging(imaging_hash, settings, anatomy)
        opened = Scan(scan.files, scan.format)
        volume, measures = imaging.process(opened.read(settings.reconstruction), scan.case_id)
    except InputError as error:
        if settings.on_error == "skip":
            return str(error)
        raise InputError(f"{error} (on_error=skip leaves out what cannot be used.)") from error
    passed_over = [(file.name, f"{file}: {reason}, passed over") for file, reason in opened.others]
    record = {"fingerprint": fingerprint, "measures": measures, "passed_over": passed_over}
    save(volume, path, record, shows=UPTAKE)
    return measures, volume.data, passed_over


_of_this_process: dict[str, Imaging] = {}


def _prepare_imaging(imaging_hash: str, settings: Config, anatomy: Path | None) -> Imaging:
    """The `Imaging` for these settings, made once per process."""
    if imaging_hash not in _of_this_process:
        _of_this_process.clear()
        _of_this_process[imaging_hash] = Imaging.of(settings, Anatomy.of(settings, cache=anatomy))
    return _of_this_process[imaging_hash]
