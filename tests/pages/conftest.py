"""A head of ellipsoids, the lower putamen on the left, with relevance maps of either class."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text

from datxai.pages.slices import Frame
from datxai.pages.style import PAGE, SMALL
from datxai.volume import Grid

ROUNDING = 1e-6
GRIDS = {
    "mni_4mm": Grid.axis_aligned((46, 55, 46), (4, 4, 4), (-90, -126, -72)),
    "slab": Grid.axis_aligned((91, 109, 1), (2, 2, 12), (-90, -126, 2)),
}


@pytest.fixture(params=GRIDS)
def head(request):
    return make_head(GRIDS[request.param])


@pytest.fixture
def head_4mm():
    return make_head(GRIDS["mni_4mm"])


@pytest.fixture
def check_print():
    """A figure fits on a page, nothing is cut off, and every letter can be read."""

    def check(figure):
        figure.draw_without_rendering()
        width, height = figure.canvas.get_width_height()
        assert figure.get_figwidth() <= PAGE + ROUNDING
        parts = [*figure.axes, *figure.legends, *([figure._supxlabel] if figure._supxlabel else [])]
        for box in (part.get_tightbbox() for part in parts):
            assert min(box.x0, box.y0) > -1
            assert box.x1 < width + 1
            assert box.y1 < height + 1
        said = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        assert min((text.get_fontsize() for text in said), default=SMALL) >= SMALL

    return check


def make_head(grid):
    points = grid.world_coordinates()

    def ellipsoid(centre, radii):
        return (((points - centre) / radii) ** 2).sum(axis=-1) < 1

    brain = ellipsoid((0, -18, 8), (68, 86, 62))
    left, right = (ellipsoid((x, 2, 2), (8, 16, 12)) for x in (-26, 26))
    normal = brain + 3.0 * left + 3.5 * right
    reduced = brain + 0.5 * left + 1.5 * right
    relevance = 2e-3 * left + 1e-3 * right
    return SimpleNamespace(
        frame=Frame(grid, left | right, brain),
        roi=ellipsoid((-26, 2, 2), (15, 24, 18)),
        images={"TN": normal, "TP": reduced, "template": normal},
        maps={"TN": -relevance, "TP": relevance, "heat": 2 * relevance},
        peak=np.rint(grid.mm_to_index((-26, 2, 2))).astype(int),
    )
