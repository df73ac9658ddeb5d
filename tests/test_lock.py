import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from datxai.errors import InputError
from datxai.lock import NAME, holding


def test_readers_share_and_a_writer_is_alone(tmp_path):
    with holding(tmp_path), holding(tmp_path):
        refused = pytest.raises(InputError, match="another command is reading there")
        with refused, holding(tmp_path, "datxai", 0):
            pass
    with holding(tmp_path / "run", "datxai explain"):
        for command in (None, "datxai report"):
            with (
                pytest.raises(InputError, match=rf"run: `datxai explain` is writing there \(process {os.getpid()} on "),
                holding(tmp_path / "run", command, 0),
            ):
                pass
    with holding(tmp_path / "run", "datxai"):
        pass
    assert not list(tmp_path.rglob(NAME)), "nothing is left"


def test_the_last_reader_takes_the_file_away(tmp_path):
    with holding(tmp_path):
        with holding(tmp_path):
            pass
        assert (tmp_path / NAME).is_file()
        with pytest.raises(InputError), holding(tmp_path, "datxai", 0):
            pass
    assert not (tmp_path / NAME).exists()


HOLD = """
import sys, time
from pathlib import Path
from datxai.lock import holding
with holding(Path(sys.argv[1]), "datxai train"):
    print("has it", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lock_ends_with_its_process_however_that_ends_and_not_before(tmp_path, number):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, "60"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"has it\n"
    process.send_signal(number)
    if number == signal.SIGSTOP:  # as by the lid of a laptop
        refused = pytest.raises(InputError, match=rf"`datxai train` is writing there \(process {process.pid} ")
        with refused, holding(tmp_path, "datxai", 0.2):
            pass
        process.kill()
    process.communicate()
    assert (tmp_path / NAME).exists(), "left by the kill"
    with holding(tmp_path, "datxai", 0):
        pass
    assert not (tmp_path / NAME).exists()


def test_one_who_is_done_in_a_moment_is_waited_for(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, "0.5"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"has it\n"
    with holding(tmp_path, "datxai", 30):
        process.communicate(timeout=30)


def test_where_there_are_no_locks_work_goes_on(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with holding(tmp_path, "datxai"), holding(tmp_path, "datxai"), holding(tmp_path):
        pass


def test_a_folder_that_is_not_there_or_may_not_be_written_is_read_without(tmp_path, monkeypatch):
    with holding(tmp_path / "gone"):
        assert not (tmp_path / "gone").exists()


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("kept")
    (tmp_path / NAME).symlink_to(tmp_path / "theirs")
    for command in (None, "datxai"):
        with pytest.raises(InputError, match="is a link"), holding(tmp_path, command):
            pass
    assert (tmp_path / "theirs").read_text() == "kept"


def test_many_at_once_never_write_together(tmp_path):
    code = """
import os, sys, time
from pathlib import Path
from datxai.lock import holding
for _ in range(20):
    with holding(Path(sys.argv[1]), "datxai", 60):
        os.close(os.open(Path(sys.argv[1]) / "alone", os.O_CREAT | os.O_EXCL))
        time.sleep(0.002)
        os.unlink(Path(sys.argv[1]) / "alone")
"""
    begin = time.monotonic()
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert time.monotonic() - begin < 120


def test_whoever_is_alone_removes_what_killed_ones_left(tmp_path):
    def litter():
        for name in ("run", "run/cases", "run/job", "elsewhere"):
            (tmp_path / name / ".part-x").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / ".part-x" / "volume.nii.gz").touch()
        return lambda: {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(".part-x")}

    (tmp_path / "run" / "job").mkdir(parents=True)
    (tmp_path / "run" / "job" / "manifest.json").touch()
    (tmp_path / "run" / "linked").symlink_to(tmp_path / "elsewhere")
    left = litter()
    with holding(tmp_path / "run", "datxai"):
        assert left() == {"run/job", "elsewhere"}, "those of another run, or behind a link, are not ours"
    litter()
    with holding(tmp_path / "run"):
        with holding(tmp_path / "run"):
            pass
        assert "run/cases" in left(), "somebody may be writing a case"
    assert left() == {"run/job", "elsewhere"}
