"""Preprocessed volumes as one memory map on disk, and as a data set of tensors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from datxai.errors import InputError
from datxai.files import read_json, replacing, write_json
from datxai.volume import Grid


@dataclass(frozen=True, eq=False)
class VolumeStore:
    """Volumes on one grid in one .npy file, read on demand.

    ``data`` is a read-only memory map, float32 of shape (n, X, Y, Z), in the order of ``case_ids``.
    """

    path: Path
    data: np.ndarray
    affine: np.ndarray
    case_ids: tuple[str, ...]

    def __reduce__(self):  # for worker processes: pickle the path, not a copy of the data
        return open_store, (self.path,)

    def __len__(self) -> int:
        return len(self.case_ids)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (X, Y, Z) of each volume."""
        return self.data.shape[1:]

    @property
    def grid(self) -> Grid:
        """Grid of all volumes."""
        return Grid(self.shape, self.affine)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {case_id: position for position, case_id in enumerate(self.case_ids)}

    def volume(self, case_id: str) -> np.ndarray:
        """A copy of one case's volume, float32 of shape (X, Y, Z)."""
        return np.array(self.data[self.find(case_id)])

    def find(self, case_id: str) -> int:
        """Position of a case in ``data``."""
        if case_id not in self._positions:
            raise InputError(
                f"{self.path}: holds no case {case_id!r} among {len(self)}; preprocess the cohort again."
            )
        return self._positions[case_id]


def write_store(
    path: str | os.PathLike, case_ids: Sequence[str], volumes: Iterable[np.ndarray], grid: Grid
) -> VolumeStore:
    """Write the volumes of cases to ``path``, see `write_store_of`; `InputError` if there is no case."""
    if not case_ids:
        raise InputError(f"{path}: no case to store, expected at least one.")
    if len({*case_ids}) < len(case_ids):
        duplicate = next(case_id for case_id, n in Counter(case_ids).items() if n > 1)
        raise InputError(f"{path}: case {duplicate!r} is listed twice, expected every case once.")
    return write_store_of(path, zip(case_ids, volumes, strict=True), grid)


def write_store_of(path: str | os.PathLike, cases: Iterable[tuple[str, np.ndarray]], grid: Grid) -> VolumeStore:
    """Write cases and their volumes to ``path`` (.npy) one by one, and a manifest beside it (.json).

    Memory holds one volume at a time. The manifest is written last: where it exists, the store is complete.
    Raises `InputError` if a volume does not have the shape of ``grid``.
    """
    path, case_ids = Path(path), []

    def write_header(stream: BinaryIO) -> int:
        """Write the header for the cases known so far; its length does not depend on their number."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(case_ids), *grid.shape)}
        stream.seek(0)
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.tell()

    with replacing(path) as temporary, temporary.open("wb") as stream:
        begin = write_header(stream)
        for case_id, volume in cases:
            if volume.shape != grid.shape:
                raise InputError(
                    f"{path}: case {case_id!r} has shape {volume.shape}, expected {grid.shape}; preprocess "
                    "it again."
                )
            stream.write(np.ascontiguousarray(volume, dtype="<f4").data)
            case_ids.append(case_id)
        assert write_header(stream) == begin, "NumPy leaves room for the number of cases to grow"
        _manifest(path).unlink(missing_ok=True)
    write_json(_manifest(path), {"case_ids": case_ids, "shape": grid.shape, "affine": grid.affine})
    return open_store(path)


def open_store(path: str | os.PathLike) -> VolumeStore:
    """Open a store written by `write_store`; `InputError` if it is missing or incomplete."""
    path = Path(path)
    if not path.is_file() or not _manifest(path).is_file():
        raise InputError(f"{path}: no complete store of volumes; run the stage that writes it.")
    manifest = read_json(_manifest(path))
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        data = np.empty(0)
    if data.shape != (len(manifest["case_ids"]), *manifest["shape"]) or data.dtype != np.float32:
        raise InputError(f"{path}: does not agree with its manifest; delete it and run the stage again.")
    return VolumeStore(path, data, np.array(manifest["affine"]), tuple(manifest["case_ids"]))


class CaseDataset(torch.utils.data.Dataset):
    """Cases of a store with their labels: (float32 tensor of shape [1, X, Y, Z], int label; -1 if unknown).

    Items are read from disk on demand; every item is a fresh copy.
    """

    def __init__(self, store: VolumeStore, case_ids: Sequence[str], labels: Sequence[int | None]):
        assert len(case_ids) == len(labels), (len(case_ids), len(labels))
        self.store = store
        self.case_ids = tuple(case_ids)
        self.labels = tuple(-1 if label is None else int(label) for label in labels)
        self._positions = [store.find(case_id) for case_id in case_ids]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        volume = np.array(self.store.data[self._positions[item]])
        return torch.from_numpy(volume)[None], self.labels[item]


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")
