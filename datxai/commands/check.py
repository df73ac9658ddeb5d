"""Verification of a run: reads every file and compares it with its recorded checksum."""

from __future__ import annotations

import logging

from datxai.config import DEFAULT, Config
from datxai.errors import InputError
from datxai.run import Run

log = logging.getLogger("datxai")


def run(settings: Config, folder: Run) -> None:
    """Print a line for each damaged or missing file, with the command that makes it again.

    Raises `InputError` if there are any.
    """
    entries, n_files, n_damaged = folder.entries(), 0, 0
    for name, entry in entries.items():
        stage, _, explanation = name.partition("/")
        checked = Run(folder.folder, explanation or DEFAULT, full=True)
        damage = checked.find_damage(stage)
        for path, fault in damage.items():
            log.info("%s: %s; `%s` makes it again", path, fault, checked.command(stage))
        if "files" not in entry:
            log.info("%s: '%s' was made by a version that kept no checksums", folder.folder, name)
        n_files += len(entry.get("files", ()))
        n_damaged += len(damage)
    if n_damaged:
        raise InputError(
            f"{folder.folder}: damaged or missing: {n_damaged} of {n_files} files; the commands named above make them "
            f"again, and `datxai run={folder.folder}` what depends on them."
        )
    log.info("%s: %d files of %d stages, all as they were written", folder.folder, n_files, len(entries))
