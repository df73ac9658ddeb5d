"""Every scan of the cohort into MNI space, scaled, measured and mirrored, on the grid of the network."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from datxai.case import SBR, Imaging, describe_imaging, grid_of, outline_of, read_scan
from datxai.cohort import sources
from datxai.cohort.dataset import open_store, write_store
from datxai.cohort.table import refuse
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import hash_content, hash_file, read_json, write_table
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.progress import parallel
from datxai.run import Run
from datxai.volume import load, save, sidecar_path

log = logging.getLogger("datxai")


def depends(settings: Config) -> dict:
    return {"data": asdict(settings.data), **_depends_of_scan(settings)}


def _depends_of_scan(settings: Config) -> dict:
    """The settings that shape a volume, its files given: not who else is in the cohort, nor what a table says."""
    return {"reconstruction": asdict(settings.reconstruction), **describe_imaging(settings)}


def inputs(settings: Config, run: Run) -> dict:
    """Hashes of the scans and of what the table says of them, where the cohort comes from outside."""
    scans, skipped = find_scans(settings, run)
    content, cases = [], {}
    for scan in scans:
        try:
            hashes = [hash_file(file) for file in scan.files]
        except InputError as error:
            refuse(scan.case_id, str(error), skipped if settings.on_error == "skip" else None)
            continue
        content.append([scan.case_id, describe(scan), hashes])
        if (other := cases.setdefault(tuple(sorted(hashes)), scan)) is not scan:
            raise InputError(
                f"{other.files[0]} and {scan.files[0]}: are the same scan, byte by byte, for {other.case_id} and "
                f"{scan.case_id}, expected scans of their own; keep one."
            )
    return {"scans": hash_content([content, skipped])}


def outputs(run: Run) -> list[Path]:
    return [run.participants, run.sbr, run.skipped, run.preprocessed, run.store, run.qc, run.sheets]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    scans, skipped = find_scans(settings, run)
    measures = {}
    for scan, outcome in zip(scans, _preprocess_all(scans, settings, run)):
        if isinstance(outcome, str):
            skipped.append((scan.case_id, outcome))
        else:
            measures[scan.case_id] = outcome
    used = [scan for scan in scans if scan.case_id in measures]
    if not used:
        raise InputError(f"None of {len(scans)} scans could be used; the first because: {skipped[0][1]}")
    cases = [scan.case_id for scan in used]
    run.keep_only(run.preprocessed, [run.scan_of(case) for case in cases])
    write_store(run.store, cases, (load(run.scan_of(case)).data for case in cases), grid_of(settings))
    people = [describe(scan) for scan in used]
    columns = ["participant_id", "subject", "age", "sex", "label", *(key for row in people for key in row)]
    write_table(run.participants, people, list(dict.fromkeys(columns)))
    rows = [{"participant_id": case, **measures[case]} for case in cases]
    write_table(run.sbr, rows, ["participant_id", *SBR, "mirrored", "reference_value", "similarity"])
    rows = [{"participant_id": case, "reason": reason} for case, reason in skipped]
    write_table(run.skipped, rows, ["participant_id", "reason"])
    quality = [{"participant_id": case, **measures[case]["quality"]} for case in cases]
    rejected = [{"participant_id": case, "verdict": "red", "reason": reason} for case, reason in skipped]
    write_table(run.qc, quality + rejected, list(quality[0]))
    _draw_sheets(settings, run, quality)
    doubtful = sum(row["verdict"] != "green" for row in quality)
    if doubtful:
        log.warning("  quality control is not sure of %d scans; the reasons are in %s", doubtful, run.qc)
    if skipped:
        log.warning("  %d scans used, %d left out; the reasons are in %s", len(used), len(skipped), run.skipped)


def make_part(settings: Config, run: Run, fingerprint: str, part: slice) -> None:
    """Preprocess some of the scans; `make` finds them done."""
    scans, _ = find_scans(settings, run)
    for _ in _preprocess_all(scans[part], settings, run):
        pass


def _preprocess_all(scans: list[sources.Scan], settings: Config, run: Run) -> Iterator[dict | str]:
    """What `_preprocess` says of each scan."""
    how = hash_content(_depends_of_scan(settings))
    tasks = ((scan, run.scan_of(scan.case_id), settings, how) for scan in scans)
    return parallel(_preprocess, tasks, len(scans), settings.n_jobs, "scans preprocessed")


def _draw_sheets(settings: Config, run: Run, quality: list[dict]) -> None:
    """Contact sheets of all scans: those that quality control is not sure of, then the rest, least similar first."""
    from datxai.analysis.contact import PER_SHEET, plot_contact_sheet
    from datxai.analysis.slices import Frame
    from datxai.analysis.style import save_figure

    store = open_store(run.store)
    regions = make_regions(store.grid, load_atlas(settings.atlas.labels, settings.atlas.names))
    frame = Frame(store.grid, outline_of(regions), regions["brain"])
    rows = sorted(quality, key=lambda row: (row["verdict"] == "green", row["similarity"]))
    shutil.rmtree(run.sheets, ignore_errors=True)
    for first in range(0, len(rows), PER_SHEET):
        scans = [
            {"name": row["participant_id"], "verdict": row["verdict"], "image": store.volume(row["participant_id"])}
            for row in rows[first : first + PER_SHEET]
        ]
        title = f"Scans {first + 1} to {first + len(scans)} of {len(rows)}, from the least like the template"
        save_figure(plot_contact_sheet(frame, scans, title), run.sheet(first // PER_SHEET + 1))


def find_scans(settings: Config, run: Run) -> tuple[list[sources.Scan], list[tuple[str, str]]]:
    """The cohort's scans, and those left out with the reason."""
    data, skip = settings.data, settings.on_error == "skip"
    if settings.on_error not in ("raise", "skip"):
        raise InputError(f"on_error={settings.on_error}: expected raise or skip.")
    if data.kind == "phantom":
        return (sources.find_dicom if data.raw else sources.find_folder)(run.simulated, skip=skip)
    if data.kind == "folder":
        return sources.find_folder(
            data.root,
            data.participants,
            data.columns,
            _labels(data.label_values, "data.label_values"),
            data.pattern,
            skip=skip,
        )
    if data.kind == "dicom":
        labels = _labels(data.label_values, "data.label_values")
        return sources.find_dicom(data.root, data.participants, data.columns, labels, skip=skip)
    if data.kind == "ppmi":
        return sources.find_ppmi(
            data.root, data.collection, _labels(data.groups, "data.groups") or sources.PPMI_GROUPS, skip=skip
        )
    raise InputError(f"data.kind={data.kind}: expected phantom, folder, dicom or ppmi.")


def _labels(mapping: object, name: str) -> dict[str, int] | None:
    """A setting that gives labels to texts, checked."""
    if mapping is None:
        return None
    if not isinstance(mapping, dict) or not mapping or any(label not in (0, 1) for label in mapping.values()):
        raise InputError(
            f"{name}={mapping}: expected a mapping to 0 (normal) or 1 (reduced), such as {{HC: 0, PD: 1}}."
        )
    truths = {"True": ("True", "TRUE", "true"), "False": ("False", "FALSE", "false")}  # YAML has one value for each
    return {word: label for text, label in mapping.items() for word in truths.get(str(text), (str(text),))}


def describe(scan: sources.Scan) -> dict:
    """A row of participants.tsv: one per scan; ``subject`` is the person."""
    person = scan.participant
    return {
        **person.extra,
        "participant_id": scan.case_id,
        "subject": person.participant_id,
        "age": person.age,
        "sex": person.sex,
        "label": person.label,
    }


def _preprocess(scan: sources.Scan, path: Path, settings: Config, how: str) -> dict | str:
    """The measures of a scan, found or made; the reason, where it is skipped. ``how``: a hash of `_depends_of_scan`."""
    try:
        mark = hash_content([how, scan.format, [hash_file(file) for file in scan.files]])
        if Run.made_with(path, mark):
            return read_json(sidecar_path(path))["measures"]
        volume, measures = _imaging(how, settings).process(
            read_scan(scan.files, scan.format, settings), scan.case_id
        )
    except InputError as error:
        if settings.on_error == "skip":
            return str(error)
        raise InputError(f"{error} (on_error=skip leaves out what cannot be used.)") from error
    save(volume, path, {"fingerprint": mark, "measures": measures})
    return measures


_of_this_process: dict[str, Imaging] = {}


def _imaging(how: str, settings: Config) -> Imaging:
    """What scans are preprocessed with, made once in each process."""
    if how not in _of_this_process:
        _of_this_process.clear()
        _of_this_process[how] = Imaging.of(settings)
    return _of_this_process[how]
