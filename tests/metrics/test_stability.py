"""Max-sensitivity of methods whose answer to noise is known."""

import numpy as np
import pytest
import torch

from datxai.metrics import METRICS
from datxai.metrics.stability import RADIUS, max_sensitivity


def test_a_map_of_its_own_does_not_move_and_the_input_itself_moves_as_the_noise(make_case):
    own = np.random.default_rng(1).normal(size=(6, 5, 4))
    still = make_case(own, explain=lambda model, x: torch.from_numpy(own).expand(len(x), -1, -1, -1))
    assert METRICS["max_sensitivity"](still) == {"max_sensitivity": 0}
    case = make_case()
    itself = make_case(case.x[0, 0].numpy(), explain=lambda model, x: x[:, 0])
    ratio = float(METRICS["max_sensitivity"](itself)["max_sensitivity"] * case.x.norm() / RADIUS)
    n = case.x.numel()
    assert ratio == pytest.approx(np.sqrt(n / 3), rel=0.1) and ratio < np.sqrt(n), "uniform in (-1, 1): variance 1/3"


def test_more_draws_never_lower_it_and_it_scales_with_the_radius_of_a_linear_method(make_case):
    case = make_case()
    plain = make_case(case.explain(case.model, case.x)[0].numpy())
    few, many = (max_sensitivity(plain, samples=n)["max_sensitivity"] for n in (2, 20))
    assert 0 < few < many
    assert max_sensitivity(plain, radius=3 * RADIUS, samples=2)["max_sensitivity"] == pytest.approx(3 * few, rel=1e-9)


def test_it_is_the_largest_of_the_distances(make_case):
    """The inputs that the method is asked for, each measured in numpy."""
    asked = []

    def explain(model, x):
        asked.append(x.numpy().copy())
        return x[:, 0] ** 2

    x = make_case().x[0, 0].numpy()
    found = max_sensitivity(make_case(x**2, explain=explain), samples=5)["max_sensitivity"]
    noisy = np.concatenate(asked)[:, 0]
    assert len(noisy) == 5 and np.abs(noisy - x).max() <= RADIUS and np.abs(noisy - x).max() > 0.9 * RADIUS
    assert found == pytest.approx(max(np.linalg.norm(y**2 - x**2) for y in noisy) / np.linalg.norm(x**2), rel=1e-12)
