"""A template for registration from a run's own normal scans."""

from __future__ import annotations

import logging

from datxai.case import read_scan
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json, read_table
from datxai.imaging.atlas import load_atlas, make_template_bases
from datxai.imaging.registration import register
from datxai.imaging.template import average_scans
from datxai.run import Run
from datxai.stages.preprocess import find_scans
from datxai.volume import save, sidecar_path

log = logging.getLogger("datxai")

MIN_SCANS = 5  # fewer show their own noise and anatomy
ROUNDS = 2  # the mean of the scans as they are registered; then once more, each registered to that mean


def run(settings: Config, folder: Run) -> None:
    """Write RUN/template.nii.gz, the mean of the normal scans (label 0) that quality control calls green.

    Use it by registration.template=RUN/template.nii.gz.
    """
    folder.entry("preprocess", "template")
    normal = {row["participant_id"] for row in read_table(folder.participants) if row["label"] == "0"}
    cases = [
        row["participant_id"]
        for row in read_table(folder.qc)
        if row["verdict"] == "green" and row["participant_id"] in normal
    ]
    if len(cases) < MIN_SCANS:
        raise InputError(
            f"{folder.folder}: {len(cases)} normal scans passed quality control, expected at least {MIN_SCANS} for a "
            f"template; preprocess more."
        )
    if settings.registration.kind == "none":
        raise InputError("registration=none: scans that are in MNI space already need no template; choose affine.")
    files = {scan.case_id: scan for scan in find_scans(settings, folder)[0]}
    atlas = load_atlas(settings.atlas.labels, settings.atlas.names)

    def read(case: str):
        return read_scan(files[case].files, files[case].format, settings)

    transforms = {case: read_json(sidecar_path(folder.scan_of(case)))["measures"]["transform"] for case in cases}
    template = average_scans(((read(case), transforms[case]) for case in cases), atlas)
    for number in range(2, ROUNDS + 1):
        log.info("  round %d of %d", number, ROUNDS)
        bases = make_template_bases(atlas, template)
        scans = ((scan, register(scan, bases).affine) for scan in map(read, cases))
        template = average_scans(scans, atlas)
    save(template, folder.template, {"participants": cases, "rounds": ROUNDS})
    log.info("Template of %d normal scans: %s", len(cases), folder.template)
