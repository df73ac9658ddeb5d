"""The same head in any field of view: how much air, scatter or noise is around it does not change what is measured."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from datxai.case import SBR, Imaging
from datxai.config import Atlas, Config, Lattice, Registration
from datxai.imaging.reconstruction import reconstruct
from datxai.phantom.population import draw_population
from datxai.phantom.scan import simulate_projections
from datxai.volume import Volume

WITHIN = 0.02  # of a binding ratio
GRID = Lattice("mni_4mm", [46, 55, 46], [4, 4, 4], [-90, -126, -72])
FEW = {
    "deadline": None,
    "derandomize": True,
    "phases": (Phase.explicit, Phase.generate),  # a variant takes seconds: one that fails is not made smaller
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@pytest.fixture(scope="module")
def imaging():
    return Imaging.of(Config(grid=GRID, registration=Registration("affine"), atlas=Atlas()))


@pytest.fixture(scope="module")
def acquisition():
    """Counts (views, rows, bins) of a head in a field of 256 mm, and the angles."""
    counts, camera = simulate_projections(draw_population(3, 0)[2])
    return counts, camera.angles_deg


@pytest.fixture(scope="module")
def scan(acquisition):
    return reconstruct(*acquisition, 4.0)


@pytest.fixture(scope="module")
def expected(imaging, scan):
    return measure(imaging, scan)


def measure(imaging, scan):
    _, measures = imaging.process(scan, "the scan")
    assert measures["quality"]["verdict"] == "green", measures["quality"]["reason"]
    return np.array([measures[name] for name in SBR])


LATTICE = 0.01  # of a single ratio: where the lattice of 4 mm begins moves the registration of a noisy scan a little


RIMS = {
    "zero": lambda rng, level, n: np.zeros(n),
    "negative": lambda rng, level, n: np.full(n, -0.3 * level),
    "very negative": lambda rng, level, n: np.full(n, -1000 * level),
    "scatter": lambda rng, level, n: np.full(n, rng.uniform(0.0, 0.5) * level),
    "noise": lambda rng, level, n: rng.normal(0.0, rng.uniform(0.05, 0.5) * level, n),
    "bright noise": lambda rng, level, n: np.abs(rng.normal(0.0, 0.5 * level, n)),
}


@settings(max_examples=5, **FEW)
@given(
    wider=st.tuples(*[st.integers(0, 48)] * 6),  # voxels of 4 mm on each side: up to 640 mm
    rim=st.sampled_from(sorted(RIMS)),
    seed=st.integers(0, 99),
)
def test_a_volume(wider, rim, seed, imaging, scan, expected):
    rng, sides = np.random.default_rng(seed), np.reshape(wider, (3, 2))
    inner = np.pad(np.ones(scan.shape, bool), sides)
    data = np.pad(scan.data, sides)
    data[~inner] = RIMS[rim](rng, np.quantile(scan.data, 0.9), np.count_nonzero(~inner))
    affine = scan.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ sides[:, 0]
    found = measure(imaging, Volume(data, affine))
    np.testing.assert_allclose(found, expected, rtol=WITHIN + LATTICE)
    np.testing.assert_allclose(found.mean(), expected.mean(), rtol=WITHIN / 2)


@settings(max_examples=4, **FEW)
@given(bins=st.integers(58, 160), rim=st.sampled_from(["scatter", "zero"]), seed=st.integers(0, 99))
def test_an_acquisition(bins, rim, seed, imaging, acquisition, expected):
    """Wider fields go on as the outer bins do, or are masked; narrower ones lack outer bins."""
    counts, angles = acquisition
    views, rows, inner = counts.shape
    if bins <= inner:
        cut = (inner - bins) // 2
        wide = counts[:, :, cut : inner - cut]
    else:
        haze = counts[:, :, [0, 1, 2, -3, -2, -1]].mean() if rim == "scatter" else 0.0
        wide = np.random.default_rng(seed).poisson(haze, (views, rows, inner + 2 * ((bins - inner) // 2)))
        first = (wide.shape[2] - inner) // 2
        wide[:, :, first : first + inner] = counts
    np.testing.assert_allclose(measure(imaging, reconstruct(wide, angles, 4.0)), expected, rtol=WITHIN)
