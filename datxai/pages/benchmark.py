"""Comparison of explanation methods: measures averaged over cases and ranked, their figure, the maps of a case."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from datxai.pages.slices import AXIAL, Frame, Plane, Shade, add_bar, draw_slice, largest_slice, outline
from datxai.pages.style import NEUTRAL, PAGE, SMALL, add_note, styled
from datxai.pages.tables import format_cell

RESAMPLES = 2000
FULL_SCALE = 99.9  # percentile of a map's absolute values at the end of its colour scale
DECIMALS = 9  # of means, so that means that differ only by rounding errors share a rank
PER_ROW = 9  # pictures
TRUTH_COLOUR = "#009e73"


class Measure(NamedTuple):
    """A measure of maps: its title in figures, whether more is better (None: not ranked), and its meaning in a few
    words."""

    title: str
    more_is_better: bool | None
    meaning: str = ""

    @property
    def head(self) -> str:
        """The title with an arrow in the better direction."""
        return self.title + {True: " ↑", False: " ↓", None: ""}[self.more_is_better]


def summarise(
    results: Sequence[Mapping], measures: Mapping[str, Measure], seed: int = 0, resamples: int = RESAMPLES
) -> list[dict]:
    """Means over cases with 95 % bootstrap intervals over cases (percentiles), and the ranks of the methods.

    ``results`` holds ``method``, ``metric``, ``case`` and ``value`` (None or NaN: unknown, left out). All methods share
    the same resamples. They are ranked by their means in each of ``measures`` that has a direction; 1 is the best, and
    ties share their mean rank. Rows: method, metric, n, mean, low, high, rank.
    """
    from scipy.stats import rankdata

    values: dict[str, dict[str, dict[str, float]]] = {}
    for row in results:
        cell = values.setdefault(row["metric"], {}).setdefault(row["method"], {})
        if row["value"] is not None and np.isfinite(row["value"]):
            cell[row["case"]] = float(row["value"])
    rows = []
    for metric, methods in values.items():
        cells = [
            {"method": name, "metric": metric, **_average([*cell.values()], seed, resamples)}
            for name, cell in methods.items()
        ]
        more_is_better = measures[metric].more_is_better if metric in measures else None
        if more_is_better is not None:
            measured = [row for row in cells if row["n"]]
            means = np.array([row["mean"] for row in measured])
            for row, rank in zip(measured, rankdata(-means if more_is_better else means)):
                row["rank"] = float(rank)
        rows += cells
    return rows


def average_ranks(summary: Sequence[Mapping]) -> dict[str, float]:
    """The mean of each method's ranks, the best method first; methods without a rank are left out."""
    ranks: dict[str, list[float]] = {}
    for row in summary:
        if row["rank"] is not None:
            ranks.setdefault(row["method"], []).append(row["rank"])
    means = {method: float(np.mean(values)) for method, values in ranks.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def _average(values: Sequence[float], seed: int, resamples: int) -> dict:
    """n, mean and its bootstrap percentile interval; no interval for a single case."""
    n = len(values)
    if not n:
        return {"n": 0, "mean": None, "low": None, "high": None, "rank": None}
    data, low, high = np.asarray(values), None, None
    if n > 1:
        drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
        low, high = map(float, np.percentile(data[drawn].mean(axis=1), [2.5, 97.5]))
    return {"n": n, "mean": round(float(data.mean()), DECIMALS), "low": low, "high": high, "rank": None}


@styled
def plot_ranks(
    summary: Sequence[Mapping], measures: Mapping[str, Measure], controls: Collection[str] = ()
) -> Figure:
    """Methods (rows, the best mean rank on top) by measures: the colour is the rank, the number is the mean.

    ``summary`` comes from `summarise`; measures without a direction have no colour. ``controls`` are the methods that
    do not depend on the network.
    """
    order = average_ranks(summary)
    cells = _find_cells(summary, measures)
    columns = [name for name in measures if any(metric == name for _, metric in cells)]
    figure = Figure(figsize=(PAGE, 1.45 + 0.22 * len(order)), layout="constrained")
    axes = figure.subplots()
    ranks = np.array(
        [[*(cells[m, c]["rank"] if (m, c) in cells else np.nan for c in columns), mean] for m, mean in order.items()],
        float,
    )
    picture = axes.imshow(ranks, "YlGnBu_r", vmin=1, vmax=max(len(order), 2), aspect="auto")
    for row, method in enumerate(order):
        for column, name in enumerate([*columns, None]):
            cell = None if name is None else cells.get((method, name))
            text = f"{order[method]:.1f}" if name is None else format_short(cell["mean"]) if cell else "–"
            rank = ranks[row, column]
            colour = "white" if rank <= 0.5 * len(order) else "black"
            axes.text(
                column, row, text, ha="center", va="center", color=colour if np.isfinite(rank) else NEUTRAL,
                fontweight="bold" if name is None else "normal",
            )  # fmt: skip
    axes.set_yticks(range(len(order)), [words(name, controls) for name in order])
    heads = [*(measures[name].head for name in columns), "mean rank"]
    axes.set_xticks(range(len(heads)), heads, rotation=38, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for n, draw in ((ranks.shape[0], axes.axhline), (ranks.shape[1], axes.axvline)):
        for i in range(1, n):
            draw(i - 0.5, color="white", linewidth=2.5 if draw == axes.axvline and i == n - 1 else 0.8)
    bar = figure.colorbar(picture, ax=axes, fraction=0.025, pad=0.01, label="rank")
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)
    add_note(
        figure,
        "Mean over cases; colour: rank of the method in the column, 1 the best. ↑ more is better, ↓ less is better.",
    )
    return figure


@styled
def plot_maps(
    frame: Frame, scan: np.ndarray, maps: Mapping[str, np.ndarray], lesion: np.ndarray | None = None
) -> Figure:
    """A scan and its maps by several methods, on the slice with the largest area of the striatum or of a lesion.

    Each map is divided by its `FULL_SCALE` percentile of absolute values within the brain, so that all share one colour
    scale. Arrays are (X, Y, Z).
    """
    level = frame.level if lesion is None else largest_slice(lesion)
    pictures = {"scan": scan, **maps}
    rows = -(-len(pictures) // PER_ROW)
    columns = -(-len(pictures) // rows)
    height = 0.82 * PAGE / columns * frame.grid.shape[1] / frame.grid.shape[0]
    figure = Figure(figsize=(PAGE, rows * (height + 0.25) + 0.1), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    shade = Shade("relevance / its largest", "RdBu_r", -1.0, 1.0, "black")
    for axes, (name, data) in zip(panels, pictures.items()):
        if name == "scan":
            draw_slice(axes, frame, data[..., level], Shade.of_uptake([data]), Plane(level=level), sides=("I", "C"))
        else:
            high = float(np.percentile(np.abs(data[frame.brain]), FULL_SCALE)) or 1.0
            draw_slice(axes, frame, (data[..., level] / high).clip(-1, 1), shade, Plane(level=level), sides=None)
        if lesion is not None:
            outline(axes, lesion[..., level], frame.extent(AXIAL), TRUTH_COLOUR, 1.0)
        axes.set_title(textwrap.fill(words(name), 14), fontsize=SMALL, pad=2)
    for axes in panels[len(pictures) :]:
        axes.axis("off")
    add_bar(figure, list(panels), shade, fraction=0.012, pad=0.01, aspect=30)
    return figure


def tabulate(
    summary: Sequence[Mapping], measures: Mapping[str, Measure], controls: Collection[str] = ()
) -> list[list[str]]:
    """A header and a line per method, the best mean rank first: mean rank, and mean (95 % interval) of each measure."""
    cells = _find_cells(summary, measures)
    columns = [name for name in measures if any(metric == name for _, metric in cells)]
    lines = [["method", "mean rank", *(measures[name].head for name in columns)]]
    for method, rank in average_ranks(summary).items():
        row = [cells.get((method, name)) for name in columns]
        means = (_format_mean(cell) if cell else "n/a" for cell in row)
        lines.append([words(method, controls), f"{rank:.1f}", *means])
    return lines


def write_markdown(lines: Sequence[Sequence[str]], cases: Sequence[Mapping], run: str) -> str:
    """The text of summary.md from the result of `tabulate` and the rows of cases.tsv."""
    lesions = [row for row in cases if row["lesion"]]
    text = [
        "# Comparison of methods", "",
        f"Made by `datxai benchmark` in the run folder `{run}`; do not edit.", "",
        f"{len(cases) - len(lesions)} test cases and {len(lesions)} lesioned phantoms. Mean over cases with 95 % "
        "bootstrap interval; ↑ more is better, ↓ less is better; the mean rank is over the measures with an arrow.", "",
        *_format_table(lines),
    ]  # fmt: skip
    if lesions:
        head = ["lesion", "effect on the network", "seen", "share of the scan's change within it"]
        rows = [[row["case"], *map(format_cell, (row["effect"], row["seen"], row["input_share"]))] for row in lesions]
        text += ["", "## Lesions", "", *_format_table([head, *rows])]
    return "\n".join([*text, ""])


def words(name: str, controls: Collection[str] = ()) -> str:
    """The name of a method as text, and whether it is one of the ``controls``."""
    return name.replace("_", " ") + (" (control)" if name in controls else "")


def _format_table(lines: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the header first."""
    head, *body = lines
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)]


def _find_cells(summary: Sequence[Mapping], measures: Mapping[str, Measure]) -> dict[tuple[str, str], Mapping]:
    return {(row["method"], row["metric"]): row for row in summary if row["metric"] in measures and row["n"]}


def _format_mean(cell: Mapping) -> str:
    """A mean with its interval, if there is one."""
    mean = format_short(cell["mean"])
    return mean if cell["low"] is None else f"{mean} ({format_short(cell['low'])} to {format_short(cell['high'])})"


def format_short(value: float) -> str:
    """A number in about five characters: 0.123, 12.3, 1e-5."""
    if value and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(abs(value)))) if abs(value) >= 1 else 3)}f}" if value else "0"
