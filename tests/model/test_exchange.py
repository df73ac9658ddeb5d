"""A network as ONNX: ONNX Runtime has its logits."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from datxai.errors import InputError
from datxai.model import exchange
from datxai.model.architectures import build
from datxai.model.exchange import export_onnx

SHAPE = (12, 14, 10)
PLAIN = {"architecture": "plain", "channels": [3, 2], "hidden": [4]}
VGG = {"architecture": "vgg3d", "arguments": {"channels": [[2], [3]]}}


@pytest.mark.parametrize("settings", [PLAIN, {**PLAIN, "centre": True}, VGG])
def test_the_logits_are_those_of_the_network(tmp_path, settings):
    model = build(SHAPE, **settings).eval()
    if settings.get("centre"):
        model.input.mean.copy_(torch.rand(SHAPE))
        model.input.mask[:3] = 0
    found = export_onnx(model, SHAPE, tmp_path / "model.onnx", {"labels": json.dumps(["normal", "reduced"])})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert found < 1e-5
    for n in (1, 2, 5):
        x = np.random.default_rng(n).normal(1, 1, (n, 1, *SHAPE)).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run(["logits"], {"scan": x})[0], expected, rtol=1e-5, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["labels"] == '["normal", "reduced"]'
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "weights are within"
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))


def test_what_is_not_installed_or_too_large_or_unknown_is_said(tmp_path, monkeypatch):
    model = build(SHAPE, **PLAIN).eval()
    monkeypatch.setattr(exchange, "LARGEST", 1000)
    with pytest.raises(InputError, match="an ONNX file holds 1000 at most"):
        export_onnx(model, SHAPE, tmp_path / "x.onnx", {})
    monkeypatch.undo()

    class Depends(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] if x.sum() > 0 else -x.flatten(1)[:, :2]

    with pytest.raises(InputError, match="the network cannot be written as ONNX"):
        export_onnx(Depends(), SHAPE, tmp_path / "x.onnx", {})
    monkeypatch.setattr(exchange.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(InputError, match=r"onnxscript not installed; `pip install 'datxai\[onnx\]'` brings"):
        export_onnx(model, SHAPE, tmp_path / "x.onnx", {})
    assert list(tmp_path.iterdir()) == []
