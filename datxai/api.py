"""The pipeline from Python: `Pipeline` does the same as the command ``datxai``, in the same run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partialmethod
from pathlib import Path
from typing import Any

from datxai.compose import compose, refusing, take_choices
from datxai.config import ALL, COMMANDS, DEFAULT, STAGES
from datxai.errors import InputError
from datxai.findings import Findings
from datxai.job import carry_out
from datxai.order import key_of, read_order
from datxai.plan import prepare
from datxai.record import say
from datxai.run import Run


class Pipeline:
    """A run folder, its stages as methods, and its results.

    ``words`` are settings as on the command line, such as ``"training.max_epochs=4"``; keywords are equivalent, with a
    dictionary for the settings of a group: ``grid="mni_4mm", training={"max_epochs": 4}``. They apply to every stage of
    this object; further ones given to a stage apply to that call. An existing run continues with its recorded settings,
    and stages that are up to date are not run again. Progress is logged to ``datxai`` at level INFO.

    Every method raises `datxai.errors.InputError` where the command would fail with an error message.
    """

    def __init__(self, run: str | Path, *words: str, **settings: Any):
        self.folder = Path(run)
        self.settings = _by_key(words, settings)

    def make(self, task: str = ALL, *words: str, **settings: Any) -> Findings:
        """Do the same as ``datxai TASK run=RUN``: all stages, one of them, or a command.

        Returns the results of the run; each table is read on demand.
        """
        by_key = {**self.settings, **_by_key(words, settings), "run": f"run={self.folder}"}
        order = read_order([*([] if task == ALL else [task]), *by_key.values()])
        flags = [flag for flag in order.flags if not flag.startswith("--config-dir=")]
        if order.task not in (ALL, *STAGES, *COMMANDS) or order.sweeps or flags:
            raise InputError(f"{' '.join((task, *words))}: only the command `datxai` does that; call it in a shell.")
        with refusing():
            plan = prepare(order)
            cfg = compose(plan.words, plan.config, order.config_dir)
            carry_out(plan, cfg, self.folder, take_choices(cfg))
        return Findings(Run(self.folder, order.explanation))

    simulate = partialmethod(make, "simulate")
    preprocess = partialmethod(make, "preprocess")
    split = partialmethod(make, "split")
    train = partialmethod(make, "train")
    explain = partialmethod(make, "explain")
    evaluate = partialmethod(make, "evaluate")
    report = partialmethod(make, "report")

    @property
    def findings(self) -> Findings:
        """The results of the run, read again."""
        return Findings(Run(self.folder, self.settings.get("explanation", f"={DEFAULT}").partition("=")[2]))


def _by_key(words: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, str]:
    return {key_of(word): word for word in (*words, *_words(settings))}


def _words(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        inner = value if isinstance(value, Mapping) else {}
        yield from (f"{key}.{name}={say(inner_value)}" for name, inner_value in inner.items())
        if not inner:
            yield f"{key}={say(value)}"
