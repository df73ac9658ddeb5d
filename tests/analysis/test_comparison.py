from itertools import combinations

import numpy as np
import pytest

from datxai.analysis.classification import summarise
from datxai.analysis.comparison import compare_maps, summarise_agreement
from datxai.pages.charts import plot_agreement, plot_comparison


def test_correlation_and_overlap_by_hand():
    maps = [[0, 0, 1, -5, 2, 3, 0, 0, 1, 1], [0, 0, 2, -10, 4, 6, 0, 0, 2, 2], [9, 8, 0, 0, 0, 0, 0, 0, 0, 0]]
    correlation, overlap = compare_maps(np.array(maps, np.float32), share=0.2)
    assert correlation == pytest.approx([np.corrcoef(a, b)[0, 1] for a, b in combinations(maps, 2)])
    assert correlation[0] == pytest.approx(1)
    assert overlap.tolist() == [1, 0, 0]


def test_overlap_of_unrelated_maps_is_that_of_chance():
    maps = np.random.default_rng(0).normal(0, 1, (8, 20_000))
    assert compare_maps(maps)[1].mean() == pytest.approx(0.01, abs=0.003)


def test_a_constant_map_agrees_with_nothing_not_even_itself():
    correlation, overlap = compare_maps([np.zeros(50), np.zeros(50), np.arange(50.0)])
    assert np.isnan(correlation).all()
    assert np.isnan(overlap).all()
    assert summarise_agreement(correlation) == {"mean": None, "sd": None, "n": 0}
    assert summarise_agreement(np.array([1.0, np.nan, 2.0])) == {"mean": 1.5, "sd": pytest.approx(0.5**0.5), "n": 2}


def test_the_maps_given_are_left_as_they_are():
    maps = [np.arange(9.0), np.arange(9.0) ** 2]
    compare_maps(maps)
    assert maps[1].tolist() == [n**2 for n in range(9)]


def test_each_run_has_its_point_where_the_figure_is_defined():
    runs = {"one": summarise([0, 0, 1], [0, 1, 1]), "only normal": summarise([0, 0], [0, 1])}
    figure = plot_comparison(runs)
    figure.draw_without_rendering()
    accuracy, sensitivity, specificity = ([*axes.lines[0].get_xdata()] for axes in figure.axes)
    assert accuracy == pytest.approx([2 / 3, 1 / 2])
    assert sensitivity == [1]
    assert specificity == [0.5, 0.5]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(runs)


@pytest.mark.parametrize("values", [[[0.2, 0.9], [-0.4, np.nan]], [[np.nan]]])
def test_the_histogram_holds_every_value_known(values):
    values = np.array(values)
    figure = plot_agreement(values, np.abs(values), 0.01)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert sum(bar.get_height() for bar in axes.patches) == np.isfinite(values).sum()
