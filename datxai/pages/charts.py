"""Charts: results of a run as curves, points and bars; each function returns a Figure."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from datxai.pages.style import COLOURS, COLUMN, NEUTRAL, NORMAL, PAGE, REDUCED, SMALL, add_note, styled
from datxai.pages.tables import (
    LABEL_NAMES,
    MEASURES,
    UNITLESS,
    arrange_table1,
    format_cell,
    format_measure,
    name_in_words,
)

MARKERS = ("o", "s", "D", "^", "v", "P")
COLOUR_CYCLE = ("black", *COLOURS.values(), "#009e73")


@styled
def plot_training(history: Sequence[Mapping]) -> Figure:
    """Loss and accuracy by epoch; rows hold ``epoch``, ``{train,validation}_{loss,accuracy}`` and optionally ``kept``,
    whether the weights were the best so far (by default those of the lowest validation loss are)."""
    figure = Figure(figsize=(COLUMN, 1.7), layout="constrained")
    epochs, validation = (np.array([float(row[key]) for row in history]) for key in ("epoch", "validation_loss"))
    best = max((float(row["epoch"]) for row in history if row.get("kept")), default=epochs[validation.argmin()])
    panels = figure.subplots(1, 2)
    for axes, kind in zip(panels, ("loss", "accuracy")):
        for name, label, colour in (("train", "training", NEUTRAL), ("validation", "validation", REDUCED)):
            values = [float(row[f"{name}_{kind}"]) for row in history]
            if kind == "accuracy":
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
            axes.plot(epochs, values, color=colour, label=label, marker=".", markersize=3, linewidth=1.0)
        axes.axvline(best, color=NORMAL, linewidth=0.8, linestyle="--", label=f"weights kept (epoch {best:.0f})")
        axes.set(xlabel="epoch", ylabel=kind)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#eeeeee")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def plot_sbr(
    putamen: ArrayLike, ratio: ArrayLike, labels: ArrayLike, cutoff: float | None = None
) -> Figure:
    """Lower putaminal binding ratio against caudate/putamen ratio, by label (0 normal, 1 reduced)."""
    figure = Figure(figsize=(COLUMN, 2.4), layout="constrained")
    axes = figure.subplots()
    putamen, ratio, labels = np.asarray(putamen, float), np.asarray(ratio, float), np.asarray(labels)
    for value, colour, marker in ((0, NORMAL, "o"), (1, REDUCED, "^")):
        of_label = np.equal(labels, value)
        label = f"{LABEL_NAMES[value]} (n = {of_label.sum()})"
        style = {"s": 9, "c": colour, "marker": marker, "alpha": 0.65, "linewidths": 0, "label": label}
        axes.scatter(putamen[of_label], ratio[of_label], **style)
    if cutoff is not None:
        axes.axvline(cutoff, color="black", linewidth=0.8, linestyle="--", label=f"cutoff {cutoff:.2f}")
    if len(ratio) and 0 < 10 * np.median(ratio) < ratio.max() and ratio.min() > 0:
        axes.set_yscale("log")  # an almost empty putamen makes the ratio very large
    axes.set(xlabel="SBR of the ipsilateral putamen", ylabel="caudate / putamen SBR, ipsilateral")
    axes.legend()
    return figure


@styled
def plot_table1(rows: Sequence[Mapping]) -> Figure:
    """Table 1, ruled as in print; ``rows`` as in `datxai.pages.tables.arrange_table1`."""
    header, *lines = arrange_table1(rows)
    widths = np.array([max(map(len, column)) + 2.0 for column in zip(header, *lines)])
    figure = Figure(figsize=(PAGE, 0.22 * (len(lines) + 1) + 0.1))
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.96))
    axes.axis("off")
    table = axes.table(lines, colLabels=header, colWidths=widths / widths.sum(), edges="horizontal", bbox=Bbox.unit())
    table.auto_set_font_size(False)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.8)
        cell.visible_edges = {0: "BT", len(lines): "B"}.get(row, "")
        cell.set_text_props(size=7, weight="bold" if row == 0 else "normal", ha="left" if column == 0 else "right")
    return figure


@styled
def plot_classification(classifiers: Mapping[str, Mapping]) -> Figure:
    """Measures of classifiers with 95 % intervals, and their confusion matrices.

    ``classifiers``: a short name to a `datxai.analysis.classification.summarise`.
    """
    names = [name for name in MEASURES if any(name in measures for measures in classifiers.values())]
    shares = [name for name in names if name not in UNITLESS]
    groups = [group for group in (shares, [name for name in names if name in UNITLESS]) if group]
    height = 0.6 + 0.35 * len(groups) + len(names) * (0.1 + 0.09 * len(classifiers))
    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    panels = figure.subplots(len(groups), 1, height_ratios=[*map(len, groups)], squeeze=False)[:, 0]
    for axes, group in zip(panels, groups):
        _draw_measures(axes, classifiers, group, 100 if group is shares else 1)
        axes.set(xlabel="percent, 95 % interval" if group is shares else "95 % interval")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", handlelength=1.2)
    return figure


def _draw_measures(axes: Axes, classifiers: Mapping[str, Mapping], names: Sequence[str], unit: float) -> None:
    """Draw these measures of classifiers with their intervals, multiplied by ``unit``."""
    step = 0.8 / max(len(classifiers), 1)
    for number, (title, measures) in enumerate(classifiers.items()):
        rows = [row for row, name in enumerate(names) if measures.get(name) is not None]
        values = [unit * measures[names[row]] for row in rows]
        intervals = [[unit * end for end in measures[f"{names[row]}_ci95"]] for row in rows]
        errors = [[abs(value - interval[end]) for value, interval in zip(values, intervals)] for end in (0, 1)]
        axes.errorbar(
            values, [row + step * (number - (len(classifiers) - 1) / 2) for row in rows], xerr=errors,
            fmt=MARKERS[number % len(MARKERS)], markersize=3, linewidth=0.8,
            color=COLOUR_CYCLE[number % len(COLOUR_CYCLE)],
            label=f"{title}: TN {measures['tn']}, FP {measures['fp']}, FN {measures['fn']}, TP {measures['tp']}",
        )  # fmt: skip
    axes.set(yticks=range(len(names)), yticklabels=[MEASURES[name] for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="#eeeeee")


@styled
def plot_tree(nodes: Sequence[Mapping]) -> Figure:
    """A classification tree, root on top; cases that fulfil a node's condition go to the left.

    ``nodes``: see `datxai.analysis.classification.Cart`.
    """
    levels = {0: 0}
    columns: dict[int, float] = {}

    def place(number: int) -> float:
        node = nodes[number]
        children = [node["left"], node["right"]] if node["feature"] else []
        for child in children:
            levels[child] = levels[number] + 1
        n_leaves = sum(not nodes[other]["feature"] for other in columns)  # so far; each takes one column
        columns[number] = float(np.mean([place(child) for child in children])) if children else float(n_leaves)
        return columns[number]

    place(0)
    leaves, depth = sum(not node["feature"] for node in nodes), max(levels.values()) + 1
    figure = Figure(figsize=(COLUMN if leaves <= 4 else PAGE, 0.62 * depth + 0.15))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.6, leaves - 0.4), ylim=(depth - 0.5, -0.5))
    axes.axis("off")
    for number, node in enumerate(nodes):
        x, y = columns[number], levels[number]
        lines = [f"{node['normal']} normal,", f"{node['reduced']} reduced"]
        if node["feature"]:
            lines = [name_in_words(node["feature"]), f"\u2264 {format_cell(node['threshold'])}", *lines]
            for child in (node["left"], node["right"]):
                axes.plot([x, columns[child]], [y, levels[child]], color=NEUTRAL, linewidth=0.7, zorder=1)
        else:
            lines.insert(0, LABEL_NAMES[int(node["reduced"] > node["normal"])])
        colour = NEUTRAL if node["feature"] else (NORMAL, REDUCED)[node["reduced"] > node["normal"]]
        box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": colour, "linewidth": 0.9}
        axes.text(x, y, "\n".join(lines), ha="center", va="center", size=SMALL, bbox=box, zorder=2)
    return figure


@styled
def plot_detection(curves: Mapping[str, Mapping]) -> Figure:
    """ROC curves of scores that detect misclassified cases.

    ``curves``: name in the legend to ``false_alarms`` and ``found`` (fractions, from 0 to 1), ``auc`` and ``auc_ci95``
    (or None); a detector without a curve (no errors, or only errors) is left out.
    """
    shares = ("share of correct cases flagged", "share of misclassified cases flagged")
    return _plot_curves(curves, shares, "no misclassified case")


@styled
def plot_roc(curves: Mapping[str, Mapping]) -> Figure:
    """ROC curves of classifiers as detectors of reduced cases; ``curves`` as in `plot_detection`."""
    rates = ("1 \u2212 specificity: share of normal cases called reduced", "sensitivity: share of reduced cases found")
    return _plot_curves(curves, rates, "cases of one class alone")


def _plot_curves(curves: Mapping[str, Mapping], axis_labels: tuple[str, str], empty_text: str) -> Figure:
    """ROC curves, or ``empty_text`` if there is none."""
    figure = Figure(figsize=(COLUMN, 3.3), layout="constrained")
    axes = figure.subplots()
    shown = {name: curve for name, curve in curves.items() if curve["auc"] is not None}
    for number, (name, curve) in enumerate(shown.items()):
        label = textwrap.fill(f"{name}: AUC {format_measure('auc', curve['auc'], curve['auc_ci95'])}", 56)
        dashes = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))[number % 5]
        axes.plot(
            curve["false_alarms"], curve["found"], linewidth=1.1, linestyle=dashes, label=label,
            color=COLOUR_CYCLE[number % len(COLOUR_CYCLE)],
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.6)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal", xlabel=axis_labels[0], ylabel=axis_labels[1])
    if shown:
        figure.legend(loc="outside upper left", handlelength=2.2)
    else:
        axes.text(0.5, 0.5, empty_text, ha="center", color=NEUTRAL)
    return figure


@styled
def plot_regions(rows: Sequence[Mapping], n: int = 12) -> Figure:
    """Relevance by region: striatal regions and the first ``n`` extrastriatal ones, with 95 % intervals.

    ``rows``: see `datxai.analysis.regions.summarise_regions`. Left: density of the absolute relevance, relative to the
    brain's average. Right: mean relevance of the two classes, in units of the brain's mean absolute relevance.
    """
    shown = [row for row in rows if row["striatal"]] + [row for row in rows if not row["striatal"]][:n]
    figure = Figure(figsize=(PAGE, 0.55 + 0.17 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(shown))
    _plot_intervals(left, shown, "density", y, "black", "o", None)
    left.axvline(1, color="#bbbbbb", linewidth=0.6)
    for shift, name, label, marker in ((-0.15, "TN", "true negative", "o"), (0.15, "TP", "true positive", "^")):
        _plot_intervals(right, shown, name, y + shift, COLOURS[name], marker, label)
    right.axvline(0, color="#bbbbbb", linewidth=0.6)
    left.set_yticks(y, [name_in_words(row["region"]) for row in shown])
    for text, row in zip(left.get_yticklabels(), shown):
        text.set_weight("bold" if row["striatal"] else "normal")
    left.invert_yaxis()
    left.set(xlabel="density of absolute relevance (brain = 1)")
    right.set(xlabel="mean relevance (mean absolute relevance = 1)")
    right.legend()
    for axes in (left, right):
        axes.grid(axis="y", color="#eeeeee")
    return figure


@styled
def plot_repeats(repeats: Mapping[str, Mapping]) -> Figure:
    """Sensitivity and specificity of networks that differ in their initial weights, with 95 % intervals.

    ``repeats``: name to a `datxai.analysis.classification.summarise`.
    """
    figure = Figure(figsize=(COLUMN, 2.2), layout="constrained")
    axes = figure.subplots()
    for shift, name, colour, marker in ((-0.12, "sensitivity", REDUCED, "^"), (0.12, "specificity", NORMAL, "o")):
        for i, measures in enumerate(repeats.values()):
            value, (low, high) = 100 * measures[name], (100 * end for end in measures[f"{name}_ci95"])
            axes.errorbar(
                i + shift, value, yerr=[[value - low], [high - value]], fmt=marker, color=colour, markersize=3.5,
                linewidth=0.8, label=name if i == 0 else None,
            )  # fmt: skip
    axes.set_xticks(range(len(repeats)), list(repeats))
    axes.set(xlabel="initialisation", ylabel="percent, 95 % interval")
    axes.grid(axis="y", color="#eeeeee")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def plot_putamen_by_start(values: Mapping[str, Sequence[Sequence[float]]], groups: Sequence[Sequence[str]]) -> Figure:
    """Relevance in the ipsilateral putamen by classification, for several ways to start an explanation.

    ``values``: name of the start to one sequence per network, each with one number per case; ``groups``: TN, TP, FN or
    FP of each case, per network. The values of each network are divided by the largest absolute one.
    """
    figure = Figure(figsize=(PAGE, 2.1), layout="constrained")
    row = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for axes, (name, networks) in zip(row, values.items()):
        for x, group in enumerate(COLOURS):
            scaled = (np.asarray(cases) / np.abs(cases).max() for cases in networks)
            pooled = np.concatenate([cases[np.asarray(of_case) == group] for cases, of_case in zip(scaled, groups)])
            jitter = np.linspace(-0.3, 0.3, len(pooled)) if len(pooled) > 1 else [0.0] * len(pooled)
            axes.scatter(x + np.asarray(jitter), pooled, s=2.5, color=COLOURS[group], linewidths=0)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xticks(range(len(COLOURS)), list(COLOURS))
        axes.set_title(textwrap.fill(name, 18))
    row[0].set_ylabel("relevance, ipsilateral putamen\n(largest = 1)")
    add_note(figure, f"{len(groups)} networks that differ in their initial weights; a point per test case and network")
    return figure


@styled
def plot_reliability(calibration: Mapping) -> Figure:
    """Share of reduced cases by predicted probability, without and, if there is one, with the temperature.

    ``calibration``: see `datxai.analysis.calibration.calibrate`. Below, the number of cases in each bin.
    """
    titles = {"raw": "as predicted"}
    if calibration["determined"]:
        titles["scaled"] = f"temperature {calibration['temperature']:.2f}"
    figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    max_n = max(row["n"] for name in titles for row in calibration[name]["bins"])
    grid = figure.subplots(2, len(titles), height_ratios=(3, 1), sharex=True, sharey="row", squeeze=False)
    for (above, below), (name, title) in zip(grid.T, titles.items()):
        rows = calibration[name]["bins"]
        probabilities, shares, n = ([row[key] for row in rows] for key in ("probability", "reduced", "n"))
        errors = [[abs(row["reduced"] - row["reduced_ci95"][end]) for row in rows] for end in (0, 1)]
        above.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=0.6, linestyle="--")
        above.errorbar(probabilities, shares, yerr=errors, fmt="o", markersize=3, linewidth=0.8, color=NORMAL)
        above.set_title(f"{title}\nECE {calibration[name]['ece']:.3f}")
        low, high = ([row[key] for row in rows] for key in ("low", "high"))
        widths = np.subtract(high, low)
        bars = below.bar(low, n, widths, align="edge", color=NEUTRAL, edgecolor="white", linewidth=0.4)
        below.bar_label(bars, fontsize=SMALL, rotation=90 if max_n > 99 else 0, padding=1)
        below.set(xlim=(-0.02, 1.02), xticks=(0, 0.5, 1), ylim=(0, (2 if max_n > 99 else 1.5) * max_n), yticks=())
    grid[0, 0].set(ylim=(-0.05, 1.05), yticks=(0, 0.5, 1), ylabel="share of reduced cases")
    grid[1, 0].set_ylabel("cases")
    figure.supxlabel("probability of reduced", fontsize=7)
    return figure


@styled
def plot_comparison(runs: Mapping[str, Mapping]) -> Figure:
    """Accuracy, sensitivity and specificity of several runs with 95 % intervals.

    ``runs``: a name to a `datxai.analysis.classification.summarise`.
    """
    figure = Figure(figsize=(PAGE, 0.6 + 0.16 * len(runs)), layout="constrained")
    measures = ("accuracy", "sensitivity", "specificity")
    panels = figure.subplots(1, len(measures), sharex=True, sharey=True)
    for axes, measure in zip(panels, measures):
        rows = []
        for summary in runs.values():
            low, high = summary[f"{measure}_ci95"] or (None, None)
            rows.append({"value": summary[measure], "value_low": low, "value_high": high})
        _plot_intervals(axes, rows, "value", np.arange(len(rows)), NORMAL, "o", None)
        axes.set_title(MEASURES[measure])
        axes.grid(axis="x", color="#eeeeee")
    panels[-1].set_yticks(range(len(runs)), list(runs))
    panels[-1].set_ylim(len(runs) - 0.5, -0.5)
    figure.axes[0].xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    figure.supxlabel("estimate and 95 % interval", fontsize=7)
    return figure


@styled
def plot_search(
    trials: Sequence[Mapping],
    settings: Sequence[str],
    measure: str,
    larger_is_better: bool,
    logarithmic: Collection[str] = (),
    choices: Collection[str] = (),
) -> Figure:
    """Results of the trials of a search, in their order and by each setting.

    ``trials``: rows with ``trial``, ``measure`` (None: ended early) and the settings. Settings in ``logarithmic`` have
    a logarithmic axis, those in ``choices`` a categorical one.
    """
    columns = min(1 + len(settings), 4)
    n_rows = -(-(1 + len(settings)) // columns)
    figure = Figure(figsize=(PAGE, 1.5 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, columns, sharey=True, squeeze=False).ravel()
    complete = [row for row in trials if row[measure] is not None]
    values = np.array([row[measure] for row in complete], float)
    best = int(values.argmax() if larger_is_better else values.argmin())
    for axes, name in zip(panels, ("trial", *settings)):
        x = [row[name] for row in complete]
        if name in choices:
            levels = sorted({*x}, key=lambda level: (isinstance(level, str), level is None, str(level)))
            axes.set_xticks(range(len(levels)), [format_cell(level) for level in levels])
            x = [levels.index(level) for level in x]
        axes.scatter(x, values, s=8, color=NORMAL, linewidths=0)
        axes.scatter(x[best : best + 1], values[best : best + 1], s=22, facecolors="none", edgecolors=REDUCED)
        if name in logarithmic:
            axes.set_xscale("log")
        axes.set_xlabel(name)
    so_far = (np.maximum if larger_is_better else np.minimum).accumulate(values)
    panels[0].step([row["trial"] for row in complete], so_far, where="post", color=NEUTRAL, linewidth=0.8)
    if not larger_is_better and values.min() > 0:
        panels[0].set_yscale("log")
    for axes in panels[1 + len(settings) :]:
        axes.remove()
    for axes in figure.axes[::columns]:
        axes.set_ylabel(measure.replace("_", " "))
    add_note(figure, f"circled: the best; {len(trials) - len(complete)} of {len(trials)} trials were ended early")
    return figure


@styled
def plot_agreement(correlation: np.ndarray, overlap: np.ndarray, share: float) -> Figure:
    """Histograms of the agreement of maps of several runs or explanations; arrays (cases, pairs), NaN if unknown.

    ``share``: the fraction of hottest voxels that ``overlap`` refers to.
    """
    figure = Figure(figsize=(COLUMN, 1.7), layout="constrained")
    for axes, values, low, label in zip(
        figure.subplots(1, 2),
        (correlation, overlap),
        (-1, 0),
        ("correlation within the brain", f"overlap of the hottest {100 * share:g} % of the voxels"),
    ):
        finite = values[np.isfinite(values)]
        start = 0 if finite.min(initial=0) >= 0 else low
        axes.hist(finite, bins=np.linspace(start, 1, 26), color=NEUTRAL, edgecolor="white", linewidth=0.4)
        if finite.size:
            axes.axvline(finite.mean(), color=REDUCED, linewidth=0.9, label=f"mean {finite.mean():.2f}")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
        axes.set(xlabel=textwrap.fill(label, 26), xlim=(start, 1))
        axes.yaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylabel("cases x pairs")
    return figure


def _plot_intervals(
    axes: Axes, rows: Sequence[Mapping], name: str, y: np.ndarray, colour: str, marker: str, label: str | None
) -> None:
    """Plot means ``name`` of rows at heights ``y`` with their intervals ``name_low``, ``name_high``, if known."""
    points = [(height, row) for height, row in zip(y, rows) if row[f"{name}_low"] is not None]
    values = [row[name] for _, row in points]
    errors = [[abs(row[name] - row[f"{name}_{end}"]) for _, row in points] for end in ("low", "high")]
    axes.errorbar(
        values, [height for height, _ in points], xerr=errors, fmt=marker, color=colour, markersize=3, linewidth=0.8,
        label=label,
    )  # fmt: skip


@styled
def plot_among_normals(panels: Mapping[str, Mapping], age: float | None) -> Figure:
    """Binding ratios of a scan among those of normal cases, by age; at most six panels.

    ``panels``: title to ``value`` of the scan (None: unknown), ``curve`` with ``age, low, median, high`` (n,), and
    ``cloud``: (ages, values, whether of the scan's sex) of the normal cases, empty if they are not available. Without
    an ``age`` the scan is drawn as a line.
    """
    columns = -(-len(panels) // 2)
    figure = Figure(figsize=(PAGE, 3.6))
    grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="col")
    # Margins are set, since finding them takes longer than drawing, while somebody waits for the scan.
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.11, top=0.94, wspace=0.18, hspace=0.18)
    for axes, (title, panel) in zip(grid.ravel(), panels.items()):
        curve = panel["curve"]
        axes.fill_between(curve["age"], curve["low"], curve["high"], color="#dcebf5", linewidth=0)
        axes.plot(curve["age"], curve["median"], color=NORMAL, linewidth=1.0)
        ages, values, same_sex = map(np.asarray, panel["cloud"])
        style = {"s": 7, "linewidths": 0.5, "edgecolors": NEUTRAL}
        for chosen, face in ((~same_sex.astype(bool), "none"), (same_sex.astype(bool), NEUTRAL)):
            axes.scatter(ages[chosen], values[chosen], facecolors=face, **style)
        if panel["value"] is not None:
            if age is None:
                axes.axhline(panel["value"], color=REDUCED, linewidth=1.4)
            else:
                axes.plot(age, panel["value"], "o", color=REDUCED, markersize=7, fillstyle="none", markeredgewidth=1.8)
        axes.set_title(title)
        axes.grid(color="#eeeeee")
    for axes in grid.ravel()[len(panels) :]:
        axes.axis("off")
    for axes in grid[-1]:
        axes.set_xlabel("age, years")
    grid[0, 0].set_ylabel("SBR")
    grid[1, 0].set_ylabel("SBR")
    return figure
