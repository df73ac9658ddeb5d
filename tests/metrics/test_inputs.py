"""What a case accepts, and what every metric says of maps that say nothing."""

import numpy as np
import pytest
import torch

from datxai.errors import InputError
from datxai.metrics import METRICS

SHAPE, SPACING = (6, 5, 4), (8.0, 8.0, 8.0)  # mm: several patches
WHERE = ("relevance_mass", "relevance_rank", "pointing_game")


@pytest.mark.parametrize("kind", [int, np.uint8, float, torch.tensor])
def test_masks_of_0_and_1_are_those_of_false_and_true(make_case, kind):
    rng = np.random.default_rng(3)
    masks = {"brain": rng.random(SHAPE) < 0.8, "striatum": rng.random(SHAPE) < 0.2}
    truth = rng.random(SHAPE) < 0.1
    convert = kind if kind is torch.tensor else lambda mask: mask.astype(kind)
    converted = {name: convert(mask) for name, mask in masks.items()}
    given = make_case(regions=converted, truth=convert(truth), spacing=SPACING)
    expected = make_case(regions=masks, truth=truth, spacing=SPACING)
    for name, metric in METRICS.items():
        assert metric(given) == metric(expected), name
    assert 0 < METRICS["relevance_mass"](given)["striatum"] < 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"regions": {"brain": np.ones(SHAPE), "striatum": np.full(SHAPE, 2)}}, "regions: striatum has values other"),
        ({"regions": {"brain": np.ones(SHAPE), "striatum": np.full(SHAPE, np.nan)}}, "regions: striatum has values"),
        ({"truth": np.full(SHAPE, 0.5)}, "truth has values other than 0 and 1"),
        ({"regions": {"brain": np.zeros(SHAPE, bool), "striatum": np.ones(SHAPE, bool)}}, "regions: brain is empty"),
        ({"regions": {"brain": np.ones(SHAPE, bool)}}, "regions: there is no striatum"),
        ({"regions": {"brain": np.ones((6, 5, 3)), "striatum": np.ones(SHAPE)}}, r"brain is of shape \(6, 5, 3\)"),
        ({"truth": np.ones((5, 6, 4), bool)}, r"truth is of shape \(5, 6, 4\), expected \(6, 5, 4\)"),
        ({"relevance": np.ones((1, *SHAPE))}, r"relevance is of shape \(1, 6, 5, 4\), expected one map"),
        ({"relevance": np.ones((6, 5, 3))}, r"x is of shape \(1, 1, 6, 5, 4\), expected \(1, 1, 6, 5, 3\)"),
        ({"x": torch.ones(SHAPE)}, r"x is of shape \(6, 5, 4\)"),
        ({"fill": torch.ones(1, *SHAPE)}, r"fill is of shape \(1, 6, 5, 4\)"),
        ({"parcels": np.ones((6, 5), int)}, r"parcels is of shape \(6, 5\)"),
    ],
)
def test_what_does_not_fit_is_named(make_case, given, said):
    with pytest.raises(InputError, match=said):
        make_case(**given)


def test_an_empty_region_has_no_numbers_and_the_others_keep_theirs(make_case):
    empty = np.zeros(SHAPE, bool)
    for name in WHERE:
        found = METRICS[name](make_case(regions={"brain": ~empty, "striatum": empty}, truth=empty))
        assert np.isnan(found["striatum"]) and np.isnan(found["truth"]) and np.isfinite(found["brain"])


def test_no_parcels_cannot_be_flipped(make_case):
    case = make_case(parcels=np.zeros(SHAPE, int), spacing=SPACING)
    with pytest.raises(InputError, match="parcels: there are none"):
        METRICS["parcel_flipping"](case)
    assert np.isfinite(list(METRICS["patch_flipping"](case).values())).all()


def with_voxel(value):
    data = np.random.default_rng(0).normal(size=SHAPE)
    data[5, 4, 3] = value
    return data


SILENT = {
    "zero": np.zeros(SHAPE), "one": np.ones(SHAPE), "a tenth": np.full(SHAPE, 0.1), "negative": np.full(SHAPE, -7.0),
    "nan": with_voxel(np.nan), "inf": with_voxel(np.inf), "minus inf": with_voxel(-np.inf),
    "all nan": np.full(SHAPE, np.nan),
}  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("kind", SILENT)
def test_a_map_that_says_nothing_has_no_numbers(make_case, name, kind):
    inner = np.zeros(SHAPE, bool)
    inner[:3, :3, :3] = True  # the voxel that is not finite lies in no region
    given = {"regions": {"brain": inner, "striatum": inner}, "parcels": np.where(inner, 1 + np.indices(SHAPE)[0], 0)}
    silent, other = (METRICS[name](make_case(data, spacing=SPACING, **given)) for data in (SILENT[kind], None))
    assert silent and np.isnan(list(silent.values())).all()
    assert np.isfinite(list(other.values())).all()


@pytest.mark.parametrize("kind", SILENT)
def test_nor_has_likeness_to_one_of_another_output_or_network(make_case, kind):
    silent = torch.from_numpy(SILENT[kind])[None]
    case = make_case(explain=lambda model, x: silent, explain_other=lambda model, x: silent)
    for name in ("parameter_randomisation", "random_logit"):
        assert np.isnan(list(METRICS[name](case).values())).all()
    if not np.isfinite(SILENT[kind]).all():
        assert np.isnan(METRICS["max_sensitivity"](case)["max_sensitivity"])
