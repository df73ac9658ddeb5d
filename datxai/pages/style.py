"""Style of all figures (sizes, fonts and colours for print), and saving them."""

from __future__ import annotations

import functools
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from datxai.files import replacing

COLUMN, PAGE = 85 / 25.4, 178 / 25.4  # width of a journal's column and of its page, in inches
# Okabe and Ito's colours, which colour-blind readers can distinguish
COLOURS = {"TN": "#56b4e9", "TP": "#e69f00", "FN": "#0072b2", "FP": "#d55e00"}
GROUP_NAMES = {
    "TN": "true negative", "TP": "true positive", "FN": "false negative", "FP": "false positive",
}  # fmt: skip
NORMAL, REDUCED, NEUTRAL = COLOURS["FN"], COLOURS["FP"], "#555555"
SMALL = 6  # points; the smallest font size in use
STYLE: dict[Any, Any] = {
    "font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "legend.fontsize": 6.5, "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.axisbelow": True,
    "figure.facecolor": "white", "savefig.facecolor": "white", "pdf.fonttype": 42,
}  # fmt: skip


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a function that draws a figure so that it uses `STYLE`."""

    @functools.wraps(plot)
    def draw(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return draw


def save_figure(
    figure: Figure, path: str | os.PathLike, kinds: Sequence[str] = ("png", "pdf"), dpi: int = 300
) -> None:
    """Write ``path`` + .png and ``path`` + .pdf, or only one of these ``kinds``, each atomically."""
    path = Path(path)
    for kind in kinds:
        options: dict[str, Any] = {"metadata": {"CreationDate": None}} if kind == "pdf" else {}
        with replacing(path.with_name(f"{path.name}.{kind}")) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(temporary, dpi=dpi, **options)


def add_note(figure: Figure, text: str) -> None:
    """Add a note below the figure, wrapped to its width."""
    characters = int(figure.get_figwidth() * 72 / (0.5 * SMALL))
    figure.supxlabel(textwrap.fill(text, characters), fontsize=SMALL, color=NEUTRAL)
