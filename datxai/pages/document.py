"""The report of a single scan as a PDF: what its page says, on paper."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from functools import cache

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import imread
from matplotlib.textpath import text_to_path

from datxai.files import replacing
from datxai.pages import report
from datxai.pages.content import CasePage
from datxai.pages.report import AMONG_NORMALS, describe_case
from datxai.pages.style import NEUTRAL, STYLE
from datxai.pages.tables import format_cell, name_in_words

A4 = 210 / 25.4, 297 / 25.4  # inches
MARGIN = 0.7  # inches
WIDTH = A4[0] - 2 * MARGIN
TALLEST = A4[1] - 2 * MARGIN - 0.2  # inches of a picture, with some room around it
GAP = 0.15  # inches between the columns of a table
NARROWEST = 0.5  # inches of a column
ROUNDING = 1e-6  # inches
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


def write_case_pdf(path: str | os.PathLike, page: CasePage) -> None:
    """Write the report of one scan as a PDF."""
    from matplotlib.backends.backend_pdf import PdfPages

    pages, about = draw_case(page), {"Title": describe_case(page)["heading"], "CreationDate": None}
    with (
        matplotlib.rc_context({**STYLE, "pdf.fonttype": 3}),  # fonts that can be edited take a second longer
        replacing(path) as temporary,
        PdfPages(temporary, metadata=about) as pdf,
    ):
        for sheet in pages:
            pdf.savefig(sheet)


def draw_case(page: CasePage) -> list[Figure]:
    """The pages of the PDF."""
    text = describe_case(page)
    paper = Paper()
    paper.write(text["heading"], 15, weight="bold")
    paper.write(text["subtitle"], 8, color=NEUTRAL)
    paper.write("Research use only, not diagnostic. Nothing here may guide the care of a patient.", 9, weight="bold")
    for warning in page.warnings:
        paper.write(warning, 9, weight="bold")
    paper.skip()
    paper.tabulate([[tile["name"], tile["value"], tile["note"]] for tile in text["tiles"]], 9, bold=1)
    if page.picture:
        paper.show(page.picture)
        paper.write(text["caption"], 7, color=NEUTRAL)
    if page.prior:
        paper.head(f"Change since the earlier scan: {page.prior.title}")
        paper.tabulate(_with_header(text["changes"]))
        paper.write(page.prior.source, 7, color=NEUTRAL)
    if text["ratios"]:
        paper.head("Specific binding ratios")
        paper.tabulate(_with_header(text["ratios"]))
        paper.write(page.normal_range_source, 7, color=NEUTRAL)
    if page.among_normals:
        paper.show(page.among_normals)
        paper.write(AMONG_NORMALS, 7, color=NEUTRAL)
    for title, pairs in text["sections"].items():
        paper.head(title)
        paper.tabulate([[name_in_words(name), format_cell(value)] for name, value in pairs.items()])
    if page.ledger:
        paper.head("Where relevance went, layer by layer")
        paper.tabulate(_with_header(page.ledger))
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
        """Leave some room."""
        self.top -= height

    def write(self, text: str, size: float, **style) -> None:
        """A paragraph over the whole width."""
        for line in _wrap(text, WIDTH, size, style.get("weight", "normal")):
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
        columns = list(zip(*rows))
        weights = ["bold" if number == bold else "normal" for number in range(len(columns))]
        wanted = [max(_width(text, size, weight) for text in column) + GAP for column, weight in zip(columns, weights)]
        widths = [min(width, max(width * WIDTH / sum(wanted), NARROWEST)) for width in wanted]
        for row in rows:
            cells = [_wrap(text, width - GAP, size, weight) for text, width, weight in zip(row, widths, weights)]
            lines = max(map(len, cells))
            self.reserve(lines * LEADING * size / 72)
            x = MARGIN
            for cell, width, weight in zip(cells, widths, weights):
                for number, line in enumerate(cell):
                    self._place(line, x, self.top - number * LEADING * size / 72, size, weight=weight)
                x += width
            self.top -= lines * LEADING * size / 72

    def show(self, picture: str | os.PathLike) -> None:
        """A PNG file over the whole width, or the whole height where it is taller than a page."""
        pixels = imread(os.fspath(picture))
        ratio = pixels.shape[0] / pixels.shape[1]
        height = min(WIDTH * ratio, TALLEST)
        self.skip()
        self.reserve(height)
        self.top -= height
        axes = self.pages[-1].add_axes((MARGIN / A4[0], self.top / A4[1], height / ratio / A4[0], height / A4[1]))
        axes.imshow(pixels)
        axes.set_axis_off()
        self.skip(0.05)


def _width(text: str, size: float, weight: str) -> float:
    """Width of a line in inches."""
    return sum(_advance(letter, weight) for letter in text) * size / 72


@cache
def _advance(letter: str, weight: str) -> float:
    """What a letter adds to a line over its size; a line measured as a whole would take a thousand times as long."""
    font = FontProperties(size=1, weight=weight)
    measure = text_to_path.get_text_width_height_descent
    alone, with_it = (measure(text, font, False)[0] for text in ("nn", f"n{letter}n"))
    return with_it - alone


def _wrap(text: str, width: float, size: float, weight: str) -> list[str]:
    """Lines of ``width`` inches at most; what is wider without a space is broken anywhere."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if _width(longer, size, weight) <= width + ROUNDING:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and _width(lines[-1] + letter, size, weight) > width + ROUNDING:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _with_header(rows: Sequence[Mapping]) -> list[list[str]]:
    return [
        [name_in_words(name) for name in rows[0]],
        *([format_cell(row[name]) for name in rows[0]] for row in rows),
    ]
