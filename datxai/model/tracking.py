"""The training's history sent to an experiment tracker as it grows, beside history.tsv."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from datxai.errors import InputError
from datxai.files import hash_content

TRACKERS = ("none", "tensorboard", "mlflow")


@contextmanager
def track(tracker: str, folder: Path, settings: Mapping) -> Iterator[Callable[[Mapping], object]]:
    """Yield what takes a row of the history: a function that sends its numbers, with the epoch as the step.

    "tensorboard" writes event files below ``folder``/tensorboard. "mlflow" logs to the server or folder of
    MLFLOW_TRACKING_URI, by default a database in ``folder``; a training that goes on stays the same MLflow run. "none"
    does nothing. Raises `InputError` for another tracker, or one that is not installed.
    """
    if tracker == "none":
        yield lambda row: None
    elif tracker == "tensorboard":
        board = _installed("torch.utils.tensorboard", tracker)
        with board.SummaryWriter(str(folder / "tensorboard")) as writer:
            yield lambda row: [writer.add_scalar(name, value, row["epoch"]) for name, value in _numbers(row).items()]
    elif tracker == "mlflow":
        mlflow = _installed("mlflow", tracker)
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
        mlflow.set_experiment("datxai")
        name = hash_content([str(folder.resolve()), {**settings, "max_epochs": None}])  # it may be raised
        same = mlflow.search_runs(filter_string=f"tags.training = '{name}'", output_format="list")
        with mlflow.start_run(same[0].info.run_id if same else None, run_name=folder.name):
            if not same:
                mlflow.set_tag("training", name)
                mlflow.log_params(settings)
            yield lambda row: mlflow.log_metrics(_numbers(row), step=row["epoch"])
    else:
        raise InputError(f"training.tracking is {tracker!r}, expected one of {', '.join(TRACKERS)}.")


def _numbers(row: Mapping) -> dict:
    return {name: value for name, value in row.items() if name != "epoch" and value is not None}


def _installed(module: str, tracker: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"training.tracking={tracker}: the package is not installed; `pip install 'datxai[tracking]'` brings it."
        ) from error
