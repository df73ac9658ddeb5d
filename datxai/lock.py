"""Locks of run folders: one command that writes, or any number that read.

The lock is the operating system's (flock, on the file ``.lock`` of the folder). It ends with the process that holds it,
however that ends, so it is never stale. On a file system without locks, or in a read-only folder, there is none.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from datxai.errors import InputError
from datxai.files import remove_unfinished

fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None  # on POSIX only
NAME = ".lock"
PATIENCE_S = 5.0  # for commands that end in a moment
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def holding(folder: Path, command: str | None = None, patience: float = PATIENCE_S) -> Iterator[None]:
    """Lock a run folder: exclusively for a ``command`` that writes, or shared, without a ``command``, for reading.

    Raises `InputError`, which names the holder, if the folder is not free within ``patience`` seconds.
    """
    path, deadline = folder / NAME, time.monotonic() + patience
    descriptor = _acquire(path, command is not None)
    while descriptor == BUSY:
        if time.monotonic() >= deadline:
            raise InputError(f"{folder}: {_describe_holder(path)}; give the command again when it has ended.")
        time.sleep(0.1)
        descriptor = _acquire(path, command is not None)
    if descriptor is None:
        yield
        return
    try:
        with suppress(OSError):  # a reader may have opened it read-only
            os.ftruncate(descriptor, 0)
            if command is not None:
                os.write(descriptor, json.dumps(_describe(command)).encode())
        if command is not None:
            remove_unfinished(folder)
        yield
    finally:
        _release(path, descriptor)


BUSY = -1


def _acquire(path: Path, writes: bool) -> int | None:
    """The descriptor that holds the lock, `BUSY`, or None where locks are not available."""
    if fcntl is None:
        return None
    while True:
        descriptor = _open(path, writes)
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if writes else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return BUSY
        except OSError:
            os.close(descriptor)
            return None
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # the last holder has removed this file


def _open(path: Path, writes: bool) -> int | None:
    if path.is_symlink():
        raise InputError(f"{path}: is a link, expected a file of the run's own; remove it.")
    if writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with suppress(OSError):
            return os.open(path, flags | NO_LINK, 0o666)
    return None


def _release(path: Path, descriptor: int) -> None:
    """Release the lock; the last holder removes the file, and leftovers of killed processes."""
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                remove_unfinished(path.parent)
                path.unlink()
    finally:
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _describe(command: str) -> dict:
    return {
        "command": command,
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _describe_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return (
            f"`{holder['command']}` is writing there (process {holder['process']} on {holder['host']}, since "
            f"{holder['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):  # readers leave no name
        return "another command is reading there"
