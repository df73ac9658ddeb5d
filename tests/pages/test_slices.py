import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from datxai.pages.slices import Frame, Shade, add_bar, draw_slice, largest_slice, outline, show, tile
from datxai.volume import Grid

GRID = Grid.axis_aligned((6, 8, 4), (2.0, 3.0, 4.0), (-5.0, -20.0, 10.0))
NOWHERE = np.zeros(GRID.shape, bool)


@pytest.fixture
def axes():
    figure = Figure(figsize=(1, 1), dpi=100)
    return figure.add_axes((0, 0, 1, 1))


def render(axes):
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_extent_is_that_of_the_voxels_edges():
    frame = Frame(GRID, NOWHERE, NOWHERE)
    assert frame.extent(2) == (-6.0, 6.0, -21.5, 2.5)
    assert frame.extent(1) == (-6.0, 6.0, 8.0, 24.0)
    assert frame.extent(0) == (-21.5, 2.5, 8.0, 24.0)
    assert frame.position(2, 3) == 22.0


def test_representative_slice_has_the_most_striatum():
    mask = NOWHERE.copy()
    mask[0, 0, 1], mask[:2, 0, 2] = True, True
    assert Frame(GRID, mask, NOWHERE).level == largest_slice(mask) == 2


@pytest.mark.parametrize(("index", "half"), [((0, 4), "left"), ((5, 4), "right"), ((3, 0), "bottom"), ((3, 7), "top")])
def test_left_of_the_picture_is_low_x_and_top_is_high_y(axes, index, half):
    data = np.zeros((6, 8))
    data[index] = 1.0
    frame = Frame(GRID, NOWHERE, NOWHERE)
    draw_slice(axes, frame, data, Shade.of_uptake([data]), outlines=False, sides=None)
    axes.set_aspect("auto")
    row, column = (bright.mean() for bright in np.nonzero(render(axes).sum(axis=2) > 300))
    assert {"left": column < 50, "right": column > 50, "top": row < 50, "bottom": row > 50}[half]


def test_sides_are_marked_and_a_missing_group_is_named(axes):
    frame = Frame(GRID, NOWHERE, NOWHERE)
    draw_slice(axes, frame, np.ones((6, 8)), Shade.of_uptake([np.ones(1)]))
    marks = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert marks["I"] < 0.5 < marks["C"]
    other = axes.figure.add_axes((0, 0, 1, 1))
    draw_slice(other, frame, None, Shade.of_uptake([None]))
    assert [text.get_text() for text in other.texts] == ["no case"]


def test_scales():
    parts = [np.array([0.5, 3.0]), None, np.array([-4.0])]
    assert (Shade.of_relevance(parts).low, Shade.of_relevance(parts).high) == (-4.0, 4.0)
    assert (Shade.of_uptake(parts[:2]).low, Shade.of_uptake(parts[:2]).high) == (0.0, 3.0)
    assert Shade.of_relevance([np.zeros(3), None]).high == 1.0


def test_relevance_of_zero_is_neutral_and_signs_differ(axes):
    data = np.array([[-1.0] * 4, [0.0] * 4, [1.0] * 4])
    axes.axis("off")
    show(axes, data, (0, 3, 0, 4), Shade.of_relevance([data]))
    axes.set(aspect="auto")
    negative, zero, positive = (render(axes)[50, column] for column in (5, 50, 95))
    assert np.ptp(zero) < 10
    assert negative[2] > negative[0] + 20  # blue
    assert positive[0] > positive[2] + 20  # red


def test_outline_runs_along_the_border_of_the_mask(axes):
    mask = np.zeros((6, 8), bool)
    mask[0:2, 3:6] = True  # touches the edge
    outline(axes, mask, (-6.0, 6.0, -21.5, 2.5), "black", 1.0)
    (path,) = axes.collections[0].get_paths()
    assert path.vertices.min(axis=0) == pytest.approx([-6.0, -12.5], abs=1e-9)
    assert path.vertices.max(axis=0) == pytest.approx([-2.0, -3.5], abs=1e-9)


def test_tiles_run_from_the_lowest_slice_at_the_top_left():
    data = np.zeros((2, 3, 5)) + np.arange(5)
    mosaic = tile(data, [0, 1, 2, 3, 4], columns=3)
    assert mosaic.shape == (6, 6)
    shown = mosaic[::2, ::3].T[::-1]  # one value per tile, as seen: rows from the top
    assert shown.tolist() == [[0, 1, 2], [3, 4, 0]]


@pytest.mark.parametrize(("high", "label"), [(3.2, "relevance"), (3.2e-3, "relevance / 10\u207b\u00b3")])
def test_bar_puts_small_powers_of_ten_into_its_label(axes, high, label):
    add_bar(axes.figure, [axes], Shade.of_relevance([np.array([high])]))
    bar = axes.figure.axes[-1]
    assert bar.get_ylabel() == label
    assert bar.get_ylim() == pytest.approx((-3.2, 3.2))
