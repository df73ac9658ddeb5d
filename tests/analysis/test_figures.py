import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from datxai.analysis import figures

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
    assert "True negative (n = 148)" in said
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
    assert all(said.count(f"{head.frame.position(2, level):.0f}") == 3 for level in levels)
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
    assert [text.get_text() for text in figure.texts].count("no misclassified case") == (n == 0)
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
    axes = figure.axes[1]
    bars = [bar for container in axes.containers for bar in container]
    assert sum(bar.get_height() for bar in bars) == 90
    below = [bar.get_height() for bar in bars if bar.get_x() + bar.get_width() / 2 < cutoff]
    assert sum(below) == (values < cutoff).sum()
    assert min(abs(bar.get_x() - cutoff) for bar in bars) == pytest.approx(0, abs=ROUNDING)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "true negative (n = 30)", "true positive (n = 30)", "false negative (n = 30)", "cutoff 0.0002",
    ]  # fmt: skip


@pytest.mark.parametrize("values", [[], [0.0], [1e-3, 1e-3], [-2.0]])
def test_histogram_of_few_or_equal_values(head_4mm, values):
    figure = figures.plot_roi_histogram(head_4mm.frame, head_4mm.roi, None, values, ["TN"] * len(values))
    heights = [bar.get_height() for container in figure.axes[1].containers for bar in container]
    assert sum(heights) == len(values)


def test_case_shows_the_slices_through_the_peak(head):
    figure = figures.plot_case(head.frame, head.images["TP"], head.maps["TP"], head.peak, ("L", "R"))
    said = texts(figure)
    position = head.frame.grid.index_to_mm(head.peak)
    thin = head.frame.grid.shape[2] == 1
    expected = {"axial": "z", "coronal": "y", "sagittal": "x"}
    for plane, axis in expected.items():
        title = f"{plane}, {axis} = {position['xyz'.index(axis)]:.0f} mm"
        assert said.count(title) == (0 if thin and plane != "axial" else 2)
    assert said.count("L") == said.count("R") == (2 if thin else 4)


def test_everything_is_drawn_without_a_warning(head):
    frame, images, maps = head.frame, head.images, head.maps
    case = {"case_id": "sub-1", "group": "FN", "image": images["TP"], "relevance": maps["TP"], "consistent": False}
    for figure in (
        figures.plot_mean_maps(frame, images, maps, {"TN": 3, "TP": 3}),
        figures.plot_all_slices(frame, maps),
        figures.plot_misclassified(frame, images, maps, [case] * 9),
        figures.plot_roi_histogram(frame, head.roi, images["TN"], [-1e-3, 2e-3], ["TN", "TP"]),
        figures.plot_case(frame, images["TP"], maps["TP"], head.peak),
    ):
        figure.draw_without_rendering()
        width, height = figure.canvas.get_width_height()
        for axes in figure.axes:  # nothing is cut off
            box = axes.get_tightbbox()
            assert min(box.x0, box.y0) > -1
            assert box.x1 < width + 1
            assert box.y1 < height + 1


def test_training_marks_the_epoch_whose_weights_are_kept():
    history = [
        {"epoch": str(i), "train_loss": "0.5", "validation_loss": str(abs(i - 3)), "train_accuracy": "0.8",
         "validation_accuracy": str(0.1 * i)}
        for i in range(1, 6)
    ]  # fmt: skip
    loss, accuracy = figures.plot_training(history).axes
    assert "weights kept (epoch 3)" in [text.get_text() for text in loss.get_legend().get_texts()]
    assert accuracy.lines[1].get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_sbr_figure_tells_the_classes_apart():
    (axes,) = figures.plot_sbr([0.5, 0.7, 1.4], [3.0, 2.5, 1.9], [1, 1, 0], cutoff=0.95).axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["normal (n = 1)", "reduced (n = 2)", "cutoff 0.95"]
    assert axes.collections[1].get_offsets().tolist() == [[0.5, 3.0], [0.7, 2.5]]


def test_table1_shows_every_cell():
    row = {"set": "whole", "label": 0, "sex": "F", "n": 296, "age_mean": 67.7, "age_sd": 11.3}
    (axes,) = figures.plot_table1([row, {**row, "set": "test", "n": 66}]).axes
    cells = [cell.get_text().get_text() for cell in axes.tables[0].get_celld().values()]
    assert {"normal, females", "67.7 \u00b1 11.3 (n = 296)", "Test set (n = 66)"} <= set(cells)


def test_saved_in_print_resolution_twice_the_same(tmp_path):
    for name in ("a", "b"):
        figures.save_figure(figures.plot_sbr([0.5, 1.4], [3.0, 1.9], [1, 0]), tmp_path / "sub" / f"fig.{name}")
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == [
        "fig.a.pdf", "fig.a.png", "fig.b.pdf", "fig.b.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "sub" / "fig.a.png") as image:
        assert image.size == (1440, 1020)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    for suffix in (".png", ".pdf"):
        assert (tmp_path / "sub" / f"fig.a{suffix}").read_bytes() == (tmp_path / "sub" / f"fig.b{suffix}").read_bytes()


def test_pyplot_and_its_global_state_stay_out():
    code = "import sys, datxai.analysis.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
