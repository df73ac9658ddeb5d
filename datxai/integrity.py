"""Integrity of files: their description in a manifest, and what is wrong with changed ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from datxai.errors import InputError
from datxai.files import hash_content, hash_file, hash_once

FOR_PEOPLE = (".png", ".pdf", ".html", ".js")  # suffixes of files that no later stage reads
TIMES = "history.tsv"  # contains the duration of each epoch


def describe_files(folder: Path, outputs: Iterable[Path]) -> dict[str, str]:
    """SHA-256, size in bytes and modification time (ns) of ``outputs`` and of all files within them.

    Keys are paths relative to ``folder``. Hidden files are left out: unfinished ones, and those of a desktop.
    """
    paths = [path for output in outputs for path in (sorted(output.rglob("*")) if output.is_dir() else [output])]
    relative = {path: path.relative_to(folder) for path in paths if path.is_file()}
    return {
        name.as_posix(): _describe(hash_file(path), path.stat())
        for path, name in relative.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def find_damage(folder: Path, files: Mapping[str, str], full: bool = False) -> tuple[dict[Path, str], dict[str, str]]:
    """What is wrong with files described by `describe_files`, and the present descriptions of intact ones.

    Size and time are compared first. A file of the same size but another time (changed or copied) is read, and its
    SHA-256 decides; with ``full``, every file is read.
    """
    faults, now = {}, {}
    for name, description in files.items():
        path, (sha256, size, changed) = folder / name, description.split()
        try:
            state = os.stat(path)
            if not stat.S_ISREG(state.st_mode):
                faults[path] = "is not a file"
            elif state.st_size != int(size):
                faults[path] = f"has {state.st_size} bytes, expected {size}"
            elif (full or state.st_mtime_ns != int(changed)) and hash_once(path) != sha256:
                faults[path] = "has been changed since it was made (its SHA-256 is another)"
            else:
                now[name] = _describe(sha256, state)
        except (FileNotFoundError, NotADirectoryError):
            faults[path] = "is missing"
        except (OSError, InputError) as error:
            faults[path] = f"cannot be read ({getattr(error, 'strerror', None) or 'is it yours?'})"
    return faults, now


def hash_of_all(files: Mapping[str, str]) -> str:
    """One hash of the files that later stages read, whatever their times."""
    suffixes = (*FOR_PEOPLE, TIMES)
    return hash_content({name: text.split()[0] for name, text in files.items() if not name.endswith(suffixes)})


def _describe(sha256: str, state: os.stat_result) -> str:
    return f"{sha256} {state.st_size} {state.st_mtime_ns}"
