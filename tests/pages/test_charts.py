import numpy as np
import pytest

from datxai.analysis.classification import fit_cart, summarise
from datxai.analysis.detection import DOUBTS, trace_roc
from datxai.pages import charts

PAPER = summarise([0] * 150 + [1] * 138, [0] * 148 + [1] * 2 + [0] * 10 + [1] * 128)


def legend(figure):
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def test_training_marks_the_epoch_whose_weights_are_kept():
    history = [
        {"epoch": str(i), "train_loss": "0.5", "validation_loss": str(abs(i - 3)), "train_accuracy": "0.8",
         "validation_accuracy": str(0.1 * i)}
        for i in range(1, 6)
    ]  # fmt: skip
    figure = charts.plot_training(history)
    assert "weights kept (epoch 3)" in legend(figure)
    assert figure.axes[1].lines[1].get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_sbr_figure_tells_the_classes_apart():
    (axes,) = charts.plot_sbr([0.5, 0.7, 1.4], [3.0, 2.5, 1.9], [1, 1, 0], cutoff=0.95).axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["normal (n = 1)", "reduced (n = 2)", "cutoff 0.95"]
    assert axes.collections[1].get_offsets().tolist() == [[0.5, 3.0], [0.7, 2.5]]


def test_table1_shows_every_cell():
    row = {"set": "whole", "label": 0, "sex": "F", "n": 296, "age_mean": 67.7, "age_sd": 11.3}
    (axes,) = charts.plot_table1([row, {**row, "set": "test", "n": 66}]).axes
    cells = [cell.get_text().get_text() for cell in axes.tables[0].get_celld().values()]
    assert {"normal, females", "67.7 \u00b1 11.3 (n = 296)", "Test set (n = 66)"} <= set(cells)


def test_classification_shows_every_measure_with_its_interval():
    figure = charts.plot_classification({"paper": PAPER, "none": summarise([0], [0])})
    assert legend(figure)[0] == "paper: TN 148, FP 2, FN 10, TP 128"
    container = figure.axes[0].containers[0]
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    keys = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv")
    expected = [100 * PAPER[key] for key in keys]
    assert container.lines[0].get_xdata() == pytest.approx(expected)
    segments = container.lines[2][0].get_segments()
    assert segments[0][:, 0] == pytest.approx([100 * end for end in PAPER["accuracy_ci95"]])
    assert names == ["Accuracy", "Balanced accuracy", "Sensitivity", "Specificity", "PPV", "NPV"]


def test_tree_shows_every_node_and_no_two_leaves_in_one_place():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 7))
    labels = (features[:, 0] + features[:, 2] > 0.3).astype(int)
    nodes = fit_cart(features, labels).nodes
    (axes,) = charts.plot_tree(nodes).axes
    assert len(axes.texts) == len(nodes) > 5
    assert axes.texts[0].get_text().endswith(f"{(labels == 0).sum()} normal,\n{labels.sum()} reduced")
    places = [text.get_position() for text in axes.texts]
    leaves = [place for place, node in zip(places, nodes) if node["feature"] is None]
    assert sorted(x for x, _ in leaves) == list(range(len(leaves)))
    for node, (x, y) in zip(nodes, places):
        if node["feature"]:
            assert places[node["left"]][0] < x < places[node["right"]][0]
            assert places[node["left"]][1] == places[node["right"]][1] == y + 1


def test_tree_of_a_single_leaf():
    (axes,) = charts.plot_tree([{"feature": None, "threshold": None, "left": None, "right": None, "normal": 3,
                                 "reduced": 1}]).axes  # fmt: skip
    assert axes.texts[0].get_text() == "normal\n3 normal,\n1 reduced"


def test_detection_names_areas_and_leaves_out_what_has_none():
    curves = {"a": trace_roc([True, False, False], [3.0, 1.0, 2.0]), "b": trace_roc([False], [1.0])}
    (text,) = legend(charts.plot_detection(curves))
    assert text.startswith("a: AUC 1.000 (")
    (axes,) = charts.plot_detection({"b": curves["b"]}).axes
    assert "no misclassified case" in [text.get_text() for text in axes.texts]


def test_regions_show_the_striatum_and_the_first_of_the_others():
    names = ("density", "TN", "TP")
    rows = [
        {"region": f"region_{i}", "striatal": i in (2, 40), **{name: float(i) for name in names},
         **{f"{name}_low": i - 1.0 for name in names}, **{f"{name}_high": i + 1.0 for name in names}}
        for i in range(50, 0, -1)
    ]  # fmt: skip
    left = charts.plot_regions(rows, n=5).axes[0]
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels == ["region 40", "region 2", "region 50", "region 49", "region 48", "region 47", "region 46"]
    assert left.containers[0].lines[0].get_xdata() == pytest.approx([40, 2, 50, 49, 48, 47, 46])


def test_repeats_and_starts_show_a_point_per_network_and_case():
    axes = charts.plot_repeats({"1": PAPER, "2": PAPER}).axes[0]
    assert [container.lines[0].get_ydata()[0] for container in axes.containers] == pytest.approx(
        [100 * PAPER["sensitivity"]] * 2 + [100 * PAPER["specificity"]] * 2
    )
    figure = charts.plot_putamen_by_start({"a": [[1.0, -2.0], [3.0, 6.0]]}, [["TN", "TP"], ["TN", "FP"]])
    heights = [points.get_offsets()[:, 1].tolist() for points in figure.axes[0].collections]
    assert heights[0] == pytest.approx([0.5, 0.5])
    assert heights[1:] == [[-1.0], [], [1.0]]


def test_everything_is_fit_for_print(check_print):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, 7))
    labels = (features[:, 0] * features[:, 2] > 0.1).astype(int)
    roc = trace_roc((labels == 1).tolist(), features[:, 1].tolist())
    names = ("density", "TN", "TP")
    region = {"striatal": False, **{f"{name}{end}": value for name in names
                                    for end, value in (("", 2.0), ("_low", 1.5), ("_high", 2.5))}}  # fmt: skip
    history = [
        {"epoch": i, "train_loss": 0.5, "validation_loss": i, "train_accuracy": 0.8, "validation_accuracy": 0.1}
        for i in range(1, 80)
    ]
    start = "reduced \u2212 normal, logit; map \u2212 mean map"
    row = {"set": "whole", "label": 0, "sex": "F", "n": 296, "age_mean": 67.7, "age_sd": 11.3}
    for figure in (
        charts.plot_training(history),
        charts.plot_sbr(features[:, 0], features[:, 1], labels, 0.1),
        charts.plot_table1([{**row, "label": label, "sex": sex} for label in (0, 1) for sex in "FM"]),
        charts.plot_classification({f"classifier {i}": PAPER for i in range(5)}),
        charts.plot_tree(fit_cart(features, labels).nodes),
        charts.plot_detection(dict.fromkeys(DOUBTS.values(), roc)),
        charts.plot_regions([{**region, "region": f"rostralanteriorcingulate_contralateral_{i}"} for i in range(9)]),
        charts.plot_repeats({str(i): PAPER for i in range(10)}),
        charts.plot_putamen_by_start({f"{start}{i}": [[1.0, 2.0]] for i in range(6)}, [["TN", "FP"]]),
    ):
        check_print(figure)


@pytest.mark.parametrize("age", [61.0, None])
@pytest.mark.parametrize("n", [6, 0])
def test_a_scan_is_drawn_among_the_normal_cases(age, n, check_print):
    ages = np.linspace(40, 80, 5)
    curve = {"age": ages, "low": 2 - ages / 100, "median": 3 - ages / 100, "high": 4 - ages / 100}
    cloud = (list(range(50, 50 + n)), [2.0] * n, [True, False] * (n // 2))
    panels = {title: {"value": value, "curve": curve, "cloud": cloud} for title, value in (("a", 0.9), ("b", None))}
    figure = charts.plot_among_normals(panels, age)
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("a", "b")
    assert first.lines[0].get_ydata() == pytest.approx(curve["median"])
    (_, scan), band = first.lines, first.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((2 - 0.8, 4 - 0.4))
    assert np.ravel(scan.get_ydata()).tolist() == ([0.9] if age else [0.9, 0.9])
    assert len(second.lines) == 1
    points = [collection.get_offsets() for collection in first.collections[1:]]
    assert [len(offsets) for offsets in points] == [n // 2, n // 2]
    check_print(figure)
