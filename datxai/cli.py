"""The command ``datxai``: a Hydra application whose first word may be a stage or a command.

`main` reads an order, decides where it is carried out and on which settings (`prepare`), and hands over to Hydra.
Nothing heavy is imported before that, so that ``datxai --help`` answers at once.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from datxai.config import COMMANDS, OF_BUNDLES, Config, require_name
from datxai.errors import InputError, escape
from datxai.order import FROM_TRAINING_ON, HELP, NEED_NO_RUN, VERSION, Order, group_of, key_of, quote, read_order

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from datxai.bundle import Bundle
    from datxai.record import Record

log = logging.getLogger("datxai")

PLACE_FAULTS = {  # what a place brings about, and what to do
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room or choose another place"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "mend its permissions or choose another place"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG),
        "move what is there or choose another place",
    ),
    errno.EIO: "the disk may be damaged",
}
CHOICE = {"benchmark": "default", "search": "training"}  # commands with a group of settings, and its first choice
MAKE_FOLDERS = ("benchmark", "spectral")  # commands that read a run and make a folder of their own name in it


@dataclass(frozen=True)
class Plan:
    """How an order is carried out: the configuration and the words that Hydra composes, and what they rest on."""

    order: Order
    config: str
    words: tuple[str, ...]
    run: Path | None = None
    record: Record | None = None  # that the run goes on with, if it has been begun
    rests_on: Path | None = None  # the folder that has it
    fixed: tuple[str, ...] = ()  # settings that shaped what has been made before
    bundle: Bundle | None = None  # in the place of a run folder


def main() -> None:
    """Entry point. Exit status: 0 done, 2 something given cannot be used, 1 a fault of ours, 130 interrupted."""
    interrupts = _hear_interrupts()
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
        if _errno_of(error) not in PLACE_FAULTS:
            raise
        _fail(_say(error))
    except BaseException as error:  # what an interrupt comes to, in the middle of an import above all
        if not (interrupts or isinstance(error, KeyboardInterrupt)):
            raise
        _say_interrupted()
        sys.exit(130)


def _hear_interrupts() -> list[int]:
    """The interrupts so far: the first ends the command in order, the next at once."""
    interrupts: list[int] = []

    def hear(number: int, _: object) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            _say_interrupted()
            os._exit(130)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, hear)
    return interrupts


def _say_interrupted() -> None:
    print("datxai: interrupted; the same command goes on from here.", file=sys.stderr, flush=True)


def _launch(order: Order) -> None:
    """Hand over to Hydra, whose errors are said in one sentence."""
    import hydra

    from datxai.compose import describe, refusing

    verbose = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised, not printed
    with nullcontext() if verbose else refusing():
        plan = prepare(order)
        if plan.record is not None and order.sweeps:  # said once, not by each job
            print(f"Settings taken over from {plan.rests_on}: {describe(plan.record)}", flush=True)
        sys.argv[1:] = [*plan.order.flags, *plan.words]
        hydra.main(version_base="1.3", config_path="pkg://datxai.conf", config_name=plan.config)(_make_job(plan))()


def prepare(order: Order) -> Plan:
    """Where an order is carried out and on which settings; nothing is written.

    Raises `InputError` if it cannot be, and what Hydra raises where its words do not compose.
    """
    from datxai import compose

    compose.register_schemas()
    if order.asks_hydra:
        return Plan(replace(order, flags=(*order.flags, *_help_to_complete())), compose.PRIMARY, order.words)
    _require_possible(order)
    without = Plan(order, compose.PRIMARY, (*order.words, "run=."))
    plan = without if order.task in NEED_NO_RUN else _place(order)
    of_call = {"stage": order.task, "hydra": {}}
    if "shard" in order.given:  # all shards are of one run
        of_call["hydra"] |= {"sweep": {"dir": "${run}", "subdir": "."}}
    if order.given.get("dry_run") == "true" or plan.bundle is not None:  # no trace of it
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


def _place(order: Order) -> Plan:
    """The run folder of an order, the words with it, and the record that it goes on with; jobs of a sweep lie in the
    folder of their base."""
    from datxai import applying, compose
    from datxai.record import made_before, read_record, require_own

    given, run = order.given, _find_run(order)
    if run.is_file() and "run" in given:
        return _place_on_bundle(order, run)
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
        made = ("multirun.yaml", "cases", "compare", "search", *MAKE_FOLDERS)
        require_own(run, *jobs, *(run / name for name in made))
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


def _place_on_bundle(order: Order, path: Path) -> Plan:
    """The plan of a command that takes a bundle, whose settings are those of its run; a stage is refused."""
    from datxai import compose
    from datxai.bundle import SETTINGS, Bundle, is_bundle, say_what_it_holds

    if order.task not in OF_BUNDLES:
        if is_bundle(path):
            raise say_what_it_holds(path, order.task)
        raise InputError(f"run={path}: is a file, expected a folder; choose another run=DIR.")
    if order.sweeps:
        raise InputError(f"run={path}: a bundle is for one command at a time; leave out -m.")
    bundle = Bundle.open(path, only=[SETTINGS])
    record = bundle.record.without("data")  # of which the kind of the new scan is not
    words = [word for word in order.words if key_of(word) != "run"]
    orientation = bundle.record.values["data"].get("orientation", "header")
    words = [f"data.orientation={orientation}", *words, quote(f"run={path}")]
    return Plan(order, compose.PRIMARY, tuple(words), None, record, path, bundle.fixed, bundle)


def _find_run(order: Order) -> Path:
    """The run folder that the words name, or the configuration that they make, but for what a sweep varies."""
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
    """The words without an experiment that the run has been made with: its record has that, and what was changed."""
    known = f"experiment={record.choices.get('experiment')}"
    return [word for word in words if word != known]


def _choose_method(plan: Plan, of_call: Mapping) -> Plan:
    """A composite chosen now is one of LRP, whatever method the run, or an experiment, has chosen before."""
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
            f"run={run}: nothing can be written to {place}; choose another run=DIR or mend its permissions."
        )


def _help_to_complete() -> list[str]:
    """Take the stage out of the line that a shell wants completed, which Hydra would stumble over; complete it too.

    Returns the flags that say where the line looks for configurations."""
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


def _make_job(plan: Plan):
    """The function that Hydra calls with a composed configuration: for a run once, for a sweep once a job."""

    def job(cfg: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.errors import CompactHydraException
        from hydra.types import RunMode

        of_hydra = HydraConfig.get()
        sweeps, folder = of_hydra.mode == RunMode.MULTIRUN, Path(of_hydra.runtime.output_dir)
        try:
            return carry_out(plan, cfg, folder, of_hydra.runtime.choices, sweeps)
        except (InputError, OSError) as error:
            if isinstance(error, OSError) and _errno_of(error) not in PLACE_FAULTS:
                raise
            if not sweeps:
                _fail(_say(error))
            # launchers know of exceptions; where a worker exits, they see a crash and may try again
            log.error("datxai: %s", _say(error))
            raise CompactHydraException(f"datxai: {folder}: {_say(error)}") from error

    return job


def carry_out(
    plan: Plan, cfg: DictConfig, folder: Path, choices: Mapping[str, str | None], sweeps: bool = False
) -> float | None:
    """Carry out an order with the configuration composed for it, of which ``choices`` are Hydra's.

    Returns the objective of a sweep's job, None where there is none. Raises `InputError`.
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
    follows = int(os.environ.get("RANK", 0)) > 0  # another process of torchrun, which keeps the record
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
    """Have the run folder, alone if it is written to, and the base that it rests on.

    Shards of one stage write different files of one run side by side, and share it as readers do. `serve` has the run
    only while it reads it.
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
    with suppress(OSError):  # there is something in it
        folder.rmdir()


def _find_record(plan: Plan, now: Record, settings: Config) -> Record | None:
    """The record that is there now that the run is ours; settings that shaped what a stage goes on with are refused."""
    from datxai.record import read_record, require_same

    assert plan.run is not None
    found = read_record(plan.run)
    if plan.rests_on != plan.run and found is not None:
        raise InputError(f"run={plan.run}: another command has begun a run there meanwhile; give the command again.")
    if plan.record is None or plan.rests_on != plan.run:
        return plan.record
    record = found.of_explanation(settings.explanation) if found is not None and found.choices else plan.record
    require_same(plan.run, record, now, settings.stage, settings.explanation)
    return record


def _settings(cfg: DictConfig, given: Mapping[str, str]) -> Config:
    """A composed configuration as our schema has it, or `InputError`."""
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
    """Refuse code, a file of rules or the class of a network, that was not named on the command line itself: a run
    folder, or a configuration file that came with one, must not choose what is executed here."""
    for key, value in settings.items() if isinstance(settings, dict) else []:
        is_code = key == "rules_from" or place + key == "network.target"
        if is_code and value is not None and place + key not in given:
            raise InputError(
                f"{place}{key}={value} is Python code that would be executed; if you trust it, name it on the command "
                f"line: {place}{key}={value}"
            )
        _require_given(value, given, f"{place}{key}.")


def _say(error: Exception) -> str:
    """An error as a sentence for the user."""
    if isinstance(error, OSError):
        number = _errno_of(error) or 0
        return f"{error.filename or 'the run folder'}: {os.strerror(number)}; {PLACE_FAULTS[number]}."
    return str(error)


def _errno_of(error: BaseException | None) -> int | None:
    """The number of what went wrong, of the first cause that has one: Pillow's own errors have none."""
    while error is not None and getattr(error, "errno", None) is None:
        error = error.__cause__ or error.__context__
    return None if error is None else error.errno  # pyright: ignore[reportAttributeAccessIssue]


def _fail(sentence: str) -> None:
    print(f"datxai: {escape(sentence.removeprefix('datxai: '))}", file=sys.stderr)
    sys.exit(2)
