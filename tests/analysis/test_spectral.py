"""Groups of maps that are known, and none where there are none."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from datxai.analysis.spectral import LEVEL, find_strategies, shrink


def make_maps(sizes, noise=0.03, seed=0):
    """Maps [n, 8, 8, 8] with a bright spot, elsewhere in each group, and the group of each, in mixed order."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    maps = noise * rng.normal(size=(len(truth), 8, 8, 8))
    for data, group in zip(maps, truth):
        data[2 * group : 2 * group + 2, 3:5, 3:5] += 1
    return np.stack([shrink(data, (1, 1, 1), 1) for data in maps]), truth


@pytest.mark.parametrize("sizes", [(20, 20), (30, 12), (15, 15, 15)])
def test_planted_groups_are_found(sizes):
    maps, truth = make_maps(sizes)
    found = find_strategies(maps)
    assert found.n == len(sizes) and found.p <= LEVEL
    assert adjusted_rand_score(truth, found.clusters) == 1
    assert np.bincount(found.clusters).tolist() == sorted(sizes, reverse=True)
    for number, prototype in enumerate(found.prototypes):
        assert found.clusters[prototype] == number
        mean = maps[found.clusters == number].mean(axis=0)
        assert np.corrcoef(mean.ravel(), maps[prototype].ravel())[0, 1] > 0.9


def test_maps_of_one_kind_are_one_group_about_as_often_as_the_level_says():
    """However elongated the cloud: a bright spot of varying strength, or nothing but noise."""
    wrong = 0
    for seed in range(8):
        maps, _ = make_maps((24,), seed=seed)
        wrong += find_strategies(maps).n > 1
        rng = np.random.default_rng(seed)
        wrong += find_strategies(rng.normal(size=(24, 1)) * maps[:1].reshape(1, -1) + 0.01 * maps.reshape(24, -1)).n > 1
    assert wrong <= 3, "of 16, at a level of 5 %"


def test_eigenvalues_count_the_parts_of_the_graph():
    """The multiplicity of zero is the number of connected components (von Luxburg 2007, proposition 4)."""
    maps, _ = make_maps((16, 16, 16), noise=0.01)
    eigenvalues = find_strategies(maps).eigenvalues
    assert (eigenvalues[:3] < 0.01).all() and eigenvalues[3] > 0.3
    assert (np.diff(eigenvalues) >= 0).all() and eigenvalues[-1] <= 2


def test_the_order_of_the_maps_does_not_matter():
    maps, _ = make_maps((14, 14))
    order = np.random.default_rng(1).permutation(28)
    first, second = find_strategies(maps), find_strategies(maps[order])
    assert adjusted_rand_score(first.clusters[order], second.clusters) == 1
    np.testing.assert_allclose(first.eigenvalues, second.eigenvalues, atol=1e-9)


def test_shrunk_maps_are_means_of_cells_without_their_scale():
    data = np.arange(4 * 6 * 2, dtype=np.float32).reshape(4, 6, 2) - 20
    small = shrink(data, (2.0, 1.0, 3.0), 4.0)
    cells = [data[2 * i : 2 * i + 2, 4 * j : 4 * j + 4, k].sum() / 8 for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    expected = np.reshape(cells, (2, 2, 2)).astype(float)
    np.testing.assert_allclose(small, expected / np.linalg.norm(expected), rtol=1e-12)
    np.testing.assert_allclose(shrink(7 * data, (2.0, 1.0, 3.0), 4.0), small, rtol=1e-6)
    assert not shrink(np.zeros((4, 4, 4)), (1, 1, 1), 2).any()
