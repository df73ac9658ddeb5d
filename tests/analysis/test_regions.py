import numpy as np
import pytest
from scipy import stats

from datxai.analysis.regions import COLUMNS, REST, label_regions, measure_regions, summarise_regions

NAMES = {1: "putamen_left", 2: "putamen_right", 3: "insula_left", 4: "brainstem"}
SPACING = (2.0, 2.0, 4.0)


@pytest.fixture
def head():
    parcellation = np.zeros((10, 6, 4), np.int16)
    parcellation[1:3], parcellation[7:9], parcellation[4, 2], parcellation[0, 0] = 1, 2, 3, 4
    brain = np.ones(parcellation.shape, bool)
    brain[:, :, 0] = False
    parcellation[:, :, 0] = 0
    return parcellation, brain, np.isin(parcellation, (1, 2))


def test_regions_have_sides_volumes_and_distances(head):
    parcellation, brain, striatum = head
    regions = {row["region"]: row for row in label_regions(parcellation, NAMES, brain, striatum, SPACING)}
    assert list(regions) == ["putamen_ipsilateral", "putamen_contralateral", "insula_ipsilateral", "brainstem", REST]
    assert [row["striatal"] for row in regions.values()] == [True, True, False, False, False]
    assert regions["putamen_ipsilateral"]["volume_ml"] == pytest.approx(2 * 6 * 3 * 16 / 1000)
    assert sum(row["volume_ml"] for row in regions.values()) == pytest.approx(brain.sum() * 16 / 1000)
    assert regions["putamen_contralateral"]["distance_mm"] == 0
    assert regions["insula_ipsilateral"]["distance_mm"] == pytest.approx(4.0)  # two voxels of 2 mm


def test_shares_add_up_and_a_map_without_structure_has_density_one(head):
    parcellation, brain, striatum = head
    regions = label_regions(parcellation, NAMES, brain, striatum, SPACING)
    relevance = np.random.default_rng(0).normal(size=brain.shape).astype(np.float32)
    measured = measure_regions(relevance, regions, brain)
    assert sum(row["share"] for row in measured) == pytest.approx(1)
    first = relevance[parcellation == 1].astype(float)
    assert measured[0]["mean"] == pytest.approx(first.mean() / np.abs(relevance[brain]).mean(dtype=float))
    even = measure_regions(np.where(brain, -3.0, 50.0), regions, brain)
    assert [row["density"] for row in even] == pytest.approx([1] * 5)
    assert [row["mean"] for row in even] == pytest.approx([-1] * 5)
    assert measure_regions(relevance * 1e-6, regions, brain)[0]["mean"] == pytest.approx(measured[0]["mean"])
    assert measure_regions(np.zeros(brain.shape), regions, brain)[0] == {"share": None, "density": None, "mean": None}


def test_intervals_against_scipy_and_regions_in_order(head):
    parcellation, brain, striatum = head
    regions = label_regions(parcellation, NAMES, brain, striatum, SPACING)
    rng = np.random.default_rng(1)
    maps = [rng.normal(0, 1 + 3 * striatum) + 2 * (parcellation == 1) * (i % 2) for i in range(24)]
    groups = ["TP" if i % 2 else "TN" for i in range(22)] + ["FN", "FP"]
    measured = [measure_regions(data, regions, brain) for data in maps]
    rows = summarise_regions(regions, measured, groups)
    assert list(rows[0]) == list(COLUMNS)
    assert {row["region"] for row in rows[:2]} == {"putamen_ipsilateral", "putamen_contralateral"}
    assert [row["density"] for row in rows] == sorted((row["density"] for row in rows), reverse=True)
    row = next(row for row in rows if row["region"] == "putamen_ipsilateral")
    density = [case[0]["density"] for case in measured]
    expected = stats.ttest_1samp(density, 0).confidence_interval(0.95)
    assert (row["density_low"], row["density_high"]) == pytest.approx((expected.low, expected.high))
    tn, tp = ([case[0]["mean"] for case, of in zip(measured, groups) if of == name] for name in ("TN", "TP"))
    expected = stats.ttest_ind(tp, tn, equal_var=False).confidence_interval(0.95)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((expected.low, expected.high))
    assert row["difference"] == pytest.approx(np.mean(tp) - np.mean(tn))


def test_groups_of_one_or_no_case_have_no_interval(head):
    parcellation, brain, striatum = head
    regions = label_regions(parcellation, NAMES, brain, striatum, SPACING)
    row = summarise_regions(regions, [measure_regions(1.0 * striatum, regions, brain)], ["TN"])[0]
    assert row["TN"] > 0
    assert row["TN_low"] is row["TP"] is row["difference"] is None
