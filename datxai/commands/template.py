"""A registration template made from the normal scans of a run."""

from __future__ import annotations

import logging

from datxai.anatomy import Anatomy
from datxai.config import Config
from datxai.data_source import find_scans
from datxai.errors import InputError
from datxai.findings import Findings
from datxai.imaging.registration import register
from datxai.imaging.template import average_scans
from datxai.run import Run
from datxai.scan import Scan
from datxai.volume import UPTAKE, Volume, save

log = logging.getLogger("datxai")

MIN_SCANS = 5  # a mean of fewer shows individual noise and anatomy
ROUNDS = 2  # first the mean of the scans as registered by the run, then with each scan registered to that mean


def run(settings: Config, folder: Run) -> None:
    """Write RUN/template.nii.gz, the mean of the normal scans (label 0) with a green verdict of quality control.

    Use it with registration.template=RUN/template.nii.gz.
    """
    folder.entry("preprocess", "template")
    findings = Findings(folder)
    normal = {name for name, person in findings.people.items() if person["label"] == 0}
    cases = [name for name, row in findings.quality.items() if row["verdict"] == "green" and name in normal]
    if len(cases) < MIN_SCANS:
        raise InputError(
            f"{folder.folder}: {len(cases)} normal scans passed quality control, expected at least {MIN_SCANS} for a "
            f"template; preprocess more."
        )
    if settings.registration.kind == "none":
        raise InputError("registration=none: scans that are in MNI space already need no template; choose affine.")
    files = {scan.case_id: scan for scan in find_scans(settings, folder)[0]}
    anatomy = Anatomy.of(settings)

    def read(case: str) -> Volume:
        return Scan(files[case].files, files[case].format).read(settings.reconstruction)

    transforms = {case: findings.measures_of(case)["transform"] for case in cases}
    template = average_scans(((read(case), transforms[case]) for case in cases), anatomy.atlas)
    for number in range(2, ROUNDS + 1):
        log.info("  round %d of %d", number, ROUNDS)
        bases = anatomy.make_bases(template)
        scans = ((scan, register(scan, bases).affine) for scan in map(read, cases))
        template = average_scans(scans, anatomy.atlas)
    save(template, folder.template, {"participants": cases, "rounds": ROUNDS}, shows=UPTAKE)
    log.info("Template of %d normal scans: %s", len(cases), folder.template)
