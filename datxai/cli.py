"""The command ``datxai``: a Hydra application whose first word may be a stage or a command.

`main` parses an order, plans it (`plan`), and hands over to Hydra, which calls back for each job (`job`). Nothing heavy
is imported before that, so that ``datxai --help`` answers at once.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from datxai.errors import InputError, escape
from datxai.job import carry_out
from datxai.order import HELP, VERSION, Order, read_order
from datxai.plan import Plan, prepare

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("datxai")

PATH_FAULTS = {  # errors caused by a path, and what to do about them
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room or choose another place"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "change its permissions or choose another place"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG),
        "move what is there or choose another place",
    ),
    errno.EIO: "the disk may be damaged",
}


def main() -> None:
    """Entry point. Exit status: 0 done, 2 unusable input, 1 internal error, 130 interrupted."""
    interrupts = _handle_interrupts()
    try:
        order = read_order(sys.argv[1:])
        if order.task == HELP:
            from datxai.help import help_text

            print(help_text(order.topic))
        elif order.task == VERSION:
            from datxai import __version__
            from datxai.run import git_revision

            revision = git_revision()
            print(f"{__version__} (git {revision})" if revision else __version__)
        else:
            _launch(order)
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if _errno_of(error) not in PATH_FAULTS:
            raise
        _fail(_say(error))
    except BaseException as error:  # an interrupt may surface as another error, above all during an import
        if not (interrupts or isinstance(error, KeyboardInterrupt)):
            raise
        _say_interrupted()
        sys.exit(130)


def _handle_interrupts() -> list[int]:
    """The interrupts so far, as a list that grows: the first one ends the command cleanly, the next one at once."""
    interrupts: list[int] = []

    def handle(number: int, _: object) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            _say_interrupted()
            os._exit(130)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, handle)
    return interrupts


def _say_interrupted() -> None:
    print("datxai: interrupted; the same command goes on from here.", file=sys.stderr, flush=True)


def _launch(order: Order) -> None:
    """Hand over to Hydra; its errors become one sentence."""
    import hydra

    from datxai.compose import describe, refusing

    verbose = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised, not printed
    with nullcontext() if verbose else refusing():
        plan = prepare(order)
        if plan.record is not None and order.sweeps:  # logged once, not by each job
            print(f"Settings taken over from {plan.rests_on}: {describe(plan.record)}", flush=True)
        sys.argv[1:] = [*plan.order.flags, *plan.words]
        hydra.main(version_base="1.3", config_path="pkg://datxai.conf", config_name=plan.config)(_make_job(plan))()


def _make_job(plan: Plan):
    """The function that Hydra calls with a composed configuration: once for a run, once per job for a sweep."""

    def job(cfg: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.errors import CompactHydraException
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        sweeps, folder = hydra.mode == RunMode.MULTIRUN, Path(hydra.runtime.output_dir)
        try:
            return carry_out(plan, cfg, folder, hydra.runtime.choices, sweeps)
        except (InputError, OSError) as error:
            if isinstance(error, OSError) and _errno_of(error) not in PATH_FAULTS:
                raise
            if not sweeps:
                _fail(_say(error))
            # launchers handle exceptions; if a worker exits, they see a crash and may retry
            log.error("datxai: %s", _say(error))
            raise CompactHydraException(f"datxai: {folder}: {_say(error)}") from error

    return job


def _say(error: Exception) -> str:
    """An error as a sentence for the user."""
    if isinstance(error, OSError):
        number = _errno_of(error) or 0
        return f"{error.filename or 'the run folder'}: {os.strerror(number)}; {PATH_FAULTS[number]}."
    return str(error)


def _errno_of(error: BaseException | None) -> int | None:
    """The errno of an error or of its first cause that has one: Pillow's own errors have none."""
    while error is not None and getattr(error, "errno", None) is None:
        error = error.__cause__ or error.__context__
    return None if error is None else error.errno  # pyright: ignore[reportAttributeAccessIssue]


def _fail(sentence: str) -> None:
    print(f"datxai: {escape(sentence.removeprefix('datxai: '))}", file=sys.stderr)
    sys.exit(2)
