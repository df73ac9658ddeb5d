"""The report of a single scan as a PDF, with the content of its page."""

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
MAX_HEIGHT = A4[1] - 2 * MARGIN - 0.2  # inches, of a picture or table, with some space around it
GAP, COLUMN_GAP = 0.15, 0.3  # inches between the columns of a table, and of a page
HEADING_HEIGHT = 0.4  # inches
MIN_COLUMN_WIDTH = 0.5  # inches
TOLERANCE = 1e-6  # inches, for rounding errors
LEADING = 1.5  # line spacing over font size


def prepare() -> None:
    """Load page templates, image writers and fonts in advance, so that the first report does not wait for them."""
    report.prepare()
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        figure.text(0, 0, "\u2212", weight="bold")
        figure.text(0, 0, "\u2212")
        for file_format in ("png", "pdf"):
            figure.savefig(io.BytesIO(), format=file_format)


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
    paper.write("Research use only, not diagnostic. Do not use it to guide patient care.", 9, weight="bold")
    for warning in page.warnings:
        paper.write(warning, 9, weight="bold")
    paper.skip()
    paper.tabulate([[tile["name"], tile["value"], tile["note"]] for tile in text["tiles"]], 9, bold=1)
    if page.picture:
        paper.show(page.picture)
        paper.write(text["caption"], 7, color=NEUTRAL)
    for name, other in page.beside.items():
        if other.picture:
            paper.reserve(HEADING_HEIGHT + WIDTH)  # a picture is about as high as wide
            paper.head(f"The same decision explained by {name}")
            paper.show(other.picture)
            paper.write(f"As above. Red speaks for {text['others'][name]}, blue against it.", 7, color=NEUTRAL)
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
    paper.fill_columns(
        {
            title: [[name_in_words(name), format_cell(value)] for name, value in pairs.items()]
            for title, pairs in text["sections"].items()
        }
    )
    if page.ledger:
        paper.head("Relevance by layer")
        paper.tabulate(_with_header(page.ledger))
    return paper.pages


class Paper:
    """Pages filled from top to bottom; lengths are in inches, font sizes in points."""

    def __init__(self):
        self.pages: list[Figure] = []
        self._turn()

    def _turn(self) -> None:
        self.pages.append(Figure(figsize=A4))
        self.top, self.left, self.width = A4[1] - MARGIN, MARGIN, WIDTH
        note = f"datxai, page {len(self.pages)}. Research use only, not diagnostic."
        self._place(note, MARGIN, 0.45, 7, color=NEUTRAL)

    def _place(self, text: str, x: float, y: float, size: float, **style) -> None:
        """Draw a line of text without math parsing; the upper left corner of its first letter is at x, y."""
        self.pages[-1].text(x / A4[0], (y - size / 72) / A4[1], text, size=size, parse_math=False, **style)

    def reserve(self, height: float) -> None:
        """Start a new page if less than ``height`` is left on this one."""
        if self.top - height < MARGIN:
            self._turn()

    def fill_columns(self, tables: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Draw tables with headings in two columns of similar height; a table longer than a page takes the full
        width."""
        width = (WIDTH - COLUMN_GAP) / 2
        heights = {title: HEADING_HEIGHT + self._measure(rows, width) for title, rows in tables.items()}
        begin = lowest = self.top
        half = sum(heights.values()) / 2  # of what remains from this page on
        for title, rows in tables.items():
            full = begin - self.top >= half or self.top - heights[title] < MARGIN
            if self.left == MARGIN and full and self.top < begin:
                self.left, self.top = MARGIN + width + COLUMN_GAP, begin
            if self.top - heights[title] < MARGIN:
                half = max(half - (begin - MARGIN), 0)
                self._turn()
                begin = lowest = self.top
            self.width = width if heights[title] < MAX_HEIGHT else WIDTH
            self.head(title)
            self.tabulate(rows)
            lowest = min(lowest, self.top)
        self.top, self.left, self.width = lowest, MARGIN, WIDTH

    def skip(self, height: float = 0.1) -> None:
        """Leave some vertical space."""
        self.top -= height

    def write(self, text: str, size: float, **style) -> None:
        """Draw a paragraph over the whole width."""
        for line in _wrap(text, self.width, size, style.get("weight", "normal")):
            height = LEADING * size / 72
            self.reserve(height)
            self._place(line, self.left, self.top, size, **style)
            self.top -= height

    def head(self, text: str) -> None:
        """Draw a heading, on the same page as the lines that follow it."""
        self.skip(0.15)
        self.reserve(0.8)
        self.write(text, 11, weight="bold")

    def tabulate(self, rows: Sequence[Sequence[str]], size: float = 8, bold: int | None = None) -> None:
        """Draw rows of cells in columns as wide as their content; column ``bold`` is bold."""
        widths, weights = self._divide(rows, size, bold, self.width)
        for row in rows:
            cells = [_wrap(text, width - GAP, size, weight) for text, width, weight in zip(row, widths, weights)]
            n_lines = max(map(len, cells))
            self.reserve(n_lines * LEADING * size / 72)
            x = self.left
            for cell, width, weight in zip(cells, widths, weights):
                for number, line in enumerate(cell):
                    self._place(line, x, self.top - number * LEADING * size / 72, size, weight=weight)
                x += width
            self.top -= n_lines * LEADING * size / 72

    def _divide(
        self, rows: Sequence[Sequence[str]], size: float, bold: int | None, total: float
    ) -> tuple[list[float], list[str]]:
        """Widths and font weights of a table's columns; ``total`` is the available width."""
        columns = list(zip(*rows))
        weights = ["bold" if number == bold else "normal" for number in range(len(columns))]
        wanted = [max(_width(text, size, weight) for text in column) + GAP for column, weight in zip(columns, weights)]
        narrow = [width for width in wanted if width <= total / len(wanted)]  # these keep their width
        rest = max(sum(wanted) - sum(narrow), TOLERANCE)
        factor = (total - sum(narrow)) / rest
        scaled = (width if width <= total / len(wanted) else width * factor for width in wanted)
        return [min(width, max(share, MIN_COLUMN_WIDTH)) for width, share in zip(wanted, scaled)], weights

    def _measure(self, rows: Sequence[Sequence[str]], total: float, size: float = 8) -> float:
        """The height of a table of width ``total``."""
        widths, weights = self._divide(rows, size, None, total)
        columns = list(zip(widths, weights))
        n_lines = sum(
            max(len(_wrap(text, width - GAP, size, weight)) for text, (width, weight) in zip(row, columns))
            for row in rows
        )  # fmt: skip
        return n_lines * LEADING * size / 72

    def show(self, picture: str | os.PathLike) -> None:
        """Draw a PNG file over the whole width, or less if it would be taller than a page."""
        pixels = imread(os.fspath(picture))
        ratio = pixels.shape[0] / pixels.shape[1]
        height = min(WIDTH * ratio, MAX_HEIGHT)
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
    """The width that a letter adds to a line at font size 1; measuring whole lines takes a thousand times as long."""
    font = FontProperties(size=1, weight=weight)
    measure = text_to_path.get_text_width_height_descent
    without, with_letter = (measure(text, font, False)[0] for text in ("nn", f"n{letter}n"))
    return with_letter - without


def _wrap(text: str, width: float, size: float, weight: str) -> list[str]:
    """Lines of at most ``width`` inches; a word that is wider is broken anywhere."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if _width(longer, size, weight) <= width + TOLERANCE:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and _width(lines[-1] + letter, size, weight) > width + TOLERANCE:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _with_header(rows: Sequence[Mapping]) -> list[list[str]]:
    return [
        [name_in_words(name) for name in rows[0]],
        *([format_cell(row[name]) for name in rows[0]] for row in rows),
    ]
