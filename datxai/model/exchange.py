"""A trained network for other programs: ONNX (Open Neural Network Exchange, onnx.ai)."""

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

NEEDS = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "scan", "logits"
LARGEST = 2**31 - 2**20  # bytes of weights in one file of ONNX (protobuf)


def export_onnx(model: nn.Module, shape: Sequence[int], path: Path, properties: Mapping[str, str]) -> float:
    """Write a network as ONNX, atomically, with its weights and what it subtracts of a scan within the graph.

    Parameters
    ----------
    model : from float32 [batch, 1, X, Y, Z] to logits [batch, outputs], in evaluation mode, on the CPU
    shape : (X, Y, Z)
    properties : what the file says of itself (``metadata_props``)

    Returns
    -------
    The largest difference between the logits of the network and those that ONNX Runtime has of the file, relative to
    logits beyond one, on inputs of noise and on an empty one.

    Raises
    ------
    InputError
        Where ONNX is not installed, the network is too large for one file, or has what ONNX does not know.
    """
    require_onnx()
    if (size := sum(tensor.nbytes for tensor in model.state_dict().values())) > LARGEST:
        raise InputError(f"to=onnx: the network has {size} bytes of weights, a file of ONNX holds {LARGEST} at most.")
    given = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0)) + 1  # uptake, the reference is 1
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch's exporter says to those who write it
            program = torch.onnx.export(
                model,
                (given,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"to=onnx: the network cannot be written as ONNX ({reason}).") from error
    assert program is not None, "as it is where no file is named"
    program.model.metadata_props.update(properties)
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)
        return max(_compare(model, temporary, x) for x in (given, torch.zeros(1, 1, *shape)))


def require_onnx() -> None:
    """Refuse to go on without the packages (`InputError`)."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise InputError(f"to=onnx: {', '.join(missing)} not installed; `pip install 'datxai[onnx]'` brings them.")


def _compare(model: nn.Module, path: Path, x: torch.Tensor) -> float:
    """The largest difference of a logit, relative to one beyond one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run([OUTPUT], {INPUT: x.numpy()})
    with torch.no_grad():
        expected = model(x).numpy()
    return float((np.abs(np.asarray(answer) - expected) / np.maximum(1, np.abs(expected))).max())
