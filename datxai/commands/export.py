"""Export of a run's network to the format of other programs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from datxai import __version__
from datxai.anatomy import grid_of
from datxai.bundle import Bundle
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import require_file
from datxai.run import Run

log = logging.getLogger("datxai")

LABELS = ("normal", "reduced")
INPUT_DESCRIPTION = (
    "float32 [batch, 1, X, Y, Z]: scans in MNI space on this grid, axes RAS+, divided by the uptake of the reference "
    "region, mirrored so that the side with the lower putaminal binding ratio is left, as datxai preprocesses them"
)


def run(settings: Config, trained: Run) -> None:
    """Write the network of a run, or of a bundle, as ONNX to ``settings.out``, by default RUN/NAME.onnx.

    The metadata of the file hold the grid, the labels, a description of the input, and the run. Raises `InputError` if
    the file cannot be written or its name is taken by something else.
    """
    from datxai.model import checkpoint
    from datxai.model.exchange import export_onnx, require_onnx

    if settings.to != "onnx":
        raise InputError(f"to={settings.to}: expected onnx.")
    require_onnx()
    in_bundle = trained.folder.is_file()
    name = trained.folder.absolute().with_suffix("" if in_bundle else trained.folder.suffix).name
    path = Path(settings.out or (f"{name}.onnx" if in_bundle else trained.folder / f"{name}.onnx"))
    require_file(path)
    if path.suffix != ".onnx" or path.is_dir():
        raise InputError(f"out={path}: expected the name of a file that ends with .onnx; change out=FILE.onnx.")
    if in_bundle:
        bundle = Bundle.open(trained.folder)
        model, fingerprint = bundle.load_network("cpu"), bundle.manifest["run"]["train"]
    else:
        fingerprint = trained.entry("train", "export")["fingerprint"]
        model, _ = checkpoint.load(trained.model, "cpu", settings.network.target)
    grid = grid_of(settings)
    properties = {
        "datxai": __version__,
        "run": fingerprint,
        "grid": json.dumps({"name": grid.name, "shape": list(grid.shape), "affine": grid.affine.tolist()}),
        "labels": json.dumps(LABELS),
        "input": INPUT_DESCRIPTION,
        "use": "research, not diagnostic",
    }
    difference = export_onnx(model, grid.shape, path, properties)
    log.info(
        "ONNX: %s, %.1f MB; logits agree with PyTorch's within %.1g (relative for logits above one)",
        path, path.stat().st_size / 1e6, difference,
    )  # fmt: skip
