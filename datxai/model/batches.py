"""Batches of cases; the next one is read while the network works on the current one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch

from datxai.model.network import LAYOUT


class LabelledSet(Protocol):
    """A dataset that returns (volume [1, X, Y, Z] float32, label) by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[torch.Tensor, int]: ...


def read_batches(
    dataset: LabelledSet, batches: Iterable[Sequence[int]], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Volumes [n, 1, X, Y, Z] and labels [n] of the cases in each of ``batches``, on ``device``.

    A separate thread reads one batch ahead, so at most two are in memory, however large the cohort.
    """

    def read(items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        volumes, labels = zip(*(dataset[item] for item in items))
        batch = torch.stack(volumes), torch.tensor(labels)
        return (batch[0].pin_memory(), batch[1].pin_memory()) if device.type == "cuda" else batch

    def to_device(batch: Future) -> tuple[torch.Tensor, torch.Tensor]:
        volumes, labels = batch.result()
        return (
            volumes.to(device, non_blocking=True, memory_format=LAYOUT),
            labels.to(device, non_blocking=True),
        )

    reader, pending = ThreadPoolExecutor(1, "reader"), None
    with _signals_deferred():
        reader.submit(int)  # starts the thread
    try:
        for items in batches:
            pending, previous = reader.submit(read, items), pending
            if previous is not None:
                yield to_device(previous)
        if pending is not None:
            yield to_device(pending)
    finally:
        reader.shutdown(wait=False)  # Ctrl-C could interrupt a wait, and there is nothing to wait for


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM to the end of this context.

    Python does not wait for a thread if a signal interrupted its start (before Python 3.13, nor if one interrupted a
    join); the thread then outlives the interpreter, and the process is aborted."""
    received, deferred = [], []
    if threading.current_thread() is threading.main_thread():
        deferred = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in deferred}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)


def list_labels(dataset: LabelledSet) -> list[int]:
    """The labels of all cases, in order."""
    return [dataset[number][1] for number in range(len(dataset))]
