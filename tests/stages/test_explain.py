"""The stage `explain` on a run folder whose earlier stages are written here by hand."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from datxai.case import Explainer
from datxai.cohort.dataset import write_store
from datxai.config import Attribution, Composite, Config, LayerRule
from datxai.errors import InputError
from datxai.explain import attribute
from datxai.files import read_json, write_table
from datxai.model import checkpoint, network
from datxai.run import Run
from datxai.stages import explain
from datxai.volume import Grid, Volume, load, save, sidecar_path

GRID = Grid.axis_aligned((10, 9, 8), (12, 12, 12), (-54, -66, -40), "tiny")
CASES = [f"sub-{number}" for number in range(5)]
LINES = [
    LayerRule(["type:Convolution[:2]"], "flat"),
    LayerRule(["type:Convolution"], "alpha_beta", {"alpha": 2, "beta": 1}),
    LayerRule(["type:Linear"], "epsilon", {"epsilon": 1e-4}),
    LayerRule(["type:Activation"], "pass"),
]
SAME, LOW = 1e-5, 3e-2  # relative L2: float32 in another order; convolutions in bf16


@pytest.fixture(scope="module")
def model():
    return network.build(GRID.shape, channels=[4, 4, 4], hidden=[6, 5])


@pytest.fixture(scope="module")
def volumes():
    return np.random.default_rng(1).uniform(0, 3, (len(CASES), *GRID.shape)).astype(np.float32)


@pytest.fixture
def run(tmp_path, model, volumes):
    """Everything before the explanation: volumes, weights, predictions; the last case is not of the test set."""
    run = Run(tmp_path)
    run.preprocessed.mkdir(parents=True)
    run.model.mkdir()
    write_store(run.store, CASES, volumes, GRID)
    for case, data in zip(CASES, volumes):
        save(Volume(data, GRID.affine, ({"step": "scale"},)), run.scan_of(case))
    checkpoint.save_weights(model.state_dict(), run.model / checkpoint.WEIGHTS)
    sizes = {"shape": list(GRID.shape), "channels": [4, 4, 4], "hidden": [6, 5]}
    checkpoint.save_network({"network": sizes}, run.model / checkpoint.CONFIG)
    rows = [
        {"participant_id": case, "set": "test" if case != CASES[-1] else "train", "label": number % 2, "predicted": 1}
        | {"p_reduced": 0.5, "logit_normal": 0.0, "logit_reduced": 0.0}
        for number, case in enumerate(CASES)
    ]
    write_table(run.predictions, rows, list(rows[0]))
    return run


def settings(**chosen):
    attribution = Attribution(**({"method": "lrp"} | chosen))
    return Config(attribution=attribution, composite=Composite("mine", layers=LINES), target="reduced", device="cpu")


def made(run, fingerprint="made", **chosen):
    """Maps and their records, by case."""
    explain.make(settings(**chosen), run, fingerprint)
    paths = {path.name.partition("_")[0]: path for path in sorted(run.relevance.glob("*.nii.gz"))}
    return {case: (load(path).data, read_json(sidecar_path(path))) for case, path in paths.items()}


def distance(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("chosen", "tolerance"),
    [({}, SAME), ({"rules": "zennit"}, SAME), ({"precision": "bf16"}, LOW), ({"batch_size": "3"}, SAME)],
)
def test_maps_and_how_they_were_made(run, model, volumes, chosen, tolerance):
    found = made(run, **chosen)
    assert list(found) == CASES[:-1], "the cases of the test set"
    x = torch.from_numpy(volumes)[:, None].double()
    lines = [asdict(line) for line in LINES]
    exact = attribute(model.double(), x, composite=lines, target="reduced", rules="zennit").relevance[:, 0].numpy()
    model.float()
    for (data, record), expected in zip(found.values(), exact):
        assert distance(data, expected) < tolerance
        assert record["method"] == {
            "attribution": "lrp", "target": "reduced", "start": "logit", "composite": "mine",
            "rules": chosen.get("rules", "fast"), "precision": chosen.get("precision", "float32"),
        }  # fmt: skip
        assert record["history"][-1] == {"step": "explain", **record["method"]}
        assert [row["layer"] for row in record["ledger"]] == ["output", "fc2", "fc1", "conv3", "conv2", "conv1"]
    if chosen.get("precision") == "bf16":
        assert all(distance(data, expected) > SAME for (data, _), expected in zip(found.values(), exact))


def test_only_missing_maps_are_made(run):
    made(run)
    paths = {case: run.relevance_of(case) for case in CASES}
    before = {case: path.stat().st_mtime_ns for case, path in paths.items() if path.exists()}
    paths["sub-1"].unlink()
    made(run, cases="all")
    kept = {case for case in before if case != "sub-1"}
    assert all(paths[case].stat().st_mtime_ns == before[case] for case in kept)
    assert paths["sub-1"].exists() and paths["sub-4"].exists()


def test_the_size_of_batches_is_no_reason_to_make_maps_anew():
    assert explain.depends(settings(batch_size="2")) == explain.depends(settings())
    assert explain.depends(settings(rules="zennit")) != explain.depends(settings())
    assert explain.depends(settings(precision="bf16")) != explain.depends(settings())


def test_batches_fit_the_memory(run, monkeypatch):
    from datxai.explain import batches

    explainer = Explainer.of(settings(), run)
    assert explainer.batch_size(GRID.shape) == batches.WORTHWHILE["cpu"]
    monkeypatch.setattr(batches, "available_bytes", lambda device: 0)
    assert explainer.batch_size(GRID.shape) == 1
    assert Explainer.of(settings(batch_size="7"), run).batch_size(GRID.shape) == 7


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"batch_size": "few"}, "attribution.batch_size=few: expected auto or a number"),
        ({"batch_size": "0"}, "attribution.batch_size=0: expected auto or a number"),
        ({"cases": "some"}, "attribution.cases=some: expected test or all"),
        ({"rules": "slow"}, "rules=slow: expected fast or zennit"),
        ({"precision": "int8"}, "precision=int8: expected one of float32, bf16"),
    ],
)
def test_mistakes_are_named(run, chosen, said):
    with pytest.raises(InputError, match=said):
        made(run, **chosen)
    assert not list(run.relevance.glob("*.nii.gz"))
