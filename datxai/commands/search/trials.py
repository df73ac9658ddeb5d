"""Optuna's study: its trials, and what its database may answer with."""

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

OLDEST_OPTUNA = 4


def states() -> Any:
    """Optuna's, imported when they are asked for."""
    from optuna.trial import TrialState

    return TrialState


def finished(study: Study) -> list[FrozenTrial]:
    """The trials that have ended, pruned ones among them."""
    return study.get_trials(deepcopy=False, states=(states().COMPLETE, states().PRUNED))


def running(study: Study) -> list[FrozenTrial]:
    """The trials under way, lost ones among them."""
    return study.get_trials(deepcopy=False, states=(states().RUNNING,))


def is_pruned(trial: FrozenTrial) -> bool:
    """Whether a trial was ended before its time."""
    return trial.state == states().PRUNED


def made_before(study: Study, trial: Trial) -> FrozenTrial | None:
    """A finished trial with the same settings."""
    return next((other for other in finished(study) if other.params == trial.params), None)


def value_of(trial: FrozenTrial) -> float:
    """The objective of a finished trial."""
    assert trial.value is not None, trial  # a finished one has a value; of one that was ended, the last epoch's
    return trial.value


def best_of(study: Study) -> FrozenTrial | None:
    """The best of the trials that came to their end; the first of those that are alike."""
    whole = [trial for trial in finished(study) if not is_pruned(trial)]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    return min(whole, key=lambda trial: (sign * value_of(trial), trial.number), default=None)


def name_of(trial: FrozenTrial | Trial) -> str:
    """Of a trial's run and experiment file: by its settings, so that the same ones are not made twice."""
    return f"trial_{hash_content(dict(trial.params))[:12]}"


def describe(params: Mapping[str, Any]) -> str:
    """A trial's settings in a line."""
    told = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in params.items()}
    return ", ".join(f"{key}={value}" for key, value in told.items())


def require_optuna() -> None:
    """Refuse an environment without Optuna, or with one that is too old."""
    try:
        import optuna
    except ImportError as error:
        raise InputError("`datxai search` needs Optuna; pip install 'datxai[search]'.") from error
    if int(optuna.__version__.partition(".")[0]) < OLDEST_OPTUNA:  # Hydra's plug-in brings version 2
        raise InputError(
            f"`datxai search` needs Optuna {OLDEST_OPTUNA} or newer, here is {optuna.__version__}; pip install "
            f"'datxai[search]', in an environment without hydra-optuna-sweeper."
        )


@contextlib.contextmanager
def explaining_the_database(path: Path) -> Iterator[None]:
    """What SQLite says of a database that is locked, damaged or on a full disk, in one sentence."""
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
