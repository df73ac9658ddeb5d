"""The store of preprocessed volumes and the data set over it."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from datxai.cohort.dataset import CaseDataset, open_store, write_store
from datxai.errors import InputError
from datxai.volume import Grid

GRID = Grid.axis_aligned((4, 3, 2), (2, 2, 2), (-3, -2, -1))
CASES = ("sub-01", "sub-02_ses-1", "sub-03")


@pytest.fixture
def volumes():
    return np.random.default_rng(0).normal(size=(3, *GRID.shape)).astype(np.float32)


@pytest.fixture
def store(tmp_path, volumes):
    return write_store(tmp_path / "store.npy", CASES, iter(volumes), GRID)


def test_round_trip(store, volumes):
    again = open_store(store.path)
    assert again.case_ids == CASES
    assert again.shape == GRID.shape
    assert again.grid.same_as(GRID)
    assert len(again) == 3
    np.testing.assert_array_equal(again.data, volumes)
    np.testing.assert_array_equal(again.volume("sub-03"), volumes[2])
    np.testing.assert_array_equal(np.load(store.path, allow_pickle=False), volumes)


def test_dataset(store, volumes):
    dataset = CaseDataset(store, ["sub-03", "sub-01"], [1, 0])
    assert len(dataset) == 2
    x, label = dataset[0]
    assert x.shape == (1, *GRID.shape)
    assert x.dtype == torch.float32
    assert label == 1
    np.testing.assert_array_equal(x[0].numpy(), volumes[2])
    x.zero_()  # a copy: what is on disk stays
    np.testing.assert_array_equal(dataset[0][0][0].numpy(), volumes[2])


def test_batches_of_a_loader(store, volumes):
    dataset = CaseDataset(store, CASES, [0, 1, 1])
    x, y = next(iter(torch.utils.data.DataLoader(dataset, batch_size=3)))
    np.testing.assert_array_equal(x[:, 0].numpy(), volumes)
    assert y.tolist() == [0, 1, 1]


def test_to_a_worker_goes_the_path_only(tmp_path):
    large = Grid.axis_aligned((40, 40, 40), (2, 2, 2), (0, 0, 0))
    ids = [f"{i}" for i in range(8)]
    store = write_store(tmp_path / "s.npy", ids, (np.full(large.shape, i) for i in range(8)), large)
    sent = pickle.dumps(CaseDataset(store, ids, [0] * 8))
    assert len(sent) < 2000
    assert pickle.loads(sent)[5][0].unique().item() == 5


def test_memory_is_that_of_one_volume(tmp_path):
    large = Grid.axis_aligned((64, 64, 64), (2, 2, 2), (0, 0, 0))
    one = 4 * 64**3

    def peak(n):
        tracemalloc.start()
        volumes = (np.full(large.shape, i, np.float32) for i in range(n))
        write_store(tmp_path / "s.npy", [f"{i}" for i in range(n)], volumes, large)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(12) < 3 * one


def test_nothing_is_left_of_a_failed_write(tmp_path):
    def broken():
        yield np.zeros(GRID.shape)
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_store(tmp_path / "store.npy", CASES, broken(), GRID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("case_ids", "shape", "message"),
    [
        ((), GRID.shape, "no case to store"),
        (("a", "b", "a"), GRID.shape, "case 'a' is listed twice"),
        (("a",), (4, 3, 3), r"case 'a' has shape \(4, 3, 3\), expected \(4, 3, 2\)"),
    ],
)
def test_what_cannot_be_stored(tmp_path, case_ids, shape, message):
    with pytest.raises(InputError, match=message):
        write_store(tmp_path / "store.npy", case_ids, (np.zeros(shape) for _ in case_ids), GRID)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_opened(store, volumes):
    with pytest.raises(InputError, match="holds no case 'x' among 3"):
        CaseDataset(store, ["x"], [0])
    content = store.path.read_bytes()
    store.path.write_bytes(content[:-4])
    with pytest.raises(InputError, match="does not agree with its manifest"):
        open_store(store.path)
    np.save(store.path, volumes[:2])
    with pytest.raises(InputError, match="does not agree with its manifest"):
        open_store(store.path)
    store.path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="no complete store"):
        open_store(store.path)
