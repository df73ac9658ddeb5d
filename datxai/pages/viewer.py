"""Data for the viewer in the pages: volumes packed into text, and colour scales."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from datxai.volume import Volume

LEVELS = 2047  # steps from zero to the largest absolute value of a volume; a step is about 0.002 of uptake
UPTAKE = {"Greys": "white to black", "gray": "black to white", "inferno": "colour"}
RELEVANCE = "RdBu_r"  # diverging, and distinguishable for colour-blind readers


def pack_space(
    name: str,
    volumes: Mapping[str, Volume],
    outline: np.ndarray | None = None,
    sides: Sequence[str] = ("L", "R"),
    tops: Mapping[str, float] | None = None,
) -> dict:
    """Pack the content of the viewer in one space, as JSON-serialisable data.

    Parameters
    ----------
    name : of the space, shown in the viewer
    volumes : ``spect`` (uptake) and ``relevance``, on one grid
    outline : array (X, Y, Z) on that grid, 1 in the brain, 2 in the regions outlined in it; the borders are drawn
    sides : letters at the lowest and highest x
    tops : ends of the colour scales, by volume; by default the largest value of each
    """
    spect, relevance = volumes["spect"], volumes["relevance"]
    assert spect.grid.same_as(relevance.grid), "one grid for both volumes"
    space = {
        "name": name,
        "sides": list(sides),
        "shape": list(spect.shape),
        "affine": spect.affine.tolist(),
        "spect": pack(spect.data),
        "relevance": pack(relevance.data),
    }
    if tops is not None:
        space["tops"] = dict(tops)
    return space if outline is None else {**space, "outline": pack(outline)}


def pack(data: np.ndarray) -> dict:
    """An array as text: ``data`` is base64 of deflated int16 in C order, low bytes first, then high bytes.

    A value is its integer times ``step``; `LEVELS` steps reach the largest absolute value.
    """
    data = np.asarray(data, np.float32)
    step = float(np.abs(data).max()) / LEVELS or 1.0
    levels = np.rint(data / np.float64(step)).astype("<i2")  # a step may be too small for float32
    halves = levels.reshape(-1).view(np.uint8).reshape(-1, 2).T
    return {"step": step, "data": base64.b64encode(zlib.compress(halves.tobytes(), 5)).decode()}


def pack_colours() -> dict:
    """Colour scales: ``uptake`` (title to scale) and ``relevance``; each is base64 of 256 RGB triples."""
    return {"uptake": {title: _pack_scale(name) for name, title in UPTAKE.items()}, "relevance": _pack_scale(RELEVANCE)}


def relevance_colours() -> np.ndarray:
    """The colour scale of relevance, uint8 (256, 3), from most negative to most positive."""
    return _scale(RELEVANCE)


def _scale(name: str) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps[name](np.arange(256), bytes=True)[:, :3]


def _pack_scale(name: str) -> str:
    return base64.b64encode(_scale(name).tobytes()).decode()
