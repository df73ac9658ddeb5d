"""The stage `explain` on a run folder whose earlier stages are written here by hand."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from datxai.cohort.dataset import write_store
from datxai.config import Atlas, Attribution, Composite, Config, Lattice, LayerRule
from datxai.errors import InputError
from datxai.explain import attribute
from datxai.explainer import Explainer
from datxai.files import read_json, write_table
from datxai.model import checkpoint, network
from datxai.run import Run
from datxai.stages import explain
from datxai.volume import Grid, Volume, load, save, sidecar_path

GRID = Grid.axis_aligned((13, 12, 9), (10, 10, 10), (-60, -70, -30), "tiny")
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
    return network.build(GRID.shape, channels=[4, 4, 4], hidden=[6, 5], seed=4)


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
    run.making = "made"
    return run


def settings(**chosen):
    attribution = Attribution(**({"method": "lrp"} | chosen))
    return Config(attribution=attribution, composite=Composite("mine", layers=LINES), target="reduced", device="cpu")


def made(run, **chosen):
    """Maps and their records, by case."""
    explain.make(settings(**chosen), run)
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


@pytest.mark.parametrize("method", ["occlusion", "kernel_shap", "integrated_gradients"])
def test_other_methods_leave_the_same_files(run, model, volumes, method):
    chosen = {"method": method, "start": "one", "options": {"baseline": 1.0}}
    chosen |= {"parcels": "atlas"} if method != "integrated_gradients" else {}
    explainer = Explainer.of(with_grid(**chosen), run)
    explain.make(with_grid(**chosen), run)
    found = load(run.relevance_of("sub-2")).data
    record = read_json(sidecar_path(run.relevance_of("sub-2")))
    assert record["method"] == {"attribution": method, "target": "reduced", "start": "one"} | {
        key: chosen[key] for key in ("options", "parcels") if key in chosen
    }
    assert record["sum"] == pytest.approx(found.sum(dtype=float)) and record["ledger"] == []
    x = torch.from_numpy(volumes[2])[None, None]
    expected = attribute(
        model, x, method, target="reduced", start="one", parcels=explainer.parcels, options={"baseline": 1.0}
    )
    assert distance(found, expected.relevance[0, 0].numpy()) < SAME


def test_the_atlas_as_parcels(run):
    """Left and right have parcels of their own, and every voxel of the brain is in one."""
    from datxai.imaging.atlas import load_atlas, make_regions

    parcels = Explainer.of(with_grid(method="occlusion", parcels="atlas"), run).parcels
    brain = make_regions(GRID, load_atlas())["brain"]
    assert parcels.shape == GRID.shape and (parcels[brain] > 0).all()
    present = set(np.unique(parcels[parcels > 0]))
    assert len(present) > 40
    left, right = (set(np.unique(half[half > 0])) - {parcels.max()} for half in (parcels[:4], parcels[-4:]))
    assert left and right and not left & right
    with pytest.raises(InputError, match="parcels=cortex: expected atlas"):
        Explainer.of(with_grid(method="occlusion", parcels="cortex"), run).parcels  # noqa: B018


def with_grid(**chosen):
    found = settings(**chosen)
    found.grid = Lattice(GRID.name, list(GRID.shape), [10.0] * 3, [-60.0, -70.0, -30.0])
    return found


def test_options_and_files_of_rules_are_reasons_to_make_maps_anew(tmp_path):
    def depends(**composite):
        found = settings()
        for key, value in composite.items():
            setattr(found.composite, key, value)
        return explain.depends(found)

    assert explain.depends(settings(method="lime", options={"seed": 1})) != explain.depends(settings(method="lime"))
    assert depends(bias=False) != depends()
    path, other = tmp_path / "rules.py", tmp_path / "moved.py"
    path.write_text("RULES = {}")
    other.write_text("RULES = {}")
    before = depends(rules_from=str(path))
    assert before == depends(rules_from=str(other)), "the content counts, not where it lies"
    path.write_text("RULES = {'mine': None}")
    assert depends(rules_from=str(path)) != before


def test_an_atlas_is_a_reason_to_make_maps_anew_if_its_regions_are_taken_away(tmp_path):
    def depends(content, **chosen):
        (tmp_path / "labels.nii").write_text(content)
        found = settings(**chosen)
        found.atlas = Atlas(str(tmp_path / "labels.nii"), None)
        return Run(tmp_path).fingerprint("explain", explain.depends(found), {})

    assert depends("a") == depends("b"), "lrp has no use for an atlas"
    assert depends("a", method="occlusion") == depends("b", method="occlusion")
    before = depends("a", method="occlusion", parcels="atlas")
    assert before == depends("a", method="occlusion", parcels="atlas")
    assert before != depends("b", method="occlusion", parcels="atlas")


def test_only_batches_with_a_missing_map_are_made(run):
    """Whole batches, since in another batch the last digits of a map may be others."""
    made(run, batch_size="2")
    paths = {case: run.relevance_of(case) for case in CASES}
    before = {case: (path.stat().st_mtime_ns, path.read_bytes()) for case, path in paths.items() if path.exists()}
    paths["sub-1"].unlink()
    made(run, batch_size="2", cases="all")
    assert {case for case in before if paths[case].stat().st_mtime_ns == before[case][0]} == {"sub-2", "sub-3"}
    assert all(paths[case].read_bytes() == content for case, (_, content) in before.items())
    assert paths["sub-4"].exists()


def test_the_size_of_batches_is_no_reason_to_make_maps_anew():
    assert explain.depends(settings(batch_size="2")) == explain.depends(settings())
    assert explain.depends(settings(rules="zennit")) != explain.depends(settings())
    assert explain.depends(settings(precision="bf16")) != explain.depends(settings())


def test_a_file_of_own_rules_is_executed_once(run, tmp_path):
    path, log = tmp_path / "rules.py", tmp_path / "executed"
    path.write_text(
        f"from zennit.rules import Epsilon\n\nwith open({str(log)!r}, 'a') as log:\n    log.write('x')\n"
        "RULES = {'mine': Epsilon}\n"
    )
    chosen = settings(batch_size="1")
    chosen.composite = Composite("mine", layers=LINES, rules_from=str(path))
    explain.make(chosen, run)
    assert log.read_text() == "x"


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
