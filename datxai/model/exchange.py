"""Export of a trained network for other programs: ONNX (Open Neural Network Exchange, onnx.ai)."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from datxai.errors import InputError
from datxai.files import replacing

REQUIRED_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "scan", "logits"
LARGEST = 2**31 - 2**20  # bytes of weights in one ONNX file (protobuf)


def export_onnx(model: nn.Module, shape: Sequence[int], path: Path, properties: Mapping[str, str]) -> float:
    """Write a network as ONNX, atomically; the graph includes its weights and the mean that it subtracts.

    Parameters
    ----------
    model : from float32 [batch, 1, X, Y, Z] to logits [batch, outputs], in evaluation mode, on the CPU
    shape : (X, Y, Z)
    properties : metadata of the file (``metadata_props``)

    Returns
    -------
    The largest difference between the logits of the network and those of ONNX Runtime, on noise and on an empty input;
    relative where a logit is larger than 1.

    Raises
    ------
    InputError
        If ONNX is not installed, or the network is too large for one file or has an operation that ONNX lacks.
    """
    require_onnx()
    if (size := sum(tensor.nbytes for tensor in model.state_dict().values())) > LARGEST:
        raise InputError(f"to=onnx: the network has {size} bytes of weights, an ONNX file holds {LARGEST} at most.")
    noise = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0)) + 1  # the reference has uptake 1
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # addressed to developers of PyTorch's exporter
            program = torch.onnx.export(
                model,
                (noise,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"to=onnx: the network cannot be written as ONNX ({reason}).") from error
    assert program is not None, "a program is returned if no file is named"
    program.model.metadata_props.update(properties)
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)
        return max(_compare(model, temporary, x) for x in (noise, torch.zeros(1, 1, *shape)))


def require_onnx() -> None:
    """Raise `InputError` if a required package is not installed."""
    if missing := [name for name in REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(f"to=onnx: {', '.join(missing)} not installed; `pip install 'datxai[onnx]'` brings them.")


def _compare(model: nn.Module, path: Path, x: torch.Tensor) -> float:
    """The largest difference of a logit, relative if it is larger than 1."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run([OUTPUT], {INPUT: x.numpy()})
    with torch.no_grad():
        expected = model(x).numpy()
    return float((np.abs(np.asarray(answer) - expected) / np.maximum(1, np.abs(expected))).max())
