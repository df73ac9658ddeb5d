"""Batches of cases, the next one read while the network works on the last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch.utils.data import Dataset

from datxai.model.network import LAYOUT


def read_batches(
    dataset: Dataset, batches: Iterable[Sequence[int]], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Volumes [n, 1, X, Y, Z] and labels [n] of the cases in each of ``batches``, on ``device``.

    A thread of its own reads ahead by one batch, so two are in memory at most, however large the cohort.
    """

    def read(items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        volumes, labels = zip(*(dataset[item] for item in items))
        read = torch.stack(volumes), torch.tensor(labels)
        return tuple(tensor.pin_memory() for tensor in read) if device.type == "cuda" else read

    def ready(batch: Future) -> tuple[torch.Tensor, torch.Tensor]:
        volumes, labels = batch.result()
        return (
            volumes.to(device, non_blocking=True, memory_format=LAYOUT),
            labels.to(device, non_blocking=True),
        )

    with ThreadPoolExecutor(1, "reader") as reader:
        ahead = None
        for items in batches:
            ahead, last = reader.submit(read, items), ahead
            if last is not None:
                yield ready(last)
        if ahead is not None:
            yield ready(ahead)
