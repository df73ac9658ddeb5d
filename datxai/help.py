"""The text of ``datxai --help``: stages, commands, and choices of the installed configuration tree."""

from __future__ import annotations

from pathlib import Path

from datxai.config import COMMANDS, EXPLAINING, STAGES

HELP = """\
datxai: DAT-SPECT scans to classified scans with relevance maps that can be checked.
Research use, not diagnostic.

  datxai                                  the whole journey with the phantom cohort
  datxai STAGE [overrides]                one stage, in the run folder of `run=`
  datxai experiment=paper                 the configuration of Nazari et al. 2022
  datxai COMMAND [overrides]              what stands beside the journey
  datxai explain --dry-run                which layer gets which rule; makes nothing
  datxai help STAGE                       the settings of a stage or a command

Stages, in order
{stages}

Commands
{commands}

Choices (GROUP=NAME), and every setting in them (GROUP.KEY=VALUE)
{groups}

Settings
  run=DIR base=DIR seed=0 target=decision explanation=default device=auto n_jobs=-1 on_error=raise

Hydra's own
  --cfg job        show the configuration and stop (--resolve: with interpolations replaced); that of a run with run=DIR
  --config-dir D   add your own configuration files, e.g. D/composite/mine.yaml: composite=mine
  -m               sweep: datxai -m run=DIR training.seed=1,2,3, a run each in DIR/training.seed=1, ...
  -sc install=bash completion in the shell: eval "$(datxai -sc install=bash)"
  --hydra-help     everything else
"""

HELP_ON_ONE = """\
datxai {name}: {text}

  {usage}

{groups}
Every setting of a group: datxai --cfg job -p GROUP. All else: datxai --help
"""

SETTINGS = {  # settings that affect a stage or command
    "simulate": ("data", "seed"),
    "preprocess": ("data", "grid", "reconstruction", "registration", "atlas", "preprocessing", "on_error"),
    "split": ("split", "seed"),
    "train": ("network", "training"),
    "explain": ("attribution", "composite", "target", "explanation", "dry_run"),
    "evaluate": ("atlas", "preprocessing", "explanation"),
    "report": ("explanation",),
    "external": ("subgroups", "explanation"),
    "apply": ("to", "data", "subgroups", "reconstruction", *EXPLAINING, "on_error"),
    "case": (
        "scan", "age", "sex", "prior", "prior_years", "out", "on_error", *EXPLAINING, "explanation", "explanations",
        "dicom", "deidentify",
    ),
    "serve": ("port", "attribution", "composite", "target", "explanation"),
    "bundle": ("out", "precision", "explanation"),
    "export": ("out", "to"),
    "template": (),
    "benchmark": ("benchmark", "target", "explanation"),
    "search": ("search", "network", "training"),
    "spectral": ("explanation",),
    "check": (),
    "compare": ("out", "explanation", "explanations"),
    "reads": ("file", "out"),
    "doctor": (),
}


def help_text(topic: str | None = None) -> str:
    """The text of ``datxai --help``, or of ``datxai TOPIC --help``, with the choices found in the installed tree."""
    if topic is not None:
        return _help_on(topic)
    width = max(map(len, [*STAGES, *COMMANDS])) + 2
    stages, commands = (
        "\n".join(f"  {name:<{width}}{text}" for name, text in listed.items()) for listed in (STAGES, COMMANDS)
    )
    groups = choices()
    width = max(map(len, groups)) + 2
    lines = [f"  {group:<{width}}{', '.join(names)}" for group, names in groups.items()]
    return HELP.format(stages=stages, commands=commands, groups="\n".join(lines))


def choices() -> dict[str, list[str]]:
    """The installed choices of each group."""
    import datxai.conf  # pyright: ignore[reportMissingImports]  # the folder conf of the checkout, once installed

    tree = Path(datxai.conf.__file__).parent
    groups = sorted(path for path in tree.iterdir() if path.name != "hydra" and any(path.glob("*.yaml")))
    return {path.name: sorted(choice.stem for choice in path.glob("*.yaml")) for path in groups}


def _help_on(topic: str) -> str:
    groups, settings = choices(), SETTINGS[topic]
    lines = [f"  {name}={'|'.join(groups[name])}, {name}.KEY=VALUE" for name in settings if name in groups]
    lines += [f"  {name}=VALUE" for name in settings if name not in groups]
    settings_text = f"Settings\n{chr(10).join(lines)}\n" if lines else "It has no settings of its own.\n"
    text, _, usage = COMMANDS.get(topic, f"{STAGES.get(topic)}: [overrides] run=RUN_DIR").rpartition(": ")
    text, usage = (text, usage) if text else (usage, "")
    return HELP_ON_ONE.format(name=topic, text=text, usage=f"datxai {topic} {usage}".rstrip(), groups=settings_text)
