"""Batches of cases, the next one read while the network works on the last."""

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
    """Volumes [1, X, Y, Z] float32, each with its label, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[torch.Tensor, int]: ...


def read_batches(
    dataset: LabelledSet, batches: Iterable[Sequence[int]], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Volumes [n, 1, X, Y, Z] and labels [n] of the cases in each of ``batches``, on ``device``.

    A thread of its own reads ahead by one batch, so two are in memory at most, however large the cohort.
    """

    def read(items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        volumes, labels = zip(*(dataset[item] for item in items))
        stacked, numbers = torch.stack(volumes), torch.tensor(labels)
        return (stacked.pin_memory(), numbers.pin_memory()) if device.type == "cuda" else (stacked, numbers)

    def ready(batch: Future) -> tuple[torch.Tensor, torch.Tensor]:
        volumes, labels = batch.result()
        return (
            volumes.to(device, non_blocking=True, memory_format=LAYOUT),
            labels.to(device, non_blocking=True),
        )

    reader, ahead = ThreadPoolExecutor(1, "reader"), None
    with _undisturbed():
        reader.submit(int)  # starts the thread
    try:
        for items in batches:
            ahead, last = reader.submit(read, items), ahead
            if last is not None:
                yield ready(last)
        if ahead is not None:
            yield ready(ahead)
    finally:
        reader.shutdown(wait=False)  # without a wait, which Ctrl-C could interrupt; nothing is left to do


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the end of this context.

    Python does not wait for a thread whose start they interrupt (before Python 3.13, nor for one whose end was being
    waited for); the thread then outlives the interpreter, and the process is aborted."""
    heard, ours = [], []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in heard:
            signal.raise_signal(number)


def list_labels(dataset: LabelledSet) -> list[int]:
    """The labels of all cases, in order."""
    return [dataset[number][1] for number in range(len(dataset))]
