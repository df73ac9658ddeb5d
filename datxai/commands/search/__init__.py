"""Search for settings: trainings with settings proposed by Optuna, judged on the validation cases only.

Each trial is a run with the given run as base, made by the `datxai` command itself with an experiment file that holds
the changed settings. Results can thus be reproduced by giving the same settings.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import yaml

from datxai.commands.search import trials
from datxai.commands.search.space import OBJECTIVES, STAGE_OF, read_space
from datxai.config import Config, Search
from datxai.errors import InputError
from datxai.files import read_table, write_table, write_text
from datxai.lock import holding
from datxai.progress import Bar
from datxai.record import flatten, read_record, require_own
from datxai.run import Run

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

log = logging.getLogger("datxai")

STAGES = ("preprocess", "split", "train")
POLL_S = 0.2
MAX_FAILURES = 3  # in a row, before the search is ended
PATIENCE_S = 24 * 3600.0  # waiting for a training that outlived the search that started it


def run(settings: Config, folder: Run) -> None:
    """Search ``settings.search.space`` for the settings with the best training on the run ``folder``.

    RUN/search/NAME then holds ``study.db`` (Optuna's study), ``trials.tsv``, ``search.png`` and
    ``experiment/best.yaml``. A search that was stopped goes on; several commands may work on it at the same time.
    """
    options = settings.search
    if settings.applied is not None:
        raise InputError(
            f"run={folder.folder}: applies the run {settings.applied} to another cohort and trains nothing; search in "
            f"a run that does."
        )
    space = read_space(options, settings)
    folder.entry("split", "search")
    trials.require_optuna()
    out = folder.folder / "search" / options.name
    out.mkdir(parents=True, exist_ok=True)
    require_own(folder.folder, out, out.parent)
    search = SearchProcess(settings, folder, out, space, _find_changes(settings, folder))
    with trials.explaining_the_database(search.database):
        study = search.open()
        with holding(search.owner, "datxai search"):
            search.run_trials(study)
        shutil.rmtree(search.owner, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: other processes are still working
            search.owner.parent.rmdir()
        search.report(study)


@dataclass(frozen=True)
class SearchProcess:
    """A process that works on a search.

    ``base`` is the run that trials start from, ``folder`` that of the search; ``changed`` holds the settings outside
    ``space`` that differ from those of the base.
    """

    settings: Config
    base: Run
    folder: Path
    space: Mapping[str, BaseDistribution]
    changed: Mapping[str, Any]
    identity: str = uuid.uuid4().hex

    @property
    def options(self) -> Search:
        return self.settings.search

    @property
    def database(self) -> Path:
        return self.folder / "study.db"

    @property
    def owner(self) -> Path:
        """A folder that is locked as long as this process is alive."""
        return self.folder / "at-work" / self.identity

    def open(self) -> Study:
        """Create or load the study. Raises `InputError` if it has another space, objective or run."""
        import optuna
        from optuna.pruners import MedianPruner, NopPruner

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        options = self.options
        engine_options = {"connect_args": {"timeout": 60}}
        storage = optuna.storages.RDBStorage(f"sqlite:///{self.database}", engine_kwargs=engine_options)
        median = MedianPruner(n_startup_trials=options.unpruned, n_warmup_steps=1)
        study = optuna.create_study(
            storage=storage,
            study_name=options.name,
            direction=OBJECTIVES[options.objective],
            pruner=median if options.pruning == "median" else NopPruner(),
            load_if_exists=True,
        )
        definition = {
            "space": dict(options.space), "objective": options.objective, "changed": dict(self.changed),
            "split": self.base.entry("split", "search")["fingerprint"],
        }  # fmt: skip
        with self._exclusively():
            existing = study.user_attrs.get("what")
            if existing is None:
                study.set_user_attr("what", definition)
            elif existing != yaml.safe_load(yaml.safe_dump(definition)):
                other = ", ".join(name for name in definition if existing.get(name) != definition[name])
                raise InputError(
                    f"{self.database}: is a search with another {other}, expected the one given now; choose another "
                    f"search.name={options.name}-2, or remove {self.folder}."
                )
        return study

    def run_trials(self, study: Study) -> None:
        """Make trials until there are enough, several of them in parallel."""
        n = max(1, self.options.processes)
        done = len(trials.finished(study))
        with Bar(self.options.trials, "trials") as bar, ThreadPoolExecutor(n) as pool:
            bar.update(min(done, self.options.trials))
            if done:
                bar.say(f"  {done} trials are done already")
            for worker in [pool.submit(self._work, study, bar) for _ in range(n)]:
                worker.result()

    def _work(self, study: Study, bar: Bar) -> None:
        """Make trials one after the other until there are enough."""
        failed = 0
        while (trial := self._next(study)) is not None:
            twin = trials.made_before(study, trial)
            try:
                value, pruned = self._make(trial) if twin is None else (trials.value_of(twin), trials.is_pruned(twin))
                failed = 0
            except InputError as error:
                study.tell(trial, state=trials.states().FAIL)
                failed += 1
                bar.say(f"  trial {trial.number} ended without a result: {error}")
                if failed == MAX_FAILURES:
                    raise InputError(
                        f"search: {MAX_FAILURES} trials in a row ended without a result, the last with: {error}"
                    ) from error
                continue
            if pruned:
                study.tell(trial, state=trials.states().PRUNED)
            else:
                study.tell(trial, value)
            self._remove_all_but_best(study)
            outcome = "ended early" if pruned else f"validation {self.options.objective} {value:.4f}"
            bar.say(f"  trial {trial.number}: {trials.describe(trial.params)}; {outcome}")
            bar.update()

    def _next(self, study: Study) -> Trial | None:
        """The next trial, trials of killed searches first; None when there are enough."""
        from optuna.samplers import TPESampler

        with self._exclusively():
            for lost in trials.running(study):
                if not _is_alive(self.folder / "at-work" / lost.user_attrs.get("owner", "none")):
                    study.tell(lost.number, state=trials.states().FAIL)
                    if lost.params.keys() == self.space.keys():  # else it was killed before all were proposed
                        study.enqueue_trial(lost.params)
            if len(trials.finished(study)) + len(trials.running(study)) >= self.options.trials:
                return None
            # The seed depends on the trial's number: neither other processes nor a resumed search repeat a trial.
            seed = np.random.SeedSequence([self.options.seed, len(study.get_trials(deepcopy=False))])
            study.sampler = TPESampler(seed=int(seed.generate_state(1)[0]), constant_liar=True)
            trial = study.ask({**self.space})
            trial.set_user_attr("owner", self.identity)
            return trial

    def _exclusively(self) -> contextlib.AbstractContextManager[None]:
        """A lock shared by all processes that work on the search."""
        return holding(self.folder, "datxai search", patience=60.0)

    def _make(self, trial: Trial) -> tuple[float, bool]:
        """Train with a trial's settings; returns the objective and whether the training was ended early."""
        name = trials.name_of(trial)
        run = Run(self._folder_of(name))
        self._write_experiment(name, trial.params, f"Trial {trial.number} of the search {self.options.name}.")
        with holding(run.folder, "datxai search", patience=PATIENCE_S):
            pass  # a training that outlived its search has finished
        watched = Watched(trial, run, self.options.objective)
        first = min(STAGES.index(STAGE_OF[key.partition(".")[0]]) for key in (*self.space, *self.changed))
        for stage in STAGES[first:]:
            with tempfile.TemporaryFile("w+") as errors, self._started(stage, name, run, errors) as process:
                while process.poll() is None:
                    time.sleep(POLL_S)
                    if stage == "train" and watched.should_end():
                        return watched.best, True
                errors.seek(0)
                message = errors.read().strip().rpartition("datxai: ")[2]
            if process.returncode:
                raise InputError(message or f"exit status {process.returncode}")
        watched.read()
        return watched.kept, False

    @contextlib.contextmanager
    def _started(self, stage: str, name: str, run: Run, errors: IO[str]) -> Iterator[subprocess.Popen]:
        """The process that makes a stage of a trial's run; it is terminated at the end of the block."""
        arguments = [f"run={run.folder}", f"base={self.base.folder}", f"experiment={name}"]
        if self.settings.network.target is not None:  # code is executed only if it is named on the command line
            arguments.append(f"network.target={self.settings.network.target}")
        cores = max(1, (os.cpu_count() or 1) // max(1, self.options.processes))
        arguments += [f"device={self.settings.device}", "--config-dir", str(self.folder)]
        process = subprocess.Popen(
            [sys.executable, "-m", "datxai", stage, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": str(cores)} if self.options.processes > 1 else None,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def _folder_of(self, name: str) -> Path:
        return self.folder / "trials" / name

    def _write_experiment(self, name: str, params: Mapping[str, Any], title: str) -> None:
        tree: dict[str, Any] = {}
        for key, value in {**self.changed, **params}.items():
            *parents, last = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        text = yaml.safe_dump(tree, sort_keys=False)
        write_text(self.folder / "experiment" / f"{name}.yaml", f"# @package _global_\n# {title}\n{text}")

    def _remove_all_but_best(self, study: Study) -> None:
        """Remove the runs of all finished trials but the best; weights take space, and the study keeps the results."""
        best = trials.best_of(study)
        kept = {trials.name_of(best)} if best else set()
        for trial in trials.finished(study):
            if (name := trials.name_of(trial)) not in kept:
                shutil.rmtree(self._folder_of(name), ignore_errors=True)
                (self.folder / "experiment" / f"{name}.yaml").unlink(missing_ok=True)

    def report(self, study: Study) -> None:
        """Write the table, the figure and the experiment file of the best trial, and log where they are."""
        from datxai.pages.charts import plot_search
        from datxai.pages.style import save_figure

        rows = [
            {
                "trial": trial.number,
                "state": "pruned" if trials.is_pruned(trial) else "finished",
                f"validation_{self.options.objective}": None if trials.is_pruned(trial) else trial.value,
                "epochs": len(trial.intermediate_values),
                **trial.params,
            }
            for trial in trials.finished(study)
        ]
        best = trials.best_of(study)
        if best is None:
            raise InputError(f"{self.folder}: no trial was finished, expected one at least; give search.trials=30.")
        write_table(self.folder / "trials.tsv", rows, list(rows[0]))
        figure = plot_search(
            rows,
            list(self.space),
            f"validation_{self.options.objective}",
            OBJECTIVES[self.options.objective] == "maximize",
            logarithmic=[name for name, distribution in self.space.items() if getattr(distribution, "log", False)],
            choices=[name for name, distribution in self.space.items() if hasattr(distribution, "choices")],
        )
        save_figure(figure, self.folder / "search")
        command = f"datxai --config-dir {self.folder} experiment=best base={self.base.folder} run=RUN_DIR"
        result = f"validation {self.options.objective} {best.value:.4f}"
        title = f"The best of {len(rows)} trials, trial {best.number} ({result})"
        self._write_experiment("best", best.params, f"{title}:\n#   {command}")
        log.info("%s: %s", title, trials.describe(best.params))
        log.info(
            "Its run goes on with `datxai run=%s`; its settings: %s", self._folder_of(trials.name_of(best)), command
        )
        log.info("Table and figure: %s", self.folder)


class Watched:
    """The progress of a trial's training, read from its growing history."""

    def __init__(self, trial: Trial, run: Run, objective: str):
        self.trial, self.history, self.objective = trial, run.model / "history.tsv", f"validation_{objective}"
        self.better = min if OBJECTIVES[objective] == "minimize" else max
        self.reported, self.kept, self.best = 0, math.nan, math.nan

    def read(self) -> list[float]:
        """The objective of every epoch so far; updates ``kept``, that of the kept weights, and ``best``."""
        if not self.history.is_file():
            return []
        rows = read_table(self.history)
        try:
            values = [float(row[self.objective]) for row in rows]
        except ValueError as error:
            raise InputError(f"{self.history}: has no {self.objective}, expected both labels in validation.") from error
        kept = [value for row, value in zip(rows, values) if row["kept"] == "1"]
        self.kept, self.best = (kept[-1] if kept else math.nan), self.better(values)
        return values

    def should_end(self) -> bool:
        """Report new epochs to the study; returns whether the training is worse than others were at its epoch."""
        for epoch, value in enumerate(self.read()[self.reported :], start=self.reported + 1):
            self.trial.report(value, epoch)
            self.reported = epoch
        return bool(self.reported) and self.trial.should_prune()


def _find_changes(settings: Config, base: Run) -> dict[str, Any]:
    """Settings of network and training that differ from those that the run was made with."""
    record = read_record(base.folder)
    recorded = record.settings() if record else {}
    current = flatten({"network": asdict(settings.network), "training": asdict(settings.training)})
    return {key: value for key, value in current.items() if key in recorded and recorded[key] != value}


def _is_alive(owner: Path) -> bool:
    """Whether the process that owns this folder still holds its lock."""
    if not owner.is_dir():
        return False
    try:
        with holding(owner, patience=0.0):
            return False
    except InputError:
        return True
