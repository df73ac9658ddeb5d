"""The report of a single scan as a PDF: what its page says, on paper."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.image import imread

from datxai.analysis import report
from datxai.analysis.report import describe_case
from datxai.analysis.style import NEUTRAL, STYLE
from datxai.analysis.tables import format_cell
from datxai.files import replacing

A4 = 210 / 25.4, 297 / 25.4  # inches
MARGIN = 0.7  # inches
LETTER = 0.62  # mean width of a letter over its size, on the safe side
LEADING = 1.5  # distance of lines over the size of letters


def prepare() -> None:
    """Load now what the first report would else wait for: templates of pages, writers of pictures, letters."""
    report.prepare()
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        figure.text(0, 0, "\u2212", weight="bold")
        figure.text(0, 0, "\u2212")
        for kind in ("png", "pdf"):
            figure.savefig(io.BytesIO(), format=kind)


def write_case_pdf(path: str | os.PathLike, content: Mapping) -> None:
    """Write the report of one scan as a PDF; ``content`` as of `datxai.analysis.report.write_case_report`."""
    from matplotlib.backends.backend_pdf import PdfPages

    pages, about = draw_case(content), {"Title": describe_case(content)["heading"], "CreationDate": None}
    with (
        matplotlib.rc_context({**STYLE, "pdf.fonttype": 3}),  # fonts that can be edited take a second longer
        replacing(path) as temporary,
        PdfPages(temporary, metadata=about) as pdf,
    ):
        for page in pages:
            pdf.savefig(page)


def draw_case(content: Mapping) -> list[Figure]:
    """The pages of the PDF."""
    said = describe_case(content)
    paper = Paper()
    paper.write(said["heading"], 15, weight="bold")
    paper.write(said["subtitle"], 8, color=NEUTRAL)
    paper.write("Research use only, not diagnostic. Nothing here may guide the care of a patient.", 9, weight="bold")
    for warning in content.get("warnings") or []:
        paper.write(warning, 9, weight="bold")
    paper.skip()
    paper.tabulate([[tile["name"], tile["value"], tile["note"]] for tile in said["tiles"]], 9, bold=1)
    if picture := (content.get("figures") or {}).get("case"):
        paper.show(picture)
        paper.write(said["caption"], 7, color=NEUTRAL)
    if said["ratios"]:
        paper.head("Specific binding ratios")
        paper.tabulate(_with_header(said["ratios"]))
        paper.write(content.get("normal_range_source") or "", 7, color=NEUTRAL)
    for title, pairs in said["sections"].items():
        paper.head(title)
        paper.tabulate([[name.replace("_", " "), format_cell(value)] for name, value in pairs.items()])
    if content.get("ledger"):
        paper.head("Where relevance went, layer by layer")
        paper.tabulate(_with_header(content["ledger"]))
    return paper.pages


class Paper:
    """Pages filled from top to bottom; lengths in inches, sizes of letters in points."""

    def __init__(self):
        self.pages: list[Figure] = []
        self._turn()

    def _turn(self) -> None:
        self.pages.append(Figure(figsize=A4))
        self.top = A4[1] - MARGIN
        note = f"datxai, page {len(self.pages)}. Research use only, not diagnostic."
        self._place(note, MARGIN, 0.45, 7, color=NEUTRAL)

    def _place(self, text: str, x: float, y: float, size: float, **style) -> None:
        """A line, taken as it stands, of which the first letter's upper left corner is at x, y."""
        self.pages[-1].text(x / A4[0], (y - size / 72) / A4[1], text, size=size, parse_math=False, **style)

    def reserve(self, height: float) -> None:
        """Begin a new page unless so much is left on this one."""
        if self.top - height < MARGIN:
            self._turn()

    def skip(self, height: float = 0.1) -> None:
        self.top -= height

    def write(self, text: str, size: float, **style) -> None:
        """A paragraph over the whole width."""
        for line in textwrap.wrap(text, _letters(A4[0] - 2 * MARGIN, size)):
            height = LEADING * size / 72
            self.reserve(height)
            self._place(line, MARGIN, self.top, size, **style)
            self.top -= height

    def head(self, text: str) -> None:
        """A heading, on the page of the lines that follow it."""
        self.skip(0.15)
        self.reserve(0.8)
        self.write(text, 11, weight="bold")

    def tabulate(self, rows: Sequence[Sequence[str]], size: float = 8, bold: int | None = None) -> None:
        """Rows of cells in columns as wide as their contents ask for; column ``bold`` stands out."""
        wanted = [max(map(len, column)) + 2 for column in zip(*rows)]
        room = _letters(A4[0] - 2 * MARGIN, size)
        widths = [min(width, max(width * room // sum(wanted), 8)) for width in wanted]
        for row in rows:
            cells = [textwrap.wrap(text, max(width - 2, 1)) for text, width in zip(row, widths)]
            lines = max(map(len, cells))
            self.reserve(lines * LEADING * size / 72)
            x = MARGIN
            for column, (cell, width) in enumerate(zip(cells, widths)):
                for number, line in enumerate(cell):
                    weight = "bold" if column == bold else "normal"
                    self._place(line, x, self.top - number * LEADING * size / 72, size, weight=weight)
                x += width * LETTER * size / 72
            self.top -= lines * LEADING * size / 72

    def show(self, picture: str | os.PathLike) -> None:
        """A PNG file over the whole width."""
        pixels = imread(picture)
        width = A4[0] - 2 * MARGIN
        height = width * pixels.shape[0] / pixels.shape[1]
        self.skip()
        self.reserve(height)
        self.top -= height
        axes = self.pages[-1].add_axes((MARGIN / A4[0], self.top / A4[1], width / A4[0], height / A4[1]))
        axes.imshow(pixels)
        axes.set_axis_off()
        self.skip(0.05)


def _letters(width: float, size: float) -> int:
    return int(width * 72 / (LETTER * size))


def _with_header(rows: Sequence[Mapping]) -> list[list[str]]:
    return [
        [name.replace("_", " ") for name in rows[0]],
        *([format_cell(row[name]) for name in rows[0]] for row in rows),
    ]
