"""One job of an order: lock the run folder, keep its record, and run the pipeline."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from datxai.config import COMMANDS, Config
from datxai.errors import InputError
from datxai.order import NEED_NO_RUN
from datxai.plan import MAKE_FOLDERS, Plan

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from datxai.record import Record

log = logging.getLogger("datxai")


def carry_out(
    plan: Plan, cfg: DictConfig, folder: Path, choices: Mapping[str, str | None], sweeps: bool = False
) -> float | None:
    """Carry out an order with its composed configuration and Hydra's group ``choices``.

    Returns the objective of a sweep's job, if there is one. Raises `InputError`.
    """
    from datxai import applying, compose, pipeline
    from datxai.record import Record, recording

    settings = _settings(cfg, plan.order.given)
    folder = folder if plan.bundle is None else plan.bundle.folder
    settings.run = str(folder)
    if sweeps:
        log.info("\n%s", folder)
    now = compose.record_of(cfg, plan.record, choices, plan.fixed)
    if settings.explanation != plan.order.explanation:
        raise InputError(
            f"explanation={settings.explanation}: set by a file, expected on the command line, which says what of the "
            f"run's record is taken over; give it there."
        )
    if settings.base is not None and Path(settings.base).resolve() == folder.resolve():  # a shard of the base itself
        now = replace(now, values={**now.values, "base": None})
    if settings.applied is not None and plan.record is not None and not settings.dry_run:
        before = plan.record if plan.rests_on == plan.run else None
        applying.require_trained_with(settings, plan.run or folder, before, now)
    if plan.record is not None and not sweeps:
        log.info("Settings taken over from %s: %s", plan.rests_on, compose.describe(plan.record))
    if plan.bundle is not None:
        plan.bundle.require_same(now, settings.stage)
    follows = int(os.environ.get("RANK", 0)) > 0  # the first process of torchrun keeps the record
    leaves_record = not (settings.stage in COMMANDS or settings.dry_run or follows)
    with _locking(settings, folder, leaves_record):
        record = plan.record
        if plan.run is not None and not sweeps:
            record = _find_record(plan, now, settings)
        now = (record or Record({})).keep(now, settings.explanation)
        with (
            recording(folder, now) if leaves_record else nullcontext(),
            applying.unpacking(settings, folder) if leaves_record and settings.applied else nullcontext(),
        ):
            pipeline.run(settings)
    return pipeline.find_objective(settings) if sweeps else None


@contextmanager
def _locking(settings: Config, folder: Path, writes: bool) -> Iterator[None]:
    """Lock the run folder, exclusively if it is written to, and the runs that it is based on.

    Shards of one stage write different files of one run in parallel, and share the lock like readers. `serve` locks the
    run only while reading it.
    """
    from datxai.lock import holding

    command = f"datxai {settings.stage}"
    with ExitStack() as stack:
        if writes:
            stack.callback(_remove_empty, folder)
        if writes or (settings.stage in COMMANDS and settings.stage not in ("serve", *NEED_NO_RUN)):
            stack.enter_context(holding(folder, command if writes and settings.shard is None else None))
        if settings.stage in MAKE_FOLDERS:
            stack.callback(_remove_empty, folder / settings.stage)
            stack.enter_context(holding(folder / settings.stage, command))
        for rests_on in (settings.base, settings.applied):
            if rests_on is not None and Path(rests_on).is_dir() and Path(rests_on).resolve() != folder.resolve():
                stack.enter_context(holding(Path(rests_on)))
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty
        folder.rmdir()


def _find_record(plan: Plan, now: Record, settings: Config) -> Record | None:
    """The record of the run, now that it is locked; raises `InputError` if settings of earlier stages would change."""
    from datxai.record import read_record, require_same

    assert plan.run is not None
    current = read_record(plan.run)
    if plan.rests_on != plan.run and current is not None:
        raise InputError(f"run={plan.run}: another command has begun a run there meanwhile; give the command again.")
    if plan.record is None or plan.rests_on != plan.run:
        return plan.record
    record = current.of_explanation(settings.explanation) if current is not None and current.choices else plan.record
    require_same(plan.run, record, now, settings.stage, settings.explanation)
    return record


def _settings(cfg: DictConfig, given: Mapping[str, str]) -> Config:
    """A composed configuration as a `Config`; raises `InputError` if it does not fit the schema."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    from datxai.compose import require_known

    try:
        require_known(cfg)
        settings = OmegaConf.to_object(cfg)
        assert isinstance(settings, Config)
        _require_given(OmegaConf.to_container(cfg, resolve=True), given)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} has no value; give it as {error.full_key}=VALUE.") from error
    except OmegaConfBaseException as error:
        raise InputError(f"the configuration does not fit: {str(error).splitlines()[0]}") from error
    return settings


def _require_given(settings: object, given: Mapping[str, str], place: str = "") -> None:
    """Raise `InputError` for code, a file of rules or the class of a network, that was not named on the command line: a
    run folder, or a configuration file that came with one, must not choose what is executed."""
    for key, value in settings.items() if isinstance(settings, dict) else []:
        is_code = key == "rules_from" or place + key == "network.target"
        if is_code and value is not None and place + key not in given:
            raise InputError(
                f"{place}{key}={value} is Python code that would be executed; if you trust it, name it on the command "
                f"line: {place}{key}={value}"
            )
        _require_given(value, given, f"{place}{key}.")
