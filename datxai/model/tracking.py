"""Sends the training's history to an experiment tracker as it grows, in addition to history.tsv."""

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
    """Yield a function that sends the numbers of a row of the history, with the epoch as the step.

    "tensorboard" writes event files below ``folder``/tensorboard. "mlflow" logs to the server or folder of
    MLFLOW_TRACKING_URI, by default a database in ``folder``; a resumed training stays the same MLflow run. "none"
    does nothing. Raises `InputError` if the tracker is unknown or not installed.
    """
    if tracker == "none":
        yield lambda row: None
    elif tracker == "tensorboard":
        tensorboard = _import_package("torch.utils.tensorboard", tracker)
        with tensorboard.SummaryWriter(str(folder / "tensorboard")) as writer:
            yield lambda row: [writer.add_scalar(name, value, row["epoch"]) for name, value in _numbers(row).items()]
    elif tracker == "mlflow":
        mlflow = _import_package("mlflow", tracker)
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
        mlflow.set_experiment("datxai")
        training_id = hash_content([str(folder.resolve()), {**settings, "max_epochs": None}])  # which may be raised
        previous = mlflow.search_runs(filter_string=f"tags.training = '{training_id}'", output_format="list")
        with mlflow.start_run(previous[0].info.run_id if previous else None, run_name=folder.name):
            if not previous:
                mlflow.set_tag("training", training_id)
                mlflow.log_params(settings)
            yield lambda row: mlflow.log_metrics(_numbers(row), step=row["epoch"])
    else:
        raise InputError(f"training.tracking is {tracker!r}, expected one of {', '.join(TRACKERS)}.")


def _numbers(row: Mapping) -> dict:
    return {name: value for name, value in row.items() if name != "epoch" and value is not None}


def _import_package(module: str, tracker: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"training.tracking={tracker}: the package is not installed; `pip install 'datxai[tracking]'` brings it."
        ) from error
