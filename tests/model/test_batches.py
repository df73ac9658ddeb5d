import signal
import threading
import time

import pytest
import torch

from datxai.model.batches import read_batches

CPU = torch.device("cpu")


class Slow(torch.utils.data.Dataset):
    """Cases of their own index, each of which takes a while to read; who reads, and how many are alive, is noted."""

    def __init__(self, n=12, wait=0.0):
        self.n, self.wait, self.begun, self.threads = n, wait, [], set()

    def __len__(self):
        return self.n

    def __getitem__(self, item):
        self.begun.append(item)
        self.threads.add(threading.current_thread().name)
        time.sleep(self.wait)
        return torch.full((1, 2, 3, 4), float(item)), item % 2


def test_batches_come_as_asked_for():
    batches = [[3, 1], [0, 0], [5]]
    found = list(read_batches(Slow(), batches, CPU))
    assert [volumes[:, 0, 0, 0, 0].tolist() for volumes, _ in found] == batches
    assert [labels.tolist() for _, labels in found] == [[1, 1], [0, 0], [1]]
    assert found[0][0].shape == (2, 1, 2, 3, 4)
    assert found[0][0].is_contiguous(memory_format=torch.channels_last_3d)
    assert list(read_batches(Slow(), [], CPU)) == []


def test_one_batch_is_read_ahead_and_no_more():
    dataset = Slow()
    reading = read_batches(dataset, [[0, 1], [2, 3], [4, 5], [6, 7]], CPU)
    next(reading)
    deadline = time.monotonic() + 10
    while len(dataset.begun) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert dataset.begun == [0, 1, 2, 3]
    reading.close()
    assert threading.main_thread().name not in dataset.threads


def test_who_stops_early_does_not_wait_for_the_thread():
    go_on = threading.Event()

    class Stuck(Slow):
        def __getitem__(self, item):
            assert item == 0 or go_on.wait(60)
            return super().__getitem__(item)

    reading = read_batches(Stuck(), [[0], [1]], CPU)
    next(reading)
    rescue = threading.Timer(5, go_on.set)
    rescue.start()
    reading.close()
    assert not go_on.is_set()
    rescue.cancel()
    go_on.set()


def test_ctrl_c_while_the_thread_is_started_is_heard_once_it_stands(monkeypatch):
    start, started = threading.Thread.start, []

    def disturbed(thread):
        signal.raise_signal(signal.SIGINT)
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", disturbed)
    reading = read_batches(Slow(), [[0], [1]], CPU)
    with pytest.raises(KeyboardInterrupt):
        next(reading)
    assert [thread.name for thread in started] == ["reader_0"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_reading_hides_behind_the_work():
    step, n = 0.05, 8
    start = time.perf_counter()
    for _ in read_batches(Slow(wait=step), [[number] for number in range(n)], CPU):
        time.sleep(step)
    seconds = time.perf_counter() - start
    assert seconds < 1.6 * n * step  # one after the other would be twice


def test_a_case_that_cannot_be_read_is_raised_where_it_is_used():
    with pytest.raises(IndexError):
        list(read_batches([(torch.zeros(1, 2, 2, 2), 0)], [[0], [1]], CPU))
