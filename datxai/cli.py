"""The command ``datxai``: a Hydra application whose first word may be a stage or a command.

This is the only file that imports Hydra, and it imports nothing heavy, so that ``datxai --help`` answers at once.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from datxai.config import ALL, COMMANDS, STAGES
from datxai.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("datxai")

HELP = """\
datxai: DAT-SPECT scans to classified scans with relevance maps that can be checked.
Research use, not diagnostic.

  datxai                                  the whole journey with the phantom cohort
  datxai STAGE [overrides]                one stage, in the run folder of `run=`
  datxai experiment=paper                 the configuration of Nazari et al. 2022
  datxai COMMAND [overrides]              what stands beside the journey
  datxai explain --dry-run                which layer gets which rule; makes nothing

Stages, in order
{stages}

Commands
{commands}

Choices (GROUP=NAME), and every setting in them (GROUP.KEY=VALUE)
{groups}

Settings
  run=DIR base=DIR seed=0 target=predicted device=auto n_jobs=-1 on_error=raise

Hydra's own
  --cfg job        show the configuration and stop (--resolve: with interpolations replaced)
  --config-dir D   add your own configuration files, e.g. D/composite/mine.yaml: composite=mine
  -m               sweep: datxai -m run=DIR training.seed=1,2,3, a run each in DIR/training.seed=1, ...
  --hydra-help     everything else
"""


PLACE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
NEED_NO_RUN = {"compare", "reads"}
FROM_TRAINING_ON = list(STAGES)[list(STAGES).index("train") :]
PATHS = (  # settings whose value is a path, or a pattern of paths
    "run", "base", "scan", "file", "out", "data.root", "data.participants", "data.collection", "data.pattern",
    "registration.template", "atlas.labels", "atlas.names", "composite.rules_from",
)  # fmt: skip
UNNAMED = ("stage", "run", "base", "shard", "device", "n_jobs")  # settings that do not name the folder of a job


def main() -> None:
    """Entry point. Exit status: 0 done, 2 something given cannot be used, 1 a fault of ours, 130 interrupted."""
    arguments = ["dry_run=true" if word == "--dry-run" else word for word in sys.argv[1:]]
    if "--help" in arguments or "-h" in arguments:
        print(help_text())
        return
    if "--version" in arguments:
        from datxai import __version__

        print(__version__)
        return
    flags, words = _parse(arguments)
    stage = next((word for word in words if "=" not in word and not word.startswith("~")), ALL)
    if stage not in (*STAGES, *COMMANDS, ALL):
        known = f"the stages are {', '.join(STAGES)}, the commands {', '.join(COMMANDS)}"
        _fail(f"'{stage}' is neither stage nor command; {known} (see `datxai --help`).")
    if stage in words:
        words.remove(stage)
    if stage == "compare":
        words = _gather_runs(words)
    if stage in FROM_TRAINING_ON and not any(_key(word) == "training.seed" for word in words):
        # Cohort and split are those of the run, whatever the seed; what the seed is left to choose is the training.
        words = [f"training.{word}" if _key(word) == "seed" else word for word in words]
    sweep = bool({"-m", "--multirun"} & set(flags))
    overrides = [_quote(word, sweep) for word in words]
    given = {_key(word): word.partition("=")[2].strip("'\"") for word in words}
    run, base = (Path("."), None) if stage in NEED_NO_RUN else _choose_folders(given, flags, overrides, sweep)
    if sweep and stage in ["split", *FROM_TRAINING_ON] and base is None and given.get("dry_run") != "true":
        _fail(
            f"run={run}: no run there whose cohort the jobs of `{stage} -m` could share; make one first, `datxai "
            f"run={run}` with its settings, or leave out '{stage}', so that each job makes all that it needs."
        )
    if sweep:
        folders = {"run": str(run)} | ({"base": str(base)} if base else {})
        overrides = [word for word in overrides if _key(word) not in folders]
        overrides += [_quote(f"{key}={folder}") for key, folder in folders.items()]
        given |= folders
    if stage in COMMANDS and stage not in NEED_NO_RUN:
        _require_run(stage, run, given)
    if not {"--cfg", "-c"} & set(flags) and stage not in NEED_NO_RUN:
        begun = [base] if sweep else [run, base]
        begun = next((folder for folder in begun if folder and _is_begun(folder)), None)
        kept_flags, kept = _take_over(begun, given) if begun else ([], [])
        if stage == ALL and "experiment" in given and f"experiment={given['experiment']}" not in kept:
            kept_flags, kept = [], []  # a configuration of its own
        flags, overrides = [*kept_flags, *flags], [*kept, *overrides]
        if begun and "run" not in given:  # what is taken over must not lead elsewhere
            overrides.append(_quote(f"run={run}"))
        if given.get("dry_run") != "true":
            _require_writable(run)
        if sweep:  # a job's folder is named after what was given now
            unnamed = ",".join(f"'{key}'" for key in (*UNNAMED, *map(_key, kept)))
            overrides.append(f"hydra.job.config.override_dirname.exclude_keys=[{unnamed}]")
        if "shard" in given:  # all shards are of one run
            overrides.append("hydra.sweep.subdir=.")
    if stage == "benchmark" and "benchmark" not in given:
        overrides.append("benchmark=default")
    if stage in NEED_NO_RUN:
        overrides.append("run=.")
    if given.get("dry_run") == "true":
        if sweep:
            _fail("--dry-run shows one composite; leave out -m.")
        overrides.append("hydra.run.dir=.")  # no trace of it
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and stage != "train":
        _fail("Under torchrun only `train` runs; start the other stages without it.")
    if stage != ALL:
        overrides.append(f"stage={stage}")
    for folder in _config_folders(flags):
        _require_settings_alone(folder)
    sys.argv[1:] = [*flags, *overrides]
    _launch(given)


def help_text() -> str:
    """The text of ``datxai --help``, with the choices found in the installed configuration tree."""
    conf = _conf()
    width = max(map(len, [*STAGES, *COMMANDS])) + 2
    stages, commands = (
        "\n".join(f"  {name:<{width}}{text}" for name, text in listed.items()) for listed in (STAGES, COMMANDS)
    )
    groups = sorted(
        path for path in conf.iterdir() if path.is_dir() and path.name != "hydra" and any(path.glob("*.yaml"))
    )
    width = max(len(path.name) for path in groups) + 2
    lines = [f"  {path.name:<{width}}{', '.join(sorted(p.stem for p in path.glob('*.yaml')))}" for path in groups]
    return HELP.format(stages=stages, commands=commands, groups="\n".join(lines))


def _conf() -> Path:
    import datxai.conf

    return Path(datxai.conf.__file__).parent


_FLAGS_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--info", "-i", "--experimental-rerun",
}  # fmt: skip


def _parse(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and the other words: Hydra wants its overrides together, a user puts them anywhere."""
    flags, words = [], []
    for position, word in enumerate(arguments):
        is_value = position > 0 and arguments[position - 1] in _FLAGS_WITH_VALUE
        (flags if is_value or word.startswith("-") else words).append(word)
    return flags, words


def _choose_folders(
    given: dict[str, str], flags: list[str], overrides: list[str], sweep: bool
) -> tuple[Path, Path | None]:
    """The run folder, and the base run; the jobs of a sweep lie in the folder of their base."""
    if "run" in given:
        run = Path(given["run"])
    elif "base" in given and sweep:
        run = Path(given["base"])
    elif "base" in given:
        _fail(f"base={given['base']}: a run on that base needs run=RUN_DIR, or -m to be made within the base.")
    else:
        run = _compose_run(flags, overrides)
    if "base" in given:
        return run, Path(given["base"])
    return run, run if sweep and (run / "manifest.json").is_file() else None


def _compose_run(flags: list[str], overrides: list[str]) -> Path:
    """The run folder that the configuration names with these overrides, but for those that a sweep varies."""
    from hydra import compose, initialize_config_module
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_schemas()
    folders = [f"'file://{folder}'" for folder in _config_folders(flags)]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        single = [override.input_line for override in parsed if not override.is_sweep_override()]
        with initialize_config_module("datxai.conf", version_base="1.3"):
            return Path(compose("config", [*single, f"hydra.searchpath=[{','.join(folders)}]"]).run)
    except (HydraException, OmegaConfBaseException):
        return Path("runs")  # that the settings do not fit is said when they are composed for good


def _config_folders(flags: list[str]) -> list[str]:
    """The folder given with ``--config-dir``, if one is."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    return parser.parse_known_args(flags)[0].config_dir


def _require_settings_alone(folder: str) -> None:
    """Refuse a configuration directory in which a file, other than those of its ``hydra/`` that the command line can
    choose, has settings of Hydra: they can execute code, and a composite that somebody sends must not."""
    import re

    import yaml

    def reaches(node: object, key: str = "") -> bool:
        """Whether Hydra is named in a key, or in the words of a list of defaults."""
        if isinstance(node, dict):
            return any("hydra" in str(key) or reaches(value, str(key)) for key, value in node.items())
        if isinstance(node, list):
            return any(reaches(value, key) for value in node)
        return key == "defaults" and "hydra" in str(node)

    for path in sorted(Path(folder).rglob("*.yaml")):
        if path.relative_to(folder).parts[0] == "hydra":
            continue
        try:
            text = path.read_text(encoding="utf-8")
            found = re.search(r"^#\s*@package.*hydra", text, re.MULTILINE) or reaches(yaml.safe_load(text))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # if it is chosen, Hydra says what is wrong
        if found:
            _fail(
                f"{path}: has settings of Hydra itself, which could execute code; a file of settings for datxai needs "
                f"none. Give them on the command line, or in {folder}/hydra/."
            )


def _gather_runs(words: list[str]) -> list[str]:
    """The words after ``compare``, with the folders among them as one override: runs=[...]."""
    runs = [word for word in words if "=" not in word or Path(word).is_dir()]
    named = ",".join("'" + run.replace("'", r"\'") + "'" for run in runs)
    return [*(word for word in words if word not in runs), f"runs=[{named}]"]


def _quote(override: str, sweep: bool = False) -> str:
    """An override in quotes where Hydra's grammar needs them: the value is a path, with blanks, commas or umlauts
    maybe, or holds an equals sign, as the folders of a sweep do."""
    key, _, value = override.partition("=")
    if not value or value == "null" or value[0] in "'\"":
        return override
    is_path = _key(override) in PATHS and not sweep  # a sweep may name several, and choices between commas
    holds_equals = "=" in value and value[0] not in "[{" and "(" not in value
    escaped = value.replace("'", r"\'")
    return f"{key}='{escaped}'" if is_path or holds_equals else override


def _is_begun(folder: Path) -> bool:
    return all((folder / ".hydra" / name).is_file() for name in ("overrides.yaml", "hydra.yaml"))


def _take_over(folder: Path, given: dict[str, str]) -> tuple[list[str], list[str]]:
    """Flags and overrides taken over from a run folder: those that it was begun with.

    So ``datxai explain run=DIR composite=epsilon`` keeps the grid, the data and the network of DIR, and configuration
    directories of one's own. Overrides given now win. A run on a base keeps the settings of the base.
    """
    import yaml

    record = folder / ".hydra"
    sources = yaml.safe_load((record / "hydra.yaml").read_text())["hydra"]["runtime"]["config_sources"]
    folders = [source["path"] for source in sources if source["provider"] == "command-line"]
    kept = yaml.safe_load((record / "overrides.yaml").read_text()) or []
    own = {*given, "stage", "run", "shard", "scan", "age", "file", "out"}
    # Code is never taken over: neither a file of rules nor settings of Hydra, which name what it calls.
    kept = [word for word in kept if _key(word) != "composite.rules_from" and not _key(word).startswith("hydra")]
    # A choice given now has settings of its own: data=ppmi drops data.root. A composite is one of LRP.
    groups = {*given, *(["attribution"] if any(_group(key) == "composite" for key in given) else [])}
    kept = [word for word in kept if _key(word) not in own and _group(_key(word)) not in groups]
    return [flag for folder in folders[:1] for flag in ("--config-dir", folder)], kept


def _require_run(command: str, run: Path, given: dict[str, str]) -> None:
    if "run" not in given:
        _fail(f"`datxai {command}` needs run=RUN_DIR, the folder of a run.")
    if not (run / "manifest.json").is_file():
        _fail(f"run={run}: no run folder of datxai there (no manifest.json); make one with `datxai run={run}`.")


def _require_writable(run: Path) -> None:
    place = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not place.is_dir():
        _fail(f"run={run}: {place} is a file, expected a folder; choose another run=DIR.")
    if not os.access(place, os.W_OK | os.X_OK):
        _fail(f"run={run}: nothing can be written to {place}; choose another run=DIR or mend its permissions.")


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _group(key: str) -> str:
    return key.partition(".")[0]


def register_schemas() -> None:
    """Tell Hydra the schema of the settings, so that a misspelt key or a wrong type is refused."""
    from hydra.core.config_store import ConfigStore

    from datxai import config

    store = ConfigStore.instance()
    store.store(name="schema", node=config.Config)
    for name, node in {
        "phantom": config.Phantom,
        "folder": config.Folder,
        "dicom": config.Dicom,
        "ppmi": config.Ppmi,
    }.items():
        store.store(group="data", name=f"{name}_schema", node=node)


def _require_given(settings: object, given: dict[str, str], place: str = "") -> None:
    """Refuse a file of rules, which is code, that was not named on the command line itself: a run folder, or a
    configuration file that came with one, must not choose what is executed here."""
    for key, value in settings.items() if isinstance(settings, dict) else []:
        if key == "rules_from" and value is not None and place + key not in given:
            raise InputError(
                f"{place}{key}={value} is Python code that would be executed; if you trust it, name it on the command "
                f"line: {place}{key}={value}"
            )
        _require_given(value, given, f"{place}{key}.")


@contextmanager
def _recording(cfg: DictConfig, folder: Path) -> Iterator[None]:
    """The configuration as the run's record, in ``.hydra`` and as Hydra would write it, but for the interpolations,
    which are replaced. A run that is refused, or fails, keeps the record it had."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    record, of_hydra = folder / ".hydra", HydraConfig.instance().cfg
    before = {path: path.read_bytes() for path in record.glob("*.yaml")}
    record.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, record / "config.yaml", resolve=True)
    OmegaConf.save(of_hydra, record / "hydra.yaml")
    OmegaConf.save(of_hydra.hydra.overrides.task, record / "overrides.yaml")
    try:
        yield
    except Exception:
        for path in record.glob("*.yaml"):
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
        with suppress(OSError):  # what was made for nothing, if nothing else is in it
            record.rmdir()
            folder.rmdir()
        raise


def _launch(given: dict[str, str]) -> None:
    """Hand over to Hydra. ``given`` is what this command line says, beside what a run folder's record adds."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    register_schemas()
    started = refused = False

    @hydra.main(version_base="1.3", config_path="pkg://datxai.conf", config_name="config")
    def job(cfg) -> None:
        nonlocal started, refused
        started = True
        from datxai import pipeline

        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        try:
            settings = _settings(cfg)
            _require_given(OmegaConf.to_container(cfg, resolve=True), given)
            settings.run = str(folder)
            if hydra_config.mode == RunMode.MULTIRUN:
                log.info("\n%s", folder)
            follows = int(os.environ.get("RANK", 0)) > 0  # another process of torchrun, which keeps the record
            leaves_record = not (settings.stage in COMMANDS or settings.dry_run or follows)
            with _recording(cfg, folder) if leaves_record else nullcontext():
                pipeline.run(settings)
        except (InputError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in PLACE_FAULTS:
                raise
            if hydra_config.mode != RunMode.MULTIRUN:
                _fail(_say(error))
            refused = True  # launchers know of exceptions; where a worker exits, they see a crash and may try again
            log.error("datxai: %s", _say(error))
            raise CompactHydraException(f"datxai: {folder}: {_say(error)}") from error
        except KeyboardInterrupt:
            print("datxai: interrupted; the same command goes on from here.", file=sys.stderr)
            sys.exit(130)

    def _settings(cfg):
        try:
            return OmegaConf.to_object(cfg)
        except MissingMandatoryValue as error:
            raise InputError(f"{error.full_key} has no value; give it as {error.full_key}=VALUE.") from error
        except OmegaConfBaseException as error:
            raise InputError(f"the configuration does not fit: {str(error).splitlines()[0]}") from error

    try:
        job()
    except SystemExit as end:
        if end.code == 1 and (refused or not started):  # by us or by Hydra, which has said why
            sys.exit(2)
        raise


def _say(error: Exception) -> str:
    """An error as a sentence for the user."""
    if isinstance(error, OSError):
        return f"{error.filename or 'the run folder'}: {error.strerror}; make room or choose another place."
    return str(error)


def _fail(sentence: str) -> None:
    print(f"datxai: {sentence}", file=sys.stderr)
    sys.exit(2)
