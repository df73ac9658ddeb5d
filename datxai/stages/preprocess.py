"""Every scan of the cohort into MNI space, scaled, measured and mirrored, on the grid of the network."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from datxai.case import SBR, Imaging, grid_of, read_scan
from datxai.cohort import sources
from datxai.cohort.dataset import write_store
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import hash_content, hash_file, read_json, write_table
from datxai.progress import parallel
from datxai.run import Run
from datxai.volume import load, save, sidecar_path

log = logging.getLogger("datxai")


def depends(settings: Config) -> dict:
    names = ("data", "grid", "reconstruction", "registration", "atlas", "preprocessing")
    return {name: asdict(getattr(settings, name)) for name in names}


def inputs(settings: Config, run: Run) -> dict:
    """Hashes of the scans and of what the table says of them, where the cohort comes from outside."""
    scans, skipped = find_scans(settings, run)
    content = [[scan.case_id, describe(scan), [hash_file(file) for file in scan.files]] for scan in scans]
    return {"scans": hash_content([content, skipped])}


def outputs(run: Run) -> list[Path]:
    return [run.participants, run.sbr, run.skipped, run.preprocessed, run.store]


def make(settings: Config, run: Run, fingerprint: str) -> None:
    scans, skipped = find_scans(settings, run)
    tasks = ((scan, run.scan_of(scan.case_id), settings, fingerprint) for scan in scans)
    measures = {}
    outcomes = parallel(_preprocess, tasks, len(scans), settings.n_jobs, "scans preprocessed")
    for scan, outcome in zip(scans, outcomes):
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
    if skipped:
        log.warning("  %d scans used, %d left out; the reasons are in %s", len(used), len(skipped), run.skipped)


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
    if not isinstance(mapping, dict) or not mapping or not set(mapping.values()) <= {0, 1}:
        raise InputError(
            f"{name}={mapping}: expected a mapping to 0 (normal) or 1 (reduced), such as {{HC: 0, PD: 1}}."
        )
    return {str(text): label for text, label in mapping.items()}


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


def _preprocess(scan: sources.Scan, path: Path, settings: Config, fingerprint: str) -> dict | str:
    """The measures of a scan, found or made; the reason, where it is skipped."""
    mark = hash_content([fingerprint, [hash_file(file) for file in scan.files]])
    if Run.made_with(path, mark):
        return read_json(sidecar_path(path))["measures"]
    try:
        volume, measures = _imaging(fingerprint, settings).process(
            read_scan(scan.files, scan.format, settings), scan.case_id
        )
    except InputError as error:
        if settings.on_error == "skip":
            return str(error)
        raise
    save(volume, path, {"fingerprint": mark, "measures": measures})
    return measures


_of_this_process: dict[str, Imaging] = {}


def _imaging(fingerprint: str, settings: Config) -> Imaging:
    """What scans are preprocessed with, made once in each process."""
    if fingerprint not in _of_this_process:
        _of_this_process.clear()
        _of_this_process[fingerprint] = Imaging.of(settings)
    return _of_this_process[fingerprint]
