"""Region labels on `LATTICE`, symmetric about x = 0, from the packaged atlas or a user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from datxai.errors import InputError
from datxai.files import read_table
from datxai.imaging.lattice import LATTICE, MIDLINE, average, enclose, grow, shifted, vote
from datxai.volume import Grid, Volume

REQUIRED = ("caudate", "putamen", "thalamus")  # on both sides; any other region may be missing


def symmetrise_labels(image: Volume, names: Mapping[int, str]) -> np.ndarray:
    """A label image on `LATTICE`, made symmetric about x = 0.

    A voxel gets the label that fills most of it. Fractions are averaged over both sides and blurred by 1 mm.
    """
    labels = np.rint(image.data).astype(np.int32)
    index = {name: number for number, name in names.items()}
    opposite = np.arange(max(names) + 1)
    for name, number in index.items():
        if name.endswith("_left"):
            right = index[name.removesuffix("_left") + "_right"]
            opposite[[number, right]] = right, number
    boxes = dict(enumerate(ndimage.find_objects(labels), start=1))
    half = Grid((MIDLINE + 1, *LATTICE.shape[1:]), LATTICE.affine)

    def find_fraction(number: int, mirror: np.ndarray) -> tuple:
        box = grow(boxes[number], 1, labels.shape)
        return average(labels[box] == number, half, mirror @ shifted(image.affine, [s.start for s in box]))

    def fractions() -> Iterator[tuple]:
        for number, name in names.items():
            if name.endswith("_right"):
                continue
            sides = ((number, np.eye(4)), (opposite[number], np.diag([-1.0, 1.0, 1.0, 1.0])))
            averages = [find_fraction(*side) for side in sides if boxes.get(side[0])]
            if averages:
                box = grow(enclose([inner for inner, _ in averages]), 4, half.shape)
                mean = np.zeros([s.stop - s.start for s in box], np.float32)
                for inner, fraction in averages:
                    mean[tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, box))] += fraction / 2
                yield number, box, ndimage.gaussian_filter(mean, 1.0)

    left = vote(fractions(), half.shape)
    paired = opposite != np.arange(len(opposite))
    left[MIDLINE][paired[left[MIDLINE]]] = 0  # the plane x = 0 belongs to neither side
    return np.concatenate([left, opposite[left][-2::-1].astype(np.int16)])


def read_names(path: Path) -> dict[int, str]:
    """Names of the labels from a user's table, each with its side as a suffix."""
    rows = read_table(path)
    if not {"index", "name"} <= rows[0].keys():
        raise InputError(
            f"{path}: has the columns {', '.join(rows[0])}, expected index and name; rename them."
        )
    names: dict[int, str] = {}
    for row in rows:
        name = row["name"].lower()
        side = {"L": "_left", "R": "_right"}.get(row.get("hemisphere", "").upper(), "")
        if not row["index"].isdecimal() or not 0 < int(row["index"]) < 2**15 or int(row["index"]) in names:
            raise InputError(
                f"{path}: index {row['index']!r} is not from 1 to 32767 or is there twice; correct it."
            )
        names[int(row["index"])] = name if name.endswith(side) else name + side
    listed = set(names.values())
    expected = {f"{name}{side}" for name in REQUIRED for side in ("_left", "_right")}
    for side, opposite in (("_left", "_right"), ("_right", "_left")):
        expected |= {name.removesuffix(side) + opposite for name in listed if name.endswith(side)}
    if expected - listed:
        raise InputError(f"{path}: lacks {', '.join(sorted(expected - listed))}; add them to the table.")
    if len(listed) < len(names):
        raise InputError(f"{path}: several indices have the same name; give each region one index.")
    return names
