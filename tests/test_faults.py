"""The short form of `python -m benchmarks.faults`."""

import random
import shutil
import time

import pytest

from benchmarks import faults
from datxai.run import Run

SECONDS = 8.0


def require_good(outcomes, at_least):
    assert outcomes.total() >= at_least
    assert not {key: outcomes[key] for key in faults.BAD if outcomes[key]}


def test_mutated_inputs_are_read_or_refused(tmp_path):
    outcomes = faults.mutate_inputs(tmp_path, random.Random(1), time.monotonic() + SECONDS)
    require_good(outcomes, 30)
    assert outcomes["refused"] and outcomes["harmless"]


@pytest.fixture
def run_of_two(tmp_path):
    """A run with a table and a volume, and the record of the defaults."""
    from datxai import compose
    from datxai.record import recording

    compose.register_schemas()
    cfg = compose.compose(["run=r"])
    run = Run(tmp_path / "run")
    with recording(run.folder, compose.record_of(cfg, None, cfg.hydra.runtime.choices)):
        for stage, name in (("split", "split.tsv"), ("evaluate", "metrics.json")):
            inputs = {"split": run.identity("split", stage)} if stage == "evaluate" else {}
            with run.recording(stage, {}, inputs, [run.folder / name]):
                (run.folder / name).write_text("participant_id\tset\n" + "sub-1\ttest\n" * 9)
    return run


def test_damaged_files_are_refused(run_of_two):
    require_good(faults.damage_files(run_of_two.folder, random.Random(2), time.monotonic() + SECONDS), 5)
    assert run_of_two.holds("split") and run_of_two.holds("evaluate")


@pytest.mark.slow
def test_a_finished_run_stands_damage_and_a_full_disk(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    require_good(faults.damage_files(folder, random.Random(3), time.monotonic() + SECONDS), 5)
    require_good(faults.fail_writes(folder, random.Random(4), time.monotonic() + 2 * SECONDS), 3)
