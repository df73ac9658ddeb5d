import pytest

from datxai.pages.tables import (
    arrange_table1,
    format_cell,
    format_measure,
    format_percent,
    format_probability,
    name_in_words,
)


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (276 / 288, [0.92863, 0.97600], "95.8 % (92.9 to 97.6)"),
        (1.0, None, "100.0 %"),
        (0.0, [0.0, 0.161], "0.0 % (0.0 to 16.1)"),
        (None, None, "n/a"),
    ],
)
def test_percent(value, interval, text):
    assert format_percent(value, interval) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        ("", "n/a"),
        (True, "yes"),
        (3, "3"),
        ("a", "a"),
        (-0.0, "0"),
        (-1.23456, "\u22121.23"),
        (1234.5, "1234"),
        (-4.361e-4, "\u22124.36e\u22124"),
        (9.999e-4, "0.001"),
    ],
)
def test_cell(value, text):
    assert format_cell(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "< 0.001"), (0.00049, "< 0.001"), (0.0051, "0.005"), (1.0, "> 0.999"), (None, "n/a")]
)
def test_probability_is_never_none_and_never_all(value, text):
    assert format_probability(value) == text


@pytest.mark.parametrize(
    ("name", "value", "interval", "text"),
    [
        ("auc", 0.98428, [0.892197, 0.997728], "0.984 (0.892 to 0.998)"),
        ("sensitivity", 0.96, [0.80456, 0.9929], "96.0 % (80.5 to 99.3)"),
        ("ece_raw", -0.0123, [-0.5, 0.25], "\u22120.012 (\u22120.500 to 0.250)"),
        ("auc", None, None, "n/a"),
    ],
)
def test_measures_have_their_units(name, value, interval, text):
    assert format_measure(name, value, interval) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("medialorbitofrontal_ipsilateral", "medial orbitofrontal ipsilateral"),
        ("transversetemporal", "transverse temporal"),
        ("rostralanteriorcingulate", "rostral anterior cingulate"),
        ("parahippocampal_left", "parahippocampal left"),
        ("drift_mm", "drift of a further fit, mm"),
        ("caudate_putamen_ratio", "caudate / putamen"),
    ],
)
def test_names_are_read_as_words(name, text):
    assert name_in_words(name) == text


def test_every_measure_of_quality_has_words():
    from datxai.imaging.quality import LIMITS
    from datxai.pages.tables import NAMES

    assert {*LIMITS} <= {*NAMES}


def test_table1_of_the_paper():
    """Two rows of Table 1 in Nazari et al. 2022 (doi:10.1007/s00259-021-05569-9)."""
    printed = {
        "whole": [(0, "F", 296, 67.7, 11.3), (0, "M", 380, 68.7, 11.6), (1, "F", 246, 66.7, 11.0), (1, "M",
        374, 66.6, 11.0)], "test": [(0, "F", 66, 67.6, 10.5), (0, "M", 84, 68.8, 11.3), (1, "F", 55, 66.7,
        11.1), (1, "M", 83, 66.9, 11.0)],
    }  # fmt: skip
    names = ("label", "sex", "n", "age_mean", "age_sd")
    rows = [{"set": name, **dict(zip(names, cells))} for name, groups in printed.items() for cells in groups]
    header, whole, test = arrange_table1(rows)
    assert header[1:] == ["normal, females", "normal, males", "reduced, females", "reduced, males"]
    assert whole[:2] == ["Whole sample (n = 1296)", "67.7 \u00b1 11.3 (n = 296)"]
    assert test[0] == "Test set (n = 288)"
    assert test[-1] == "66.9 \u00b1 11.0 (n = 83)"


def test_table1_with_unknown_age_and_sex():
    rows = [
        {"set": "whole", "label": 1, "sex": None, "n": 1, "age_mean": 60.0, "age_sd": None},
        {"set": "whole", "label": 0, "sex": None, "n": 2, "age_mean": None, "age_sd": None},
    ]
    assert arrange_table1(rows) == [
        ["Age in years", "reduced, sex unknown", "normal, sex unknown"],
        ["Whole sample (n = 3)", "60.0 (n = 1)", "n/a (n = 2)"],
    ]
