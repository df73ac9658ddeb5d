import os
import sys

from datxai.progress import Bar, parallel


def square(x):
    return x * x, os.getpid()


def test_results_come_in_order_from_other_processes():
    results = list(parallel(square, ((i,) for i in range(7)), 7, 2, "squares"))
    assert [value for value, _ in results] == [i * i for i in range(7)]
    assert os.getpid() not in {process for _, process in results}


def test_one_job_stays_in_this_process():
    assert {process for _, process in parallel(square, [(2,)], 1, 1, "squares")} == {os.getpid()}


def test_tasks_count_as_much_as_they_make(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    counted = []
    monkeypatch.setattr(Bar, "update", lambda bar, n=1: counted.append(n))
    assert len(list(parallel(square, [(1,), (2,)], 2, 1, "squares", sizes=[3, 4]))) == 2
    assert counted == [3, 4] and "0/7 squares" in capsys.readouterr().err


def test_nothing_to_do():
    assert list(parallel(square, [], 0, -1, "squares")) == []


def test_the_bar_says_what_is_done(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Bar(3, "maps") as bar:
        bar.update(3)
    assert "maps" in capsys.readouterr().err


def test_short_work_leaves_nothing_in_a_log(capsys):
    assert len(list(parallel(square, [(1,), (2,)], 2, 1, "squares"))) == 2
    assert capsys.readouterr().err == ""
