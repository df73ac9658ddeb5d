"""How much a map changes when the input hardly does."""

from __future__ import annotations

import torch

from datxai.metrics.inputs import Case, says_nothing

RADIUS = 0.05  # largest noise, in units of the input; scans are scaled to 1 in the reference region
SAMPLES = 4  # draws of noise


def max_sensitivity(case: Case, radius: float = RADIUS, samples: int = SAMPLES) -> dict[str, float]:
    """The largest change of the map over several draws of noise, uniform within ``radius`` in every voxel.

    Max-sensitivity (Yeh et al. 2019, arXiv 1901.09392), relative: the L2 distance over the L2 norm of the map, sign
    included. NaN for a map that is constant or not finite, and if a map under noise is not finite.
    """
    if says_nothing(case.map):
        return {"max_sensitivity": float("nan")}
    generator = torch.Generator("cpu").manual_seed(case.seed)
    shape = (samples, *case.x.shape[1:])
    noise = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(case.x)
    maps = case.explain(case.model, case.x + radius * (2 * noise - 1)).detach().double()
    original = case.relevance.to(maps)
    change = (maps - original).flatten(1).norm(dim=1).max() / original.norm()
    return {"max_sensitivity": float(change) if change.isfinite() else float("nan")}
