"""Trials of an Optuna study, and errors of its database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datxai.errors import InputError
from datxai.files import hash_content

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

MIN_OPTUNA = 4


def states() -> Any:
    """Optuna's `TrialState`, imported only when needed."""
    from optuna.trial import TrialState

    return TrialState


def finished(study: Study) -> list[FrozenTrial]:
    """The trials that have ended, including pruned ones."""
    return study.get_trials(deepcopy=False, states=(states().COMPLETE, states().PRUNED))


def running(study: Study) -> list[FrozenTrial]:
    """The running trials, including those whose process was killed."""
    return study.get_trials(deepcopy=False, states=(states().RUNNING,))


def is_pruned(trial: FrozenTrial) -> bool:
    """Whether a trial was ended early."""
    return trial.state == states().PRUNED


def made_before(study: Study, trial: Trial) -> FrozenTrial | None:
    """A finished trial with the same settings."""
    return next((other for other in finished(study) if other.params == trial.params), None)


def value_of(trial: FrozenTrial) -> float:
    """The objective of a finished trial."""
    assert trial.value is not None, trial  # finished trials have one; for pruned ones it is that of the last epoch
    return trial.value


def best_of(study: Study) -> FrozenTrial | None:
    """The best of the finished trials that were not pruned; the first if several are equal."""
    complete = [trial for trial in finished(study) if not is_pruned(trial)]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    return min(complete, key=lambda trial: (sign * value_of(trial), trial.number), default=None)


def name_of(trial: FrozenTrial | Trial) -> str:
    """The name of a trial's run and experiment file, derived from its settings, so that equal trials share a name."""
    return f"trial_{hash_content(dict(trial.params))[:12]}"


def describe(params: Mapping[str, Any]) -> str:
    """A trial's settings in one line."""
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()
    )


def require_optuna() -> None:
    """Raise `InputError` if Optuna is missing or too old."""
    try:
        import optuna
    except ImportError as error:
        raise InputError("`datxai search` needs Optuna; pip install 'datxai[search]'.") from error
    if int(optuna.__version__.partition(".")[0]) < MIN_OPTUNA:  # Hydra's plug-in brings version 2
        raise InputError(
            f"`datxai search` needs Optuna {MIN_OPTUNA} or newer, here is {optuna.__version__}; pip install "
            f"'datxai[search]', in an environment without hydra-optuna-sweeper."
        )


@contextlib.contextmanager
def explaining_the_database(path: Path) -> Iterator[None]:
    """Turn SQLite's errors for a database that is locked, damaged or on a full disk into an `InputError`."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(
            f"{path}: {str(cause).splitlines()[0]}; where another program has it open, end that, and else remove the "
            "file and begin the search anew."
        ) from error
