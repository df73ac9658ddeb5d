"""Summaries, ranks and figures of a benchmark, on numbers made by hand."""

import numpy as np
import pytest
from scipy.stats import norm

from datxai.pages.benchmark import (
    Measure,
    average_ranks,
    format_short,
    plot_maps,
    plot_ranks,
    summarise,
    tabulate,
    write_markdown,
)  # fmt: skip

MEASURES = {"good": Measure("Good", True), "bad": Measure("Bad", False), "seconds": Measure("Seconds", None)}
VALUES = {
    "a": {"good": [3.0, 5.0, 4.0], "bad": [0.1, 0.3, 0.2], "seconds": [1.0, 1.0, 1.0]},
    "b": {"good": [1.0, 2.0, None], "bad": [0.9, 0.7, 0.8], "seconds": [2.0, 2.0, 2.0]},
    "c": {"good": [4.0, float("nan"), 4.0], "bad": [0.5, 0.5, 0.5], "seconds": [9.0, 9.0, 9.0]},
}


@pytest.fixture
def results():
    return [
        {"method": method, "metric": metric, "case": f"case-{number}", "value": value}
        for method, cells in VALUES.items()
        for metric, values in cells.items()
        for number, value in enumerate(values)
    ]


def test_means_leave_out_what_is_not_known_and_ranks_follow_the_direction(results):
    rows = {(row["method"], row["metric"]): row for row in summarise(results, MEASURES)}
    assert [rows[m, "good"]["mean"] for m in "abc"] == [4.0, 1.5, 4.0]
    assert [rows[m, "good"]["n"] for m in "abc"] == [3, 2, 2]
    assert [rows[m, "good"]["rank"] for m in "abc"] == [1.5, 3.0, 1.5]
    assert [rows[m, "bad"]["rank"] for m in "abc"] == [1.0, 3.0, 2.0]
    assert rows["a", "seconds"]["rank"] is None
    assert average_ranks([*rows.values()]) == {"a": 1.25, "c": 1.75, "b": 3.0}


def test_the_interval_is_that_of_the_mean_for_many_cases():
    """Oracle: the normal interval, which the bootstrap of a mean approaches."""
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    rows = [{"method": "a", "metric": "good", "case": str(i), "value": v} for i, v in enumerate(values)]
    (row,) = summarise(rows, MEASURES, seed=1, resamples=4000)
    half = norm.ppf(0.975) * values.std() / np.sqrt(len(values))
    assert [row["low"], row["high"]] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)
    assert summarise(rows, MEASURES, seed=1, resamples=4000) == [row]
    (single,) = summarise(rows[:1], MEASURES)
    assert (single["low"], single["high"]) == (None, None)


def test_means_that_differ_by_rounding_alone_share_a_rank():
    values = {"a": [1.0, -1.0 + 1e-13], "b": [1.0, -1.0], "c": [1.0, -0.9]}
    rows = [
        {"method": name, "metric": "bad", "case": str(number), "value": value}
        for name, pair in values.items()
        for number, value in enumerate(pair)
    ]
    assert [row["rank"] for row in summarise(rows, MEASURES)] == [1.5, 1.5, 3.0]
    assert format_short(summarise(rows, MEASURES)[0]["mean"]) == "0"


def test_tables_say_what_the_summary_says(results):
    summary = summarise(results, MEASURES)
    head, first, *_ = tabulate(summary, MEASURES)
    assert head == ["method", "mean rank", "Good ↑", "Bad ↓", "Seconds"]
    assert first[:2] == ["a", "1.2"] and first[2].startswith("4.00 (") and first[4] == "1.00 (1.00 to 1.00)"
    case = {"case": "putamen_left-1", "lesion": "putamen_left", "effect": 0.5, "seen": True, "input_share": 0.2}
    page = write_markdown([head, first], [case, {"case": "x", "lesion": None}], "r")
    assert "1 test cases and 1 lesioned" in page
    assert "| putamen_left-1 | 0.5 | yes | 0.2 |" in page


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (-1.5, "-1.50"), (1.2e-5, "1e-5"), (3e5, "3e5")]
)
def test_numbers_are_short(value, text):
    assert format_short(value) == text


def test_the_figure_of_ranks_is_fit_for_print(results, check_print):
    figure = plot_ranks(summarise(results, MEASURES), MEASURES)
    check_print(figure)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c", "b"]
    assert np.ma.getdata(axes.images[0].get_array())[0] == pytest.approx([1.5, 1.0, np.nan, 1.25], nan_ok=True)


def test_maps_share_one_scale_and_show_the_lesion(head_4mm, check_print):
    maps = {"lrp": head_4mm.maps["TP"], "ten times lrp": 10 * head_4mm.maps["TP"], "nothing": 0 * head_4mm.maps["TP"]}
    lesion = head_4mm.roi
    figure = plot_maps(head_4mm.frame, head_4mm.images["TP"], maps, lesion)
    check_print(figure)
    shown = [axes.images[0].get_array() for axes in figure.axes[1:4]]
    assert np.allclose(shown[0], shown[1])
    assert np.max(shown[0]) == 1.0 and not np.any(shown[2])
