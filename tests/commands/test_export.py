"""`datxai export`: the network of a run, or of a bundle, for ONNX Runtime."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from datxai.commands import bundle, export
from datxai.errors import InputError
from datxai.findings import Findings
from datxai.reader import _restore
from datxai.run import Run


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    return shutil.copytree(finished[0], tmp_path_factory.mktemp("export") / "run")


def test_it_predicts_as_the_run_does(folder, tmp_path, caplog):
    run = Run(folder)
    with caplog.at_level(logging.INFO):
        export.run(_restore(run), run)
    assert "logits agree with PyTorch's within" in caplog.text
    session = onnxruntime.InferenceSession(folder / "run.onnx", providers=["CPUExecutionProvider"])
    findings = Findings(run)
    for case in findings.predictions:
        x = np.ascontiguousarray(findings.store.volume(case["participant_id"]))[None, None]
        ((normal, reduced),) = session.run(["logits"], {"scan": x})[0]
        assert [normal, reduced] == pytest.approx([case["logit_normal"], case["logit_reduced"]], rel=1e-5, abs=1e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["grid"])["shape"] == list(findings.store.shape)
    assert np.array_equal(json.loads(said["grid"])["affine"], findings.store.grid.affine)
    assert json.loads(said["labels"]) == ["normal", "reduced"] and said["use"] == "research, not diagnostic"
    settings = replace(_restore(run), out=str(tmp_path / "model.datxai"))
    bundle.run(settings, run)
    export.run(replace(settings, out=str(tmp_path / "model.onnx")), Run(tmp_path / "model.datxai"))
    assert Path(tmp_path / "model.onnx").read_bytes() == (folder / "run.onnx").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"to": "tflite"}, "to=tflite: expected onnx"),
        ({"out": "model.zip"}, r"ends with \.onnx"),
        ({"out": "{}"}, r"ends with \.onnx"),
    ],
)
def test_what_cannot_be_exported(folder, tmp_path, changes, words):
    (tmp_path / "folder.onnx").mkdir()
    changes = {name: value.format(tmp_path / "folder.onnx") for name, value in changes.items()}
    with pytest.raises(InputError, match=words):
        export.run(replace(_restore(Run(folder)), **changes), Run(folder))
