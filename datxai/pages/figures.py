"""Figures of images and relevance maps on slices; each function returns a Figure for `style.save_figure`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from datxai.analysis.spectral import Strategies
from datxai.pages.slices import Frame, Plane, Shade, add_bar, draw_slice, largest_slice, name_power, outline, show, tile
from datxai.pages.style import (
    COLOURS,
    COLUMN,
    GROUP_NAMES,
    NEUTRAL,
    PAGE,
    REDUCED,
    SMALL,
    add_note,
    styled,
)  # fmt: skip

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}


@styled
def plot_mean_maps(
    frame: Frame,
    images: Mapping[str, np.ndarray | None],
    maps: Mapping[str, np.ndarray | None],
    counts: Mapping[str, int],
) -> Figure:
    """Mean image, mean relevance and heat map on one axial slice (Fig. 3 of Nazari et al. 2022).

    ``images`` holds ``TN, TP, template``; ``maps`` holds ``TN, TP, heat`` (arrays (X, Y, Z), None for an
    empty group); ``counts`` the number of cases behind TN and TP.
    """
    figure = Figure(figsize=(COLUMN, 2.85), layout="constrained")
    groups = [f"{GROUP_NAMES[group].capitalize()}\n(n = {counts.get(group, 0)})" for group in ("TN", "TP")]
    for row, volumes, last, make_shade in zip(
        figure.subplots(2, 3),
        (
            [images.get(key) for key in ("TN", "TP", "template")],
            [maps.get(key) for key in ("TN", "TP", "heat")],
        ),
        ("Template", "Heat map\n(TP \u2212 TN)"),
        (Shade.of_uptake, Shade.of_relevance),
    ):
        slices = [None if volume is None else volume[:, :, frame.level] for volume in volumes]
        shade = make_shade(slices)
        for axes, data, title in zip(row, slices, (*groups, last)):
            draw_slice(axes, frame, data, shade)
            if last == "Template" or title == last:  # name each group once, above both of its panels
                axes.set_title(title)
        row[0].set_ylabel("mean image" if last == "Template" else "mean relevance")
        add_bar(figure, row, shade)
    add_note(figure, f"axial slice at {frame.place(2, frame.level)}; {frame.sides}")
    return figure


@styled
def plot_all_slices(frame: Frame, maps: Mapping[str, np.ndarray | None]) -> Figure:
    """Every axial slice of the mean relevance maps (``TN``, ``TP``) and of their difference (``heat``)."""
    names = {
        "TN": "Mean relevance, true negative", "TP": "Mean relevance, true positive",
        "heat": "Heat map (TP \u2212 TN)",
    }  # fmt: skip
    shown = {key: data for key in names if (data := maps.get(key)) is not None}
    keys = list(shown)
    levels = np.flatnonzero(frame.brain.any(axis=(0, 1)))
    columns = min(max(len(levels), 4), 12)
    rows = -(-len(levels) // columns)
    width, height = (frame.grid.shape[axis] * frame.grid.spacing[axis] for axis in (0, 1))
    figure_height = max(len(keys), 1) * (6.1 / columns * rows * height / width + 0.25) + 0.2
    figure = Figure(figsize=(PAGE, figure_height), layout="constrained")
    if not keys:
        add_note(figure, "no correctly classified case")
        return figure
    shade = Shade.of_relevance(shown.values())
    extent = (0, columns * width, 0, rows * height)
    panels = figure.subplots(len(keys), 1, squeeze=False)[:, 0]
    for axes, key in zip(panels, keys):
        volumes = (shown[key], frame.brain, frame.striatum)
        data, brain, striatum = (tile(frame.as_seen(volume), levels, columns) for volume in volumes)
        show(axes, data, extent, shade)
        outline(axes, brain, extent, "#999999", 0.4)
        outline(axes, striatum, extent, "black", 0.5)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(f"{names[key]}; {'C left, I right' if frame.radiological else 'I left, C right'}", loc="left")
        for number, level in enumerate(levels):
            row, column = divmod(number, columns)
            axes.text(
                (column + 0.96) * width, (rows - row - 0.03) * height, frame.place(2, level)[4:-3],
                fontsize=SMALL, color=NEUTRAL, ha="right", va="top",
            )  # fmt: skip
    add_bar(figure, panels, shade, shrink=1 / len(keys), aspect=30)
    add_note(figure, f"axial slices, z in mm; {frame.sides}")
    return figure


@styled
def plot_explanations(
    frame: Frame, maps: Mapping[str, Mapping[str, np.ndarray | None]], counts: Mapping[str, int]
) -> Figure:
    """Mean relevance of each group by several explanations of the same decisions, one axial slice each.

    ``maps``: name of the explanation to ``TN, FP, FN, TP, heat`` (arrays (X, Y, Z), None for an empty group). Each
    explanation has its own scale, since methods differ in their units.
    """
    titles = {group: f"{GROUP_NAMES[group].capitalize()}\n(n = {counts.get(group, 0)})" for group in GROUP_NAMES}
    titles["heat"] = "Heat map\n(TP \u2212 TN)"
    figure = Figure(figsize=(PAGE, 0.5 + 1.35 * len(maps)), layout="constrained")
    panels = figure.subplots(len(maps), len(titles), squeeze=False)
    for number, (row, (name, means)) in enumerate(zip(panels, maps.items())):
        slices = {key: None if (data := means.get(key)) is None else data[:, :, frame.level] for key in titles}
        shade = Shade.of_relevance(slices.values())
        for axes, (key, title) in zip(row, titles.items()):
            draw_slice(axes, frame, slices[key], shade)
            if number == 0:
                axes.set_title(title)
        row[0].set_ylabel(_shorten(name, 24))
        add_bar(figure, row, shade)
    add_note(figure, f"axial slice at {frame.place(2, frame.level)}; {frame.sides}")
    return figure


@styled
def plot_misclassified(
    frame: Frame,
    images: Mapping[str, np.ndarray | None],
    maps: Mapping[str, np.ndarray | None],
    cases: Iterable[Mapping],
) -> Figure:
    """Image and relevance of each misclassified case next to the TN and TP means (Fig. 4, Nazari et al. 2022).

    Each case holds ``case_id``, ``group`` (FN or FP), ``image`` and ``relevance`` (X, Y, Z) and ``consistent`` (true,
    false or None). Only one slice of each is kept, so that a generator of cases needs little memory.
    """
    level = frame.level
    means = (
        {
            "case_id": "mean",
            "group": key,
            "image": images.get(key),
            "relevance": maps.get(key),
            "consistent": None,
        }
        for key in ("TN", "TP")
    )
    tiles = []
    for case in chain(means, cases):
        pair = (None if case[key] is None else np.array(case[key][:, :, level]) for key in ("image", "relevance"))
        tiles.append((case["case_id"], case["group"], case["consistent"], *pair))
    columns = min(max(len(tiles), 3), 8)
    rows = -(-len(tiles) // columns)
    width = min(PAGE, columns * PAGE / 6)
    tile_width = 0.92 * width / columns  # inches, as all lengths here
    size = np.multiply(frame.grid.shape, frame.grid.spacing)
    tile_height = tile_width * size[1] / size[0]
    bottom_margin = 0.85  # for the colour bars
    height = rows * (2 * tile_height + 0.45) + bottom_margin
    figure = Figure(figsize=(width, height))
    shades = (Shade.of_uptake(t[3] for t in tiles), Shade.of_relevance(t[4] for t in tiles))
    for number, (name, group, consistent, *pair) in enumerate(tiles):
        row, column = divmod(number, columns)
        for part, (data, shade) in enumerate(zip(pair, shades)):
            bottom = height - row * (2 * tile_height + 0.45) - (part + 1) * tile_height - 0.2 - 0.06 * part
            axes = figure.add_axes(
                ((column + 0.04) / columns, bottom / height, tile_width / width, tile_height / height)
            )
            draw_slice(axes, frame, data, shade)
            if part == 0:
                colour = "black" if number < 2 else COLOURS[group]
                axes.set_title(f"{group} {_shorten(name, 12)}", size=6.5, color=colour, weight="bold", pad=3)
            elif consistent is False:
                axes.set_xlabel("inconsistent", size=6.5, color=REDUCED, style="italic", labelpad=2)
    if len(tiles) == 2:
        figure.text(2.08 / columns, (bottom_margin + tile_height) / height, "no misclassified\ncase", color=NEUTRAL)
    for left, shade in zip((0.05, 0.55), shades):
        bar = figure.add_axes((left, 0.6 / height, 0.4, 0.1 / height))
        add_bar(figure, None, shade, "bottom", cax=bar)
    add_note(figure, f"axial slice at {frame.place(2, level)}; {frame.sides}")
    return figure


@styled
def plot_roi_histogram(
    frame: Frame,
    roi: np.ndarray,
    image: np.ndarray | None,
    values: Sequence[float],
    groups: Sequence[str],
    cutoff: float = 0.0,
) -> Figure:
    """Relevance in the ipsilateral putamen, coloured by classification (Fig. 5 of Nazari et al. 2022).

    ``roi`` is a bool array (X, Y, Z), drawn on ``image`` (mean of the true negative cases); ``values`` and
    ``groups`` (TN, TP, FN, FP) hold one entry per case.
    """
    figure = Figure(figsize=(COLUMN, 1.9))
    positions = ((0.0, 0.34, 0.36, 0.48), (0.05, 0.28, 0.26, 0.03), (0.49, 0.23, 0.49, 0.53))
    left, bar, right = map(figure.add_axes, positions)
    level = largest_slice(roi)
    data = None if image is None else image[:, :, level]
    shade = Shade.of_uptake([data])
    draw_slice(left, frame, data, shade, outlines=False)
    outline(left, roi[:, :, level], frame.extent(2), "#7fffd4", 1.2)
    left.set_title(f"ROI on mean TN,\n{frame.place(2, level)}")
    add_bar(figure, None, replace(shade, label="uptake /\nreference region"), "bottom", cax=bar)
    relevance, case_groups = np.asarray(values, float), np.asarray(groups)
    order = [group for group in COLOURS if (case_groups == group).any()]
    if order:
        right.hist(
            [relevance[case_groups == group] for group in order],
            bins=_bins(relevance, cutoff).tolist(),
            stacked=True,
            color=[COLOURS[group] for group in order],
            label=[f"{group} ({(case_groups == group).sum()})" for group in order],
            edgecolor="white",
            linewidth=0.4,
        )
    right.axvline(cutoff, color="black", linewidth=0.9, linestyle="--", label=f"cutoff {cutoff:g}")
    figure.legend(
        *right.get_legend_handles_labels(), loc="lower right", bbox_to_anchor=(1, 0.77), ncols=3, handlelength=1.0,
        columnspacing=0.9, borderaxespad=0.2,
    )  # fmt: skip
    right.yaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportCallIssue]  # of MaxNLocator
    power = int(np.floor(np.log10(np.abs(relevance).max()))) if np.any(relevance) else 0
    right.xaxis.set_major_formatter(lambda value, _: f"{value / 10.0**power:g}".replace("-", "\u2212"))
    right.set(xlabel="relevance in the putamen (I)" + name_power(power), ylabel="cases")
    return figure


@styled
def plot_case(
    frame: Frame,
    image: np.ndarray,
    relevance: np.ndarray,
    peak: Sequence[int],
    sides: tuple[str, str] = ("I", "C"),
    prior: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """One case: uptake and relevance on the orthogonal slices through voxel ``peak``.

    ``sides`` names the hemispheres at x < 0 and x > 0: ("I", "C") for a mirrored case, ("L", "R") in the patient's own
    space. Planes whose slices are one voxel wide, as on a single-slice grid, are left out. ``prior`` holds uptake and
    relevance of an earlier scan, each drawn below that of the case on the same slices and scale.
    """
    planes = {name: axis for name, axis in PLANES.items() if min(np.delete(frame.grid.shape, axis)) > 1}
    widths = [extent[1] - extent[0] for extent in map(frame.extent, planes.values())]
    scans = [(image, relevance), *([prior] if prior else [])]
    uptake_slices, relevance_slices = (
        [[np.take(data, peak[axis], axis) for axis in planes.values()] for data in volumes] for volumes in zip(*scans)
    )
    n = len(scans)
    figure = Figure(figsize=(1.6 * len(planes) + 0.6, 3.6 * n), layout="constrained")
    grid = figure.subplots(2 * n, len(planes), squeeze=False, width_ratios=widths)
    backgrounds = [[None] * len(planes)] * n
    for rows, slices, under, shade in (
        (grid[:n], uptake_slices, backgrounds, Shade.of_uptake(chain(*uptake_slices))),
        (grid[n:], relevance_slices, uptake_slices, Shade.of_relevance(chain(*relevance_slices))),
    ):
        for panels, cuts, background, prefix in zip(rows, slices, under, ("", "earlier: ")):
            for axes, cut, below, (name, axis) in zip(panels, cuts, background, planes.items()):
                letters = sides if axis else None
                draw_slice(axes, frame, cut, shade, Plane(axis, peak[axis]), under=below, sides=letters)
                _draw_crosshair(axes, frame, axis, peak)
                axes.set_title(f"{prefix}{name}, {frame.place(axis, peak[axis])}")
        add_bar(figure, rows, shade)
    return figure


def _draw_crosshair(axes: Axes, frame: Frame, across: int, point: Sequence[int]) -> None:
    """Draw lines through a voxel on a slice across an axis."""
    for line, other in zip((axes.axvline, axes.axhline), (axis for axis in range(3) if axis != across)):
        line(frame.position(other, point[other]), color="#888888", linewidth=0.5)


def _bins(values: np.ndarray, cutoff: float) -> np.ndarray:
    """Edges of equal bins, one of which is the cutoff, so that no bar holds cases from both sides of it."""
    low, high = min([cutoff, *values]), max([cutoff, *values])
    width = (high - low) / np.clip(2 * np.sqrt(len(values)), 8, 40) or 1.0
    below, above = (int(np.ceil(abs(end - cutoff) / width * (1 + 1e-9))) for end in (low, high))
    return cutoff + width * np.arange(-below, max(above, 1) + 1)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\u2026"


@styled
def plot_strategies(
    frame: Frame,
    strategies: Strategies,
    maps: Sequence[np.ndarray],
    names: Sequence[str],
    explained: str = "the explained output",
) -> Figure:
    """Groups of relevance maps: the eigengap, an embedding, and the mean and prototype of each group.

    ``strategies``: of `datxai.analysis.spectral.find_strategies`; ``maps`` (X, Y, Z) and ``names`` of the same cases.
    ``explained`` is the output that red speaks for.
    """
    heights = (2.0, 1.9 * -(-strategies.n // 3))
    figure = Figure(figsize=(PAGE, sum(heights)), layout="constrained")
    charts, pictures = np.asarray(figure.subfigures(2, 1, height_ratios=heights))
    spectrum, plane = charts.subplots(1, 2)
    colours = (*COLOURS.values(), "#009e73", "#cc79a7", "#f0e442", "black")
    numbers = np.arange(1, len(strategies.eigenvalues) + 1)
    spectrum.plot(numbers, strategies.eigenvalues, "o-", color=NEUTRAL, markersize=3, linewidth=0.8)
    gap_start = int(np.diff(strategies.eigenvalues)[1:].argmax()) + 2
    spectrum.axvspan(gap_start, gap_start + 1, color="#eeeeee")
    annotation = f"gap {strategies.gap:.2f}\np = {strategies.p:.3f}"
    spectrum.text(gap_start + 1.1, 0.02, annotation, va="bottom", transform=spectrum.get_xaxis_transform())
    spectrum.set(xlabel="number", ylabel="eigenvalue", xticks=numbers, title="Spectrum of the graph of maps")
    for number, prototype in enumerate(strategies.prototypes):
        members = strategies.clusters == number
        style = {"color": colours[number], "linewidths": 0, "s": 14, "alpha": 0.7}
        plane.scatter(*strategies.embedding[members].T, label=f"group {number + 1} ({members.sum()})", **style)
        plane.scatter(*strategies.embedding[prototype], s=40, facecolors="none", edgecolors="black", linewidths=0.8)
    title = "Principal components of the maps (ring: prototype)"
    plane.set(xlabel="first", ylabel="second", xticks=[], yticks=[], title=title)
    plane.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    _draw_groups(pictures, frame, strategies, maps, names, colours)
    add_note(
        figure,
        f"slices of each group's highest mean; red speaks for {explained}, blue against it, each panel over its "
        f"largest; {frame.sides}",
    )
    return figure


def _draw_groups(
    pictures: SubFigure,
    frame: Frame,
    strategies: Strategies,
    maps: Sequence[np.ndarray],
    names: Sequence[str],
    colours: Sequence[str],
) -> None:
    """Draw the mean and the prototype of each group of maps, each divided by its largest value on the slice."""
    panels = pictures.subplots(-(-strategies.n // 3), 6, squeeze=False).ravel()
    shade = Shade("relevance / its largest", "RdBu_r", -1.0, 1.0, "black")
    for axes in panels[2 * strategies.n :]:
        axes.set_axis_off()
    for number, prototype in enumerate(strategies.prototypes):
        members = np.flatnonzero(strategies.clusters == number).tolist()
        mean = np.mean([maps[i] for i in members], axis=0)
        level = int(np.unravel_index(np.abs(mean).argmax(), mean.shape)[2])
        pair = {f"group {number + 1}: mean": mean, f"prototype\n{_shorten(names[prototype], 16)}": maps[prototype]}
        for axes, (title, data) in zip(panels[2 * number :], pair.items()):
            cut = data[:, :, level] / (np.abs(data[:, :, level]).max() or 1.0)
            draw_slice(axes, frame, cut, shade, Plane(level=level))
            axes.set_title(title, color=colours[number])
            axes.set_xlabel(frame.place(2, level), labelpad=2)
    add_bar(pictures, panels, shade)
