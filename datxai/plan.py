"""Planning of an order: its folder and settings, and whether it is allowed. Nothing is written here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from datxai.config import COMMANDS, OF_BUNDLES, READ_BY, require_name
from datxai.errors import InputError
from datxai.order import FROM_TRAINING_ON, NEED_NO_RUN, Order, group_of, key_of, quote

if TYPE_CHECKING:
    from datxai.bundle import Bundle
    from datxai.record import Record

CHOICE = {"benchmark": "default", "search": "training"}  # commands with a group of settings, and its default choice
MAKE_FOLDERS = ("benchmark", "spectral")  # commands that read a run and write a folder of their name in it


@dataclass(frozen=True)
class Plan:
    """The configuration and the words that Hydra composes for an order, and the run or bundle they are based on."""

    order: Order
    config: str
    words: tuple[str, ...]
    run: Path | None = None
    record: Record | None = None  # with which the run continues, if it exists
    rests_on: Path | None = None  # the folder of this record
    fixed: tuple[str, ...] = ()  # settings on which earlier stages depend
    bundle: Bundle | None = None  # instead of a run folder


def prepare(order: Order) -> Plan:
    """Find the folder and the settings of an order; nothing is written.

    Raises `InputError` if it is not possible, and Hydra's exceptions if its words do not compose.
    """
    from datxai import compose

    compose.register_schemas()
    if order.asks_hydra:
        return Plan(replace(order, flags=(*order.flags, *_help_to_complete())), compose.PRIMARY, order.words)
    _require_possible(order)
    without_run = Plan(order, compose.PRIMARY, (*order.words, "run=."))
    plan = without_run if order.task in NEED_NO_RUN else _plan_on_run(order)
    of_call = {"stage": order.task, "hydra": {}}
    if "shard" in order.given:  # all shards share one run
        of_call["hydra"] |= {"sweep": {"dir": "${run}", "subdir": "."}}
    if order.given.get("dry_run") == "true" or plan.bundle is not None:  # write no log
        of_call["hydra"] |= {"run": {"dir": "."}, "job_logging": {"loggers": {"datxai": {"handlers": ["console"]}}}}
    plan = _choose_method(plan, of_call)
    config = _register(plan, of_call)
    compose.require_own_hydra(replace(order, words=plan.words), config)
    if any(word.startswith("+") for word in order.words):
        compose.require_known(compose.compose(compose.single(order), config, order.config_dir))
    return replace(plan, config=config)


def _require_possible(order: Order) -> None:
    require_name(order.explanation)
    if order.value_of("--config-path", "-cp", "--config-name", "-cn") is not None:
        raise InputError(
            "--config-path and --config-name: a run begins with the configuration of datxai, or with its record; "
            "put your settings into D/experiment/mine.yaml and give --config-dir D experiment=mine."
        )
    for key, readers in READ_BY.items():
        if key in order.given and order.task not in readers:
            raise InputError(
                f"{key}={order.given[key]}: only `{'`, `'.join(readers)}` {'reads' if len(readers) == 1 else 'read'} "
                f"this setting; leave it out."
            )
    if order.sweeps and "applied" in order.given:
        raise InputError("`datxai apply` takes one run to one cohort; leave out -m.")
    if order.sweeps and order.given.get("dry_run") == "true":
        raise InputError("--dry-run shows one composite; leave out -m.")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and order.task != "train":
        raise InputError("Under torchrun only `train` runs; start the other stages without it.")
    sweeper = order.given.get("hydra/sweeper", "basic")
    if order.sweeps and sweeper != "basic" and order.task in (*COMMANDS, "simulate", "preprocess", "split"):
        raise InputError(
            f"hydra/sweeper={sweeper}: looks for settings with the best objective, and `{order.task}` makes none; "
            f"leave out the sweeper, or sweep over `train` or the whole journey."
        )


def _plan_on_run(order: Order) -> Plan:
    """The plan with the run folder of an order, its words, and the record with which it continues; jobs of a sweep lie
    in the folder of their base."""
    from datxai import applying, compose
    from datxai.record import made_before, read_record, require_own

    given, run = order.given, _find_run(order)
    if run.is_file() and "run" in given:
        return _plan_on_bundle(order, run)
    base = Path(given["base"]) if "base" in given else None
    if base is None and order.sweeps and (run / "manifest.json").is_file():
        base = run
    if order.sweeps and order.task in ("split", *FROM_TRAINING_ON) and base is None and not order.shows:
        raise InputError(
            f"run={run}: no run there whose cohort the jobs of `{order.task} -m` could share; make one first, `datxai "
            f"run={run}` with its settings, or leave out '{order.task}', so that each job makes all that it needs."
        )
    applied = Path(given["applied"]) if given.get("applied", "null") != "null" else None
    if order.task in COMMANDS:
        _require_run(order, run)
    if applied is not None:
        applying.require_apart(order, run, applied)
    if not order.leaves_nothing:
        _require_writable(run)
        jobs = [path for name in ("datxai.log", ".hydra") for path in (run / name, *run.glob(f"*/{name}"))]
        written = ("multirun.yaml", "cases", "compare", "search", *MAKE_FOLDERS)
        require_own(run, *jobs, *(run / name for name in written))
    words = [word for word in order.words if key_of(word) not in ("run", "base")]
    words += [quote(f"{key}={folder}") for key, folder in (("run", run), ("base", base)) if folder is not None]
    if order.task in CHOICE and order.task not in given:
        words.append(f"{order.task}={CHOICE[order.task]}")
    for folder in [base] if order.sweeps else [run, applied, base]:
        if folder is not None and folder == applied and folder.is_file():
            record, fixed = applying.read_bundle(order, run, folder)
            return Plan(order, compose.PRIMARY, tuple(words), run, record, folder, fixed)
        record = read_record(folder) if folder is not None else None
        if folder is not None and record is not None:
            record = record if record.choices else compose.read_0_1(folder, record)
            record = record.of_explanation(order.explanation)
            if applied is not None and folder == applied:
                record = applying.make_record(order, record, applied)
            words = words if order.sweeps else _leave_out_repeated(words, record)
            fixed = made_before(run, order.task, order.explanation) if folder == run else ()
            fixed = made_before(applied, "apply") if applied is not None and folder == applied else fixed
            return Plan(order, compose.PRIMARY, tuple(words), run, record, folder, tuple(fixed))
    return Plan(order, compose.PRIMARY, tuple(words), run)


def _plan_on_bundle(order: Order, path: Path) -> Plan:
    """The plan of a command on a bundle, with the settings of its run; a stage is refused."""
    from datxai import compose
    from datxai.bundle import SETTINGS, Bundle, is_bundle, say_what_it_holds

    if order.task not in OF_BUNDLES:
        if is_bundle(path):
            raise say_what_it_holds(path, order.task)
        raise InputError(f"run={path}: is a file, expected a folder; choose another run=DIR.")
    if order.sweeps:
        raise InputError(f"run={path}: a bundle is for one command at a time; leave out -m.")
    bundle = Bundle.open(path, only=[SETTINGS])
    record = bundle.record.without("data")  # which need not fit the new scan
    words = [word for word in order.words if key_of(word) != "run"]
    orientation = bundle.record.values["data"].get("orientation", "header")
    words = [f"data.orientation={orientation}", *words, quote(f"run={path}")]
    return Plan(order, compose.PRIMARY, tuple(words), None, record, path, bundle.fixed, bundle)


def _find_run(order: Order) -> Path:
    """The run folder named by the words, or by the configuration that they compose, without swept settings."""
    from datxai import compose

    given = order.given
    if "run" not in given and "base" in given:
        if not order.sweeps:
            raise InputError(
                f"base={given['base']}: a run on that base needs run=RUN_DIR, or -m to be made within the base."
            )
        return Path(given["base"])
    if "run" in given and "${" not in given["run"]:
        return Path(given["run"])
    return Path(compose.compose(compose.single(order), folder=order.config_dir).run)


def _leave_out_repeated(words: list[str], record: Record) -> list[str]:
    """The words without the run's own experiment, which its record already includes, with later changes."""
    experiment = f"experiment={record.choices.get('experiment')}"
    return [word for word in words if word != experiment]


def _choose_method(plan: Plan, of_call: Mapping) -> Plan:
    """If a composite is chosen now, choose LRP, whatever method the run or an experiment had before."""
    from datxai import compose

    keys = {group_of(key_of(word)) for word in plan.words}
    method = (plan.record.values if plan.record else {}).get("attribution", {}).get("method", "lrp")
    if "attribution" in keys or not {"composite", "experiment"} & keys:
        return plan
    if "composite" in keys and method != "lrp":
        assert plan.record is not None  # whose method it is
        plan, method = replace(plan, record=plan.record.without("attribution")), "lrp"
    if "experiment" in keys and not plan.order.sweeps and ("composite" in keys or method != "lrp"):
        cfg = compose.compose(plan.words, _register(plan, of_call), plan.order.config_dir)
        choices = cfg.hydra.runtime.choices
        if "composite" in keys and cfg.attribution.method != "lrp":
            return replace(plan, words=(*plan.words, "attribution=lrp"))
        if choices.composite != compose.RECORDED and choices.attribution == compose.RECORDED:
            assert plan.record is not None  # whose method was chosen
            return replace(plan, record=plan.record.without("attribution"))
    return plan


def _register(plan: Plan, of_call: Mapping) -> str:
    from datxai.compose import register_primary
    from datxai.record import Record

    return register_primary(plan.record or Record({}), of_call, plan.fixed)


def _require_run(order: Order, run: Path) -> None:
    if "run" not in order.given:
        raise InputError(f"`datxai {order.task}` needs run=RUN_DIR, the folder of a run.")
    if not (run / "manifest.json").is_file():
        raise InputError(
            f"run={run}: no run folder of datxai there (no manifest.json); make one with `datxai run={run}`."
        )


def _require_writable(run: Path) -> None:
    place = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not place.is_dir():
        raise InputError(f"run={run}: {place} is a file, expected a folder; choose another run=DIR.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"run={run}: nothing can be written to {place}; choose another run=DIR or change its permissions."
        )


def _help_to_complete() -> list[str]:
    """Complete the stage in a line that a shell wants completed, and remove it, since Hydra cannot parse it.

    Returns the flags of the line for its configuration directories."""
    from datxai.config import STAGES

    line = os.environ.get("COMP_LINE")
    if line is None or not any(word.startswith("query=") for word in sys.argv):
        return []
    program, *words = line.split(" ")
    tasks = [*STAGES, *COMMANDS]
    if not {*words[:-1]} & {*tasks} and "=" not in words[-1]:
        print(" ".join(task for task in tasks if task.startswith(words[-1])))
    task = next((word for word in words[:-1] if word in tasks), None)
    os.environ["COMP_LINE"] = " ".join([program, *(word for word in words if word != task)])
    folders = [folder for name, folder in pairwise(words) if name in ("--config-dir", "-cd")]
    return [f"--config-dir={folder}" for folder in folders]
