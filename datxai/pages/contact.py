"""Contact sheets: every scan of a cohort at a glance, with the outlines of the template that it should match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from datxai.pages.slices import Frame, Shade, add_bar, outline, show
from datxai.pages.style import NEUTRAL, PAGE, SMALL, add_note, styled

PER_SHEET, COLUMNS = 48, 6
COLOURS = {"green": NEUTRAL, "amber": "#b07a00", "red": "#d55e00"}
GAP_MM, LABEL_MM = 8.0, 46.0  # between tiles, and for the name above each
BELOW = 0.9  # inches for the colour bar, its label and a note of two lines
MAX_UPTAKE = 4.0  # end of the colour scale, relative to the reference region; fixed so that sheets are comparable


@styled
def plot_contact_sheet(frame: Frame, scans: Sequence[Mapping], title: str = "") -> Figure:
    """An axial slice through the striatum and a sagittal one through the putamen of each scan, at most `PER_SHEET`.

    ``scans`` hold ``name``, ``verdict`` (green, amber, red) and ``image`` (X, Y, Z), uptake over the reference region.
    Outlines: brain, caudate and putamen of the template. On a single-slice grid only that slice is shown.
    """
    assert len(scans) <= PER_SHEET, len(scans)
    planes = [2] if frame.grid.shape[2] == 1 else [2, 0]
    levels = {axis: int(frame.striatum.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in planes}
    sizes = {axis: _size(frame.extent(axis)) for axis in planes}
    tile_width = sum(size[0] for size in sizes.values()) + GAP_MM
    tile_height = max(size[1] for size in sizes.values()) + LABEL_MM
    rows = -(-len(scans) // COLUMNS)
    height = PAGE * rows * tile_height / (COLUMNS * tile_width) + BELOW + 0.25  # inches; the title is above
    figure = Figure(figsize=(PAGE, height))
    axes = figure.add_axes((0, BELOW / height, 1, 1 - (BELOW + 0.25) / height))
    shade = Shade("uptake / reference region", "inferno", 0.0, MAX_UPTAKE, "white")
    for number, scan in enumerate(scans):
        row, column = divmod(number, COLUMNS)
        left, top = column * tile_width + GAP_MM / 2, -row * tile_height - LABEL_MM
        flag = "" if scan["verdict"] == "green" else f" ({scan['verdict']})"
        axes.text(
            left, top + 5, scan["name"] + flag, size=SMALL, va="bottom", color=COLOURS[scan["verdict"]],
            weight="bold" if flag else "normal",
        )  # fmt: skip
        for axis, (slice_width, slice_height) in sizes.items():
            extent = (left, left + slice_width, top - slice_height, top)
            image, brain, striatum = (
                frame.as_seen(np.take(data, levels[axis], axis), axis)
                for data in (scan["image"], frame.brain, frame.striatum)
            )
            show(axes, image, extent, shade)
            outline(axes, brain, extent, "#aaaaaa", 0.5)
            outline(axes, striatum, extent, "white", 0.4)
            left += slice_width
    axes.set(xlim=(0, COLUMNS * tile_width), ylim=(-rows * tile_height, 0), aspect="equal")
    axes.axis("off")
    figure.text(0.01, 1 - 0.15 / height, title, size=7, weight="bold", va="center")
    add_bar(figure, None, shade, "bottom", cax=figure.add_axes((0.35, (BELOW - 0.15) / height, 0.3, 0.07 / height)))
    positions = [frame.place(axis, level) for axis, level in levels.items()]
    side = "right" if frame.radiological else "left"
    add_note(
        figure,
        f"slices at {' and '.join(positions)}; the patient's left is on the {side} of the axial slices; outlines: "
        f"brain, caudate and putamen of the template; scans without a verdict are green",
    )
    return figure


def _size(extent: Sequence[float]) -> tuple[float, float]:
    """Width and height of a slice in mm."""
    return extent[1] - extent[0], extent[3] - extent[2]
