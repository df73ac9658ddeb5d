from dataclasses import replace

import numpy as np
import pytest

from datxai.analysis.spectral import find_strategies
from datxai.pages import figures

ROUNDING = 1e-12


def texts(figure):
    found = [text.get_text() for axes in figure.axes for text in (axes.title, axes.xaxis.label, *axes.texts)]
    return [*found, figure.get_supxlabel()]


def limits(figure, low):
    return {image.get_clim() for axes in figure.axes for image in axes.images if image.get_clim()[0] == low(image)}


def negative(image):
    return -image.get_clim()[1]


def test_mean_maps_share_one_scale_and_say_where_they_are(head):
    figure = figures.plot_mean_maps(head.frame, head.images, head.maps, {"TN": 148, "TP": 128})
    assert limits(figure, negative) == {(-4e-3, 4e-3)}
    assert len(limits(figure, lambda image: 0.0)) == 1
    said = texts(figure)
    assert "True negative\n(n = 148)" in said
    assert said.count("I") == said.count("C") == 6
    z = head.frame.position(2, head.frame.level)
    assert f"z = {z:.0f} mm" in figure.get_supxlabel()


def test_mean_maps_without_true_positives(head):
    images, maps = {**head.images, "TP": None}, {**head.maps, "TP": None, "heat": None}
    figure = figures.plot_mean_maps(head.frame, images, maps, {"TN": 3, "TP": 0})
    assert texts(figure).count("no case") == 3


def test_all_slices_names_each_slice_of_the_brain(head):
    figure = figures.plot_all_slices(head.frame, head.maps)
    levels = np.flatnonzero(head.frame.brain.any(axis=(0, 1)))
    said = texts(figure)
    assert all(said.count(f"{head.frame.position(2, level):.0f}".replace("-", "\u2212")) == 3 for level in levels)
    assert limits(figure, negative) == {(-4e-3, 4e-3)}


def test_all_slices_without_a_correctly_classified_case(head_4mm):
    figure = figures.plot_all_slices(head_4mm.frame, {"TN": None, "TP": None, "heat": None})
    assert figure.get_supxlabel() == "no correctly classified case"


@pytest.mark.parametrize("n", [0, 1, 9, 60])
def test_every_misclassified_case_is_shown(head_4mm, n):
    consistent = [(True, False, None)[i % 3] for i in range(n)]
    names = [f"{('FN', 'FP')[i % 2]} sub-{i:04d}" for i in range(n)]
    pair = {"image": head_4mm.images["TP"], "relevance": head_4mm.maps["TN"]}
    cases = (
        {"group": name[:2], "case_id": name[3:], "consistent": like, **pair} for name, like in zip(names, consistent)
    )
    figure = figures.plot_misclassified(head_4mm.frame, head_4mm.images, head_4mm.maps, cases)
    said = texts(figure)
    assert [name for name in said if "sub-" in name] == names
    assert said.count("inconsistent") == consistent.count(False)
    assert [text.get_text() for text in figure.texts].count("no misclassified\ncase") == (n == 0)
    assert limits(figure, negative) == {(-2e-3, 2e-3)}


def test_misclassified_on_a_single_slice_and_with_a_long_name(head):
    case = {"case_id": "sub-with-a-very-long-name_ses-01", "group": "FP", "image": head.images["TP"],
            "relevance": head.maps["TP"], "consistent": False}  # fmt: skip
    means = {"TN": None, "TP": head.images["TP"]}, {"TN": None, "TP": head.maps["TP"]}
    said = texts(figures.plot_misclassified(head.frame, *means, [case]))
    assert "FP sub-with-a-\u2026" in said
    assert said.count("no case") == 2


def test_histogram_counts_each_case_once_and_splits_at_the_cutoff(head):
    values = np.random.default_rng(0).normal(0, 1e-3, 90)
    groups = ["TN", "TP", "FN"] * 30
    cutoff = 2e-4
    figure = figures.plot_roi_histogram(head.frame, head.roi, head.images["TN"], values, groups, cutoff)
    axes = figure.axes[2]
    bars = [bar for container in axes.containers for bar in container]
    assert sum(bar.get_height() for bar in bars) == 90
    below = [bar.get_height() for bar in bars if bar.get_x() + bar.get_width() / 2 < cutoff]
    assert sum(below) == (values < cutoff).sum()
    assert min(abs(bar.get_x() - cutoff) for bar in bars) == pytest.approx(0, abs=ROUNDING)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "TN (30)", "TP (30)", "FN (30)", "cutoff 0.0002",
    ]  # fmt: skip


@pytest.mark.parametrize("values", [[], [0.0], [1e-3, 1e-3], [-2.0]])
def test_histogram_of_few_or_equal_values(head_4mm, values):
    figure = figures.plot_roi_histogram(head_4mm.frame, head_4mm.roi, None, values, ["TN"] * len(values))
    heights = [bar.get_height() for container in figure.axes[2].containers for bar in container]
    assert sum(heights) == len(values)


def test_case_shows_the_slices_through_the_peak(head):
    figure = figures.plot_case(head.frame, head.images["TP"], head.maps["TP"], head.peak, ("L", "R"))
    said = texts(figure)
    position = head.frame.grid.index_to_mm(head.peak)
    thin = head.frame.grid.shape[2] == 1
    expected = {"axial": "z", "coronal": "y", "sagittal": "x"}
    for plane, axis in expected.items():
        title = f"{plane}, {axis} = {position['xyz'.index(axis)]:.0f} mm".replace("-", "\u2212")
        assert said.count(title) == (0 if thin and plane != "axial" else 2)
    assert said.count("L") == said.count("R") == (2 if thin else 4)


def test_radiological_figures_are_those_turned_round_with_their_letters(head_4mm):
    """A slice is drawn where its millimetres are; the axis runs the other way, and so do the letters."""
    turned = replace(head_4mm.frame, radiological=True)
    pair = (head_4mm.images["TP"], head_4mm.maps["TP"], head_4mm.peak, ("L", "R"))
    drawn = {
        frame.radiological: [axes for axes in figures.plot_case(frame, *pair).axes if axes.get_title()]
        for frame in (head_4mm.frame, turned)
    }
    for plain, other in zip(drawn[False], drawn[True]):
        across_x = plain.get_title().startswith("sagittal")
        ends = plain.get_xlim()
        assert other.get_xlim() == (ends if across_x else ends[::-1])
        assert [text.get_text() for text in plain.texts] == ([] if across_x else ["L", "R"])
        assert [text.get_text() for text in other.texts] == ([] if across_x else ["R", "L"])
        np.testing.assert_array_equal(plain.images[-1].get_array(), other.images[-1].get_array())
    assert "right of the picture" in figures.plot_all_slices(turned, head_4mm.maps).get_supxlabel()
    mosaics = [figures.plot_all_slices(frame, head_4mm.maps).axes[0] for frame in (head_4mm.frame, turned)]
    plain, other = (axes.images[0].get_array() for axes in mosaics)
    width = head_4mm.frame.grid.shape[0]
    np.testing.assert_array_equal(plain[:, :width], other[:, :width][:, ::-1])


def test_an_earlier_scan_is_drawn_on_the_same_slices_and_scales(head):
    """Ten times as bright, it takes the scale: of the case what is left is a tenth."""
    prior = (10 * head.images["TP"], -10 * head.maps["TP"])
    figure = figures.plot_case(head.frame, head.images["TP"], head.maps["TP"], head.peak, ("L", "R"), prior)
    drawn = [axes for axes in figure.axes if axes.get_title()]
    titles = [axes.get_title() for axes in drawn]
    n = len(drawn) // 4
    assert titles[n : 2 * n] == [f"earlier: {title}" for title in titles[:n]]
    for rows in (drawn[: 2 * n], drawn[2 * n :]):
        images = [axes.images[-1] for axes in rows]
        assert len({image.get_clim() for image in images}) == 1
        for now, before in zip(images[:n], images[n:]):
            assert np.abs(before.get_array()).max() == pytest.approx(10 * np.abs(now.get_array()).max(), rel=1e-5)


def test_everything_is_drawn_and_fit_for_print(head, check_print):
    frame, images, maps = head.frame, head.images, head.maps
    case = {"case_id": "sub-1", "group": "FN", "image": images["TP"], "relevance": maps["TP"], "consistent": False}
    for figure in (
        figures.plot_mean_maps(frame, images, maps, {"TN": 3, "TP": 3}),
        figures.plot_all_slices(frame, maps),
        figures.plot_misclassified(frame, images, maps, [case] * 9),
        figures.plot_roi_histogram(frame, head.roi, images["TN"], [-1e-3, 2e-3], ["TN", "TP"]),
        figures.plot_case(frame, images["TP"], maps["TP"], head.peak),
        figures.plot_case(frame, images["TP"], maps["TP"], head.peak, prior=(images["TN"], maps["TN"])),
    ):
        check_print(figure)


@pytest.mark.parametrize("sizes", [(12,), (20, 20), (15, 15, 15, 15)])
def test_strategies_show_the_mean_and_the_prototype_of_each_group(head_4mm, check_print, sizes):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    points = np.eye(16)[groups] + 0.03 * np.random.default_rng(0).normal(size=(len(groups), 16))
    found = find_strategies(points)
    assert found.n == len(sizes)
    drawn = [head_4mm.maps["TP"] * (1 + 0.1 * number) for number in range(len(groups))]
    names = [f"sub-{number:04d}" for number in range(len(groups))]
    figure = figures.plot_strategies(head_4mm.frame, found, drawn, names)
    check_print(figure)
    titles = [axes.get_title() for axes in figure.axes]
    for number, prototype in enumerate(found.prototypes, start=1):
        assert f"group {number}: mean" in titles and f"prototype\n{names[prototype]}" in titles
    assert f"p = {found.p:.3f}" in figure.axes[0].texts[0].get_text()
