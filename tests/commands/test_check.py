"""`datxai check`: every file of a run is read, and what is damaged is named with the command that makes it again."""

import logging
import os

import pytest

from datxai.commands import check
from datxai.config import Config
from datxai.errors import InputError
from datxai.run import Run


@pytest.fixture
def run(tmp_path):
    """A run with a table, and a second explanation with a map."""
    run, other = Run(tmp_path), Run(tmp_path, "eps")
    with run.recording("train", {}, {}, [run.predictions]):
        run.predictions.write_text("as it was made")
    with other.recording("explain", {}, {}, [other.relevance]):
        other.relevance.mkdir(parents=True)
        (other.relevance / "map").write_text("as it was made")
    return run


def test_a_whole_run(run, caplog):
    with caplog.at_level(logging.INFO):
        check.run(Config(), run)
    assert "2 files of 2 stages, all as they were written" in caplog.text


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("predictions.tsv", "datxai train run={}`"),
        ("explanations/eps/relevance/map", "datxai explain run={} explanation=eps`"),
    ],
)
def test_a_change_that_size_and_time_do_not_show(run, caplog, place, command):
    path = run.folder / place
    state = path.stat()
    path.write_text("AS IT WAS MADE")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with caplog.at_level(logging.INFO), pytest.raises(InputError, match="damaged or missing: 1 of 2 files"):
        check.run(Config(), run)
    (line,) = caplog.messages
    assert line.startswith(f"{path}: ") and command.format(run.folder) in line


def test_what_is_missing(run):
    run.predictions.unlink()
    with pytest.raises(InputError, match="damaged or missing: 1 of 2 files"):
        check.run(Config(), run)
