import sys

import pytest

from datxai.errors import InputError
from datxai.model.tracking import track

ROWS = [{"epoch": 1, "train_loss": 0.75, "seconds": 2.0}, {"epoch": 2, "train_loss": 0.5, "seconds": 1.0}]


def send(tracker, folder, rows, max_epochs=2, learning_rate=1e-3):
    settings = {"max_epochs": max_epochs, "learning_rate": learning_rate, "augmentation": {"noise": 0.0}}
    with track(tracker, folder, settings) as take:
        for row in rows:
            take(row)


def test_none_leaves_nothing(tmp_path):
    send("none", tmp_path, ROWS)
    assert list(tmp_path.iterdir()) == []


def test_another_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"training\.tracking is 'wandb', expected one of none, tensorboard, mlflow"):
        send("wandb", tmp_path, [])


@pytest.mark.parametrize(("tracker", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_one_that_is_not_installed_is_said(tmp_path, monkeypatch, tracker, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{tracker}: the package is not installed; .*datxai\[tracking\]"):
        send(tracker, tmp_path, [])


@pytest.mark.filterwarnings("default")
def test_tensorboard_gets_every_row_once(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    send("tensorboard", tmp_path, ROWS[:1])
    send("tensorboard", tmp_path, ROWS[1:])  # gone on after a kill
    events = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(1, 0.75), (2, 0.5)]
    assert [event.value for event in events.Scalars("seconds")] == [2.0, 1.0]


@pytest.mark.filterwarnings("default")
def test_mlflow_has_one_run_for_a_training_that_went_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    send("mlflow", tmp_path, ROWS[:1])
    send("mlflow", tmp_path, ROWS[1:], max_epochs=9)
    (run,) = mlflow.search_runs(experiment_names=["datxai"], output_format="list")
    assert run.data.params["learning_rate"] == "0.001"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train_loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 0.75), (2, 0.5)]
    assert (tmp_path / "mlflow.db").is_file()
    send("mlflow", tmp_path, ROWS, learning_rate=1e-4)  # another training in the same folder
    assert len(mlflow.search_runs(experiment_names=["datxai"], output_format="list")) == 2
