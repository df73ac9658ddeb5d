"""The figures of a run, for print and screen; each function returns a Figure, `save_figure` writes it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from datxai.analysis.slices import Frame, Shade, add_bar, draw_slice, largest_slice, outline, show, tile
from datxai.analysis.tables import arrange_table1
from datxai.files import replacing

# Okabe and Ito's colours, which stay apart for colour-blind readers
COLOURS = {"TN": "#56b4e9", "TP": "#e69f00", "FN": "#0072b2", "FP": "#d55e00"}
GROUP_NAMES = {
    "TN": "true negative", "TP": "true positive", "FN": "false negative", "FP": "false positive",
}  # fmt: skip
NORMAL, REDUCED, NEUTRAL = COLOURS["FN"], COLOURS["FP"], "#555555"
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "axes.axisbelow": True, "figure.facecolor": "white", "savefig.facecolor": "white", "pdf.fonttype": 42,
}  # fmt: skip


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write ``path`` + .png (300 dpi) and ``path`` + .pdf, each atomically."""
    path = Path(path)
    for suffix, options in ((".png", {}), (".pdf", {"metadata": {"CreationDate": None}})):
        with replacing(path.with_name(path.name + suffix)) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(temporary, dpi=300, **options)


def _styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(plot)
    def styled(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return styled


@_styled
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
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    groups = [f"{GROUP_NAMES[group].capitalize()} (n = {counts.get(group, 0)})" for group in ("TN", "TP")]
    for row, volumes, last, make_shade in zip(
        figure.subplots(2, 3),
        (
            [images.get(key) for key in ("TN", "TP", "template")],
            [maps.get(key) for key in ("TN", "TP", "heat")],
        ),
        ("Template", "Heat map (TP \u2212 TN)"),
        (Shade.of_uptake, Shade.of_relevance),
    ):
        slices = [None if volume is None else volume[:, :, frame.level] for volume in volumes]
        shade = make_shade(slices)
        for axes, data, title in zip(row, slices, (*groups, last)):
            draw_slice(axes, frame, data, shade)
            axes.set_title(title)
        row[0].set_ylabel("mean image" if last == "Template" else "mean relevance")
        add_bar(figure, row, shade)
    _note(figure, f"axial slice at z = {frame.position(2, frame.level):.0f} mm; {_SIDES_NOTE}")
    return figure


@_styled
def plot_all_slices(frame: Frame, maps: Mapping[str, np.ndarray | None]) -> Figure:
    """Every axial slice of the mean relevance maps (``TN``, ``TP``) and of their difference (``heat``)."""
    names = {
        "TN": "Mean relevance, true negative", "TP": "Mean relevance, true positive",
        "heat": "Heat map (TP \u2212 TN)",
    }  # fmt: skip
    keys = [key for key in names if maps.get(key) is not None]
    levels = np.flatnonzero(frame.brain.any(axis=(0, 1)))
    columns = min(max(len(levels), 4), 12)
    rows = -(-len(levels) // columns)
    width, height = (frame.grid.shape[axis] * frame.grid.spacing[axis] for axis in (0, 1))
    tall = max(len(keys), 1) * (6.7 / columns * rows * height / width + 0.35) + 0.2
    figure = Figure(figsize=(8.0, tall), layout="constrained")
    if not keys:
        _note(figure, "no correctly classified case")
        return figure
    shade = Shade.of_relevance(maps[key] for key in keys)
    extent = (0, columns * width, 0, rows * height)
    stack = figure.subplots(len(keys), 1, squeeze=False)[:, 0]
    for axes, key in zip(stack, keys):
        show(axes, tile(maps[key], levels, columns), extent, shade)
        outline(axes, tile(frame.brain, levels, columns), extent, "#999999", 0.4)
        outline(axes, tile(frame.striatum, levels, columns), extent, "black", 0.5)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(names[key], loc="left")
        for number, level in enumerate(levels):
            row, column = divmod(number, columns)
            axes.text(
                (column + 0.96) * width, (rows - row - 0.03) * height, f"{frame.position(2, level):.0f}",
                fontsize=5.5, color=NEUTRAL, ha="right", va="top",
            )  # fmt: skip
    add_bar(figure, stack, shade, shrink=1 / len(keys), aspect=30)
    _note(figure, f"axial slices, z in mm; {_SIDES_NOTE}")
    return figure


@_styled
def plot_misclassified(
    frame: Frame,
    images: Mapping[str, np.ndarray | None],
    maps: Mapping[str, np.ndarray | None],
    cases: Iterable[Mapping],
) -> Figure:
    """Image and relevance of each misclassified case beside the TN and TP means (Fig. 4, Nazari et al. 2022).

    Each case holds ``case_id``, ``group`` (FN or FP), ``image`` and ``relevance`` (X, Y, Z) and
    ``consistent`` (true, false or None). Only one slice of each is kept, so a generator of cases costs no
    memory.
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
    columns = min(max(len(tiles), 6), 8)
    rows = -(-len(tiles) // columns)
    wide = 0.92  # of a tile, in inches; a column is one inch
    tall = wide * frame.grid.shape[1] * frame.grid.spacing[1] / (frame.grid.shape[0] * frame.grid.spacing[0])
    below = 0.85  # room for the colour bars
    height = rows * (2 * tall + 0.45) + below
    figure = Figure(figsize=(columns, height))
    shades = (Shade.of_uptake(t[3] for t in tiles), Shade.of_relevance(t[4] for t in tiles))
    for number, (name, group, consistent, *pair) in enumerate(tiles):
        row, column = divmod(number, columns)
        for part, (data, shade) in enumerate(zip(pair, shades)):
            bottom = height - row * (2 * tall + 0.45) - (part + 1) * tall - 0.2 - 0.06 * part
            axes = figure.add_axes(
                ((column + (1 - wide) / 2) / columns, bottom / height, wide / columns, tall / height)
            )
            draw_slice(axes, frame, data, shade)
            if part == 0:
                colour = "black" if number < 2 else COLOURS[group]
                axes.set_title(f"{group} {_shorten(name, 12)}", size=7, color=colour, weight="bold", pad=3)
            elif consistent is False:
                axes.set_xlabel("inconsistent", size=7, color=REDUCED, style="italic", labelpad=2)
    if len(tiles) == 2:
        figure.text(2.2 / columns, (below + tall) / height, "no misclassified case", color=NEUTRAL)
    for left, shade in zip((0.05, 0.55), shades):
        bar = figure.add_axes((left, 0.6 / height, 0.4, 0.1 / height))
        add_bar(figure, None, shade, "bottom", cax=bar)
    _note(figure, f"axial slice at z = {frame.position(2, level):.0f} mm; {_SIDES_NOTE}")
    return figure


@_styled
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
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.2))
    level = largest_slice(roi)
    data = None if image is None else image[:, :, level]
    shade = Shade.of_uptake([data])
    draw_slice(left, frame, data, shade, outlines=False)
    outline(left, roi[:, :, level], frame.extent(2), "#7fffd4", 1.2)
    left.set_title(f"putamen ROI on mean TN\nz = {frame.position(2, level):.0f} mm")
    add_bar(figure, [left], shade, "bottom", shrink=0.75)
    values, groups = np.asarray(values, float), np.asarray(groups)
    order = [group for group in COLOURS if (groups == group).any()]
    if order:
        right.hist(
            [values[groups == group] for group in order],
            bins=_bins(values, cutoff),
            stacked=True,
            color=[COLOURS[group] for group in order],
            label=[f"{GROUP_NAMES[group]} (n = {(groups == group).sum()})" for group in order],
            edgecolor="white",
            linewidth=0.4,
        )
    right.axvline(cutoff, color="black", linewidth=0.9, linestyle="--", label=f"cutoff {cutoff:g}")
    right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1.2, handlelength=1.2)
    right.yaxis.get_major_locator().set_params(integer=True)
    right.ticklabel_format(axis="x", scilimits=(-2, 3), useMathText=True)
    right.set(xlabel="mean relevance of the hottest voxels, ipsilateral putamen", ylabel="cases")
    return figure


@_styled
def plot_case(
    frame: Frame,
    image: np.ndarray,
    relevance: np.ndarray,
    peak: Sequence[int],
    sides: tuple[str, str] = ("I", "C"),
) -> Figure:
    """One case: uptake and relevance on the orthogonal slices through voxel ``peak``.

    ``sides`` names the hemispheres at x < 0 and x > 0: ("I", "C") for a mirrored case, ("L", "R") in the
    patient's own space. Planes that are one voxel thin, as in a single-slice grid, are left out.
    """
    planes = {name: axis for name, axis in PLANES.items() if min(np.delete(frame.grid.shape, axis)) > 1}
    widths = [extent[1] - extent[0] for extent in map(frame.extent, planes.values())]
    uptake, signal = (
        [np.take(data, peak[across], across) for across in planes.values()] for data in (image, relevance)
    )
    figure = Figure(figsize=(2.2 * len(planes) + 0.9, 5.0), layout="constrained")
    for row, cuts, under, shade in zip(
        figure.subplots(2, len(planes), squeeze=False, width_ratios=widths),
        (uptake, signal),
        ([None] * len(planes), uptake),
        (Shade.of_uptake(uptake), Shade.of_relevance(signal)),
    ):
        for axes, cut, grey, (name, across) in zip(row, cuts, under, planes.items()):
            marks = sides if across else None
            draw_slice(axes, frame, cut, shade, across, peak[across], under=grey, sides=marks)
            for line, other in zip((axes.axvline, axes.axhline), (axis for axis in range(3) if axis != across)):
                line(frame.position(other, peak[other]), color="#888888", linewidth=0.5)
            axes.set_title(f"{name}, {'xyz'[across]} = {frame.position(across, peak[across]):.0f} mm")
        add_bar(figure, row, shade)
    return figure


@_styled
def plot_training(history: Sequence[Mapping]) -> Figure:
    """Loss and accuracy by epoch; rows hold ``epoch`` and ``{train,validation}_{loss,accuracy}``."""
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    epochs, validation = (np.array([float(row[key]) for row in history]) for key in ("epoch", "validation_loss"))
    best = epochs[validation.argmin()]
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for name, label, colour in (("train", "training", NEUTRAL), ("validation", "validation", REDUCED)):
            values = [float(row[f"{name}_{kind}"]) for row in history]
            axes.plot(epochs, values, color=colour, label=label, marker=".", markersize=4, linewidth=1.2)
        axes.axvline(best, color=NORMAL, linewidth=0.9, linestyle="--", label=f"weights kept (epoch {best:.0f})")
        axes.set(xlabel="epoch", ylabel="cross-entropy loss" if kind == "loss" else "accuracy")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#eeeeee")
        axes.legend(frameon=True, edgecolor="none", framealpha=0.9)
    return figure


@_styled
def plot_sbr(
    putamen: Sequence[float], ratio: Sequence[float], labels: Sequence[int], cutoff: float | None = None
) -> Figure:
    """Lower putaminal binding ratio against caudate/putamen ratio, by label (0 normal, 1 reduced)."""
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    putamen, ratio, labels = np.asarray(putamen, float), np.asarray(ratio, float), np.asarray(labels)
    for value, name, colour, marker in ((0, "normal", NORMAL, "o"), (1, "reduced", REDUCED, "^")):
        chosen = labels == value
        label = f"{name} (n = {chosen.sum()})"
        style = {"s": 16, "c": colour, "marker": marker, "alpha": 0.65, "linewidths": 0, "label": label}
        axes.scatter(putamen[chosen], ratio[chosen], **style)
    if cutoff is not None:
        axes.axvline(cutoff, color="black", linewidth=0.9, linestyle="--", label=f"cutoff {cutoff:.2f}")
    if len(ratio) and 0 < 10 * np.median(ratio) < ratio.max() and ratio.min() > 0:
        axes.set_yscale("log")  # an almost empty putamen makes the ratio very large
    axes.set(xlabel="SBR of the ipsilateral putamen", ylabel="caudate / putamen SBR, ipsilateral")
    axes.legend()
    return figure


@_styled
def plot_table1(rows: Sequence[Mapping]) -> Figure:
    """Table 1, ruled as in print; ``rows`` as in `datxai.analysis.tables.arrange_table1`."""
    header, *lines = arrange_table1(rows)
    widths = np.array([max(map(len, column)) + 2.0 for column in zip(header, *lines)])
    figure = Figure(figsize=(widths.sum() * 0.075, 0.26 * (len(lines) + 1) + 0.1))
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.96))
    axes.axis("off")
    table = axes.table(lines, colLabels=header, colWidths=widths / widths.sum(), edges="horizontal", bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.8)
        cell.visible_edges = {0: "BT", len(lines): "B"}.get(row, "")
        cell.set_text_props(size=8, weight="bold" if row == 0 else "normal", ha="left" if column == 0 else "right")
    return figure


_SIDES_NOTE = "I ipsilateral (lower putamen, left of the picture), C contralateral; outline: caudate and putamen"


def _note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=7, color=NEUTRAL)


def _bins(values: np.ndarray, cutoff: float) -> np.ndarray:
    """Edges of equal bins, one of which is the cutoff, so that no bar holds cases of both sides."""
    low, high = min([cutoff, *values]), max([cutoff, *values])
    width = (high - low) / np.clip(2 * np.sqrt(len(values)), 8, 40) or 1.0
    below, above = (int(np.ceil(abs(end - cutoff) / width * (1 + 1e-9))) for end in (low, high))
    return cutoff + width * np.arange(-below, max(above, 1) + 1)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\u2026"
