"""Drawing slices of volumes: orientation, colour scales, outlines, colour bars.

Slices are shown in neurological convention (x < 0 on the viewer's left) unless the frame is radiological. After
mirroring, x < 0 is the hemisphere with the lower putaminal binding ratio, marked I (ipsilateral) as opposed to C
(contralateral). Uptake is shown from zero on a perceptually ordered colour map, relevance on a scale symmetric about
zero, one for each figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from datxai.volume import Grid

AXIAL = 2
SUPERSCRIPT = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


@dataclass(frozen=True, eq=False)
class Frame:
    """The grid, with axes along x, y, z, of all maps of a figure, and the outlines drawn on every slice.

    ``striatum`` (caudate and putamen) and ``brain`` are bool arrays (X, Y, Z). A ``radiological`` frame has x < 0 on
    the right of the picture.
    """

    grid: Grid
    striatum: np.ndarray
    brain: np.ndarray
    radiological: bool = False

    @property
    def level(self) -> int:
        """Index of the representative axial slice: the one with the largest area of striatum."""
        return largest_slice(self.striatum)

    def position(self, axis: int, index: float | np.integer) -> float:
        """World position in mm of slice ``index`` across ``axis``."""
        return float(self.grid.affine[axis, 3] + index * self.grid.affine[axis, axis])

    def place(self, axis: int, index: float | np.integer) -> str:
        """The position of slice ``index`` across ``axis`` as text: "z = \u22123 mm"."""
        return f"{'xyz'[axis]} = {self.position(axis, index):.0f} mm".replace("-", "\u2212")

    def turns(self, across: int) -> bool:
        """Whether slices across this axis are drawn with x < 0 on the right."""
        return self.radiological and across != 0

    def as_seen(self, cut: np.ndarray, across: int = AXIAL) -> np.ndarray:
        """A slice, or a volume of slices along its last axis, in the order of the picture from left to right."""
        return cut[::-1] if self.turns(across) else cut

    @property
    def sides(self) -> str:
        """A legend for the letters I and C and the outlines."""
        side = "right" if self.radiological else "left"
        legend = f"I ipsilateral (lower putamen, {side} of the picture), C contralateral; outline: caudate and putamen"
        return legend.replace("I ", "I\u00a0").replace("C ", "C\u00a0")  # a letter stays with its meaning

    def extent(self, across: int) -> tuple[float, ...]:
        """Left, right, bottom and top edge in mm of a slice across axis ``across``."""
        return tuple(
            self.position(axis, index)
            for axis in (axis for axis in range(3) if axis != across)
            for index in (-0.5, self.grid.shape[axis] - 0.5)
        )


@dataclass(frozen=True)
class Shade:
    """A colour scale: its label, colour map, the values at its ends, and a colour for lines and text on it."""

    label: str
    colours: str
    low: float
    high: float
    ink: str

    @classmethod
    def of_uptake(cls, parts: Iterable[np.ndarray | None]) -> Shade:
        """From zero to the brightest of ``parts``."""
        return cls("uptake / reference region", "inferno", 0.0, _largest(parts), "white")

    @classmethod
    def of_relevance(cls, parts: Iterable[np.ndarray | None]) -> Shade:
        """Symmetric about zero, up to the largest absolute value of ``parts``."""
        high = _largest(parts)
        return cls("relevance", "RdBu_r", -high, high, "black")


def largest_slice(mask: np.ndarray) -> int:
    """Index of the axial slice in which a bool mask (X, Y, Z) has its largest area."""
    return int(mask.sum(axis=(0, 1)).argmax())


class Plane(NamedTuple):
    """The plane of a slice: the axis across it, and its voxel along that axis, or None for the frame's level."""

    across: int = AXIAL
    level: int | None = None


AT_LEVEL = Plane()


def draw_slice(
    axes: Axes,
    frame: Frame,
    data: np.ndarray | None,
    shade: Shade,
    plane: Plane = AT_LEVEL,
    outlines: bool = True,
    under: np.ndarray | None = None,
    sides: tuple[str, str] | None = ("I", "C"),
) -> None:
    """Draw a slice (2-D, the frame's axes in ``plane``) in mm, or "no case" if it is None.

    With another slice ``under`` it, drawn in grey, values become more transparent towards zero.
    """
    across = plane.across
    extent = frame.extent(across)
    turned = frame.turns(across)
    axes.set(xlim=extent[1::-1] if turned else extent[:2], ylim=extent[2:], xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    if data is None:
        axes.text(0.5, 0.5, "no case", transform=axes.transAxes, ha="center", va="center", color="#777777")
        return
    alpha = None
    if under is not None:
        show(axes, under, extent, Shade("", "Greys", 0.0, 1.6 * _largest([under]), "black"))
        alpha = np.sqrt(np.abs(data) / max(abs(shade.low), abs(shade.high))).clip(0, 1)
    show(axes, data, extent, shade, alpha)
    if outlines:
        index = frame.level if plane.level is None else plane.level
        outline(axes, np.take(frame.brain, index, across), extent, "#888888", 0.6)
        outline(axes, np.take(frame.striatum, index, across), extent, shade.ink, 0.7)
    if sides:
        left, right = sides[::-1] if turned else sides
        for x, side, align in ((0.03, left, "left"), (0.97, right, "right")):
            axes.text(x, 0.97, side, transform=axes.transAxes, ha=align, va="top", color=shade.ink)


def show(axes: Axes, data: np.ndarray, extent: Sequence[float], shade: Shade, alpha: np.ndarray | None = None) -> None:
    """Draw a 2-D array whose first axis runs to the right and second upwards; ``alpha`` is its opacity."""
    left, right, bottom, top = extent
    axes.imshow(
        data.T, shade.colours, origin="lower", extent=(left, right, bottom, top), vmin=shade.low, vmax=shade.high,
        alpha=None if alpha is None else alpha.T, interpolation="bilinear", interpolation_stage="data",
    )  # fmt: skip


def outline(axes: Axes, mask: np.ndarray, extent: Sequence[float], colour: str, width: float) -> None:
    """Draw the border of a 2-D bool mask."""
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(float)  # closes the contour of a mask that touches the edge
    centres = []
    for n, low, high in zip(mask.shape, extent[::2], extent[1::2]):
        step = (high - low) / n
        centres.append(low + step * (np.arange(-1, n + 1) + 0.5))
    axes.contour(*centres, padded.T, levels=[0.5], colors=[colour], linewidths=[width])


def tile(data: np.ndarray, levels: Sequence[int] | np.ndarray, columns: int) -> np.ndarray:
    """Axial slices of a volume side by side in one 2-D array, from the lowest at the top left, row by row."""
    rows = -(-len(levels) // columns)
    x, y, _ = data.shape
    mosaic = np.zeros((columns * x, rows * y), data.dtype)
    for number, level in enumerate(levels):
        row, column = divmod(number, columns)
        top = (rows - 1 - row) * y
        mosaic[column * x : (column + 1) * x, top : top + y] = data[:, :, level]
    return mosaic


def add_bar(
    figure: Figure | SubFigure,
    axes: Sequence[Axes] | np.ndarray | None,
    shade: Shade,
    location: str = "right",
    **options,
) -> None:
    """Add the colour bar of ``axes`` (or, with ``cax``, in it); a power of ten goes into its label."""
    power = int(np.floor(np.log10(shade.high)))
    power = 0 if -2 < power < 3 else power
    norm = Normalize(shade.low / 10.0**power, shade.high / 10.0**power)
    bar = figure.colorbar(ScalarMappable(norm, shade.colours), ax=axes, location=location, **options)
    bar.set_label(shade.label + name_power(power))
    bar.outline.set_visible(False)


def name_power(power: int) -> str:
    """The end of a label whose numbers are divided by a power of ten."""
    return " / 10" + str(power).translate(SUPERSCRIPT) if power else ""


def _largest(parts: Iterable[np.ndarray | None]) -> float:
    """The largest absolute value, or 1 if that is zero or there is no array."""
    return max((float(np.abs(part).max()) for part in parts if part is not None), default=0.0) or 1.0
