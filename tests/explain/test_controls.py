"""Controls depend on the input and the seed alone."""

import torch

from datxai.explain.controls import CONTROLS


def test_uptake_is_the_input(scans):
    assert torch.equal(CONTROLS["uptake"](scans, 0), scans[:, 0])


def test_noise_is_another_for_every_input_and_seed_and_the_same_again(scans):
    first = CONTROLS["noise"](scans, 0)
    assert first.shape == scans[:, 0].shape
    assert torch.equal(CONTROLS["noise"](scans[1:], 0)[0], first[1])
    assert not torch.equal(first[0], first[1]) and not torch.equal(CONTROLS["noise"](scans, 1), first)
    assert abs(float(first.mean())) < 0.1 and abs(float(first.std()) - 1) < 0.1
