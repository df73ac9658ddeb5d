"""The input of a metric: a map, the decision that it explains, and the anatomy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from datxai.errors import InputError

BATCH_SIZE = 16  # inputs per forward pass: on a CPU more are no faster and take memory


@dataclass(frozen=True, eq=False)
class Case:
    """One relevance map, the decision that it explains, and the anatomy under it.

    Attributes
    ----------
    model : module in evaluation mode, from [n, 1, X, Y, Z] to logits [n, outputs]; no metric changes it
    x : tensor [1, 1, X, Y, Z], the explained input
    relevance : tensor [X, Y, Z], the map to measure
    score : from inputs [n, 1, X, Y, Z] to the explained quantity of each, [n]: a logit or a difference of logits
    explain : from a model and inputs [n, 1, X, Y, Z] to maps [n, X, Y, Z], by the method that made ``relevance`` and of
        the same output, whatever the model predicts
    explain_other : the same for another output
    fill : tensor [X, Y, Z], the values that flipped voxels take (`datxai.metrics.flipping`)
    parcels : int array [X, Y, Z], the regions of an atlas, 0 outside
    regions : masks [X, Y, Z] by name, bool or 0 and 1, at least ``brain``, which is not empty, and ``striatum``
    spacing : mm of a voxel along X, Y, Z
    truth : mask [X, Y, Z] of what the decision rests on, if known
    seed : seed of everything random
    memo : cache of results that depend on the input and not on the map; maps of the same input may share it

    Raises
    ------
    InputError
        If a shape does not match the map's, a mask has values other than 0 and 1, or a region is missing.
    """

    model: nn.Module
    x: Tensor
    relevance: Tensor
    score: Callable[[Tensor], Tensor]
    explain: Callable[[nn.Module, Tensor], Tensor]
    explain_other: Callable[[nn.Module, Tensor], Tensor]
    fill: Tensor
    parcels: np.ndarray
    regions: Mapping[str, np.ndarray]
    spacing: Sequence[float] | np.ndarray
    truth: np.ndarray | None = None
    seed: int = 0
    memo: dict = field(default_factory=dict)

    def __post_init__(self):
        shape = tuple(self.relevance.shape)
        if len(shape) != 3:
            raise InputError(f"relevance is of shape {shape}, expected one map (X, Y, Z).")
        _check_shape("x", self.x, (1, 1, *shape))
        _check_shape("fill", self.fill, shape)
        _check_shape("parcels", self.parcels, shape)
        for name in ("brain", "striatum"):
            if name not in self.regions:
                raise InputError(f"regions: there is no {name}, expected at least brain and striatum.")
        regions = {name: _as_mask(f"regions: {name}", mask, shape) for name, mask in self.regions.items()}
        if not regions["brain"].any():
            raise InputError("regions: brain is empty, expected at least one voxel.")
        object.__setattr__(self, "regions", regions)
        if self.truth is not None:
            object.__setattr__(self, "truth", _as_mask("truth", self.truth, shape))

    @property
    def map(self) -> np.ndarray:
        """The relevance as a float64 array [X, Y, Z]."""
        return to_array(self.relevance)

    @property
    def places(self) -> dict[str, np.ndarray]:
        """The regions, and ``truth`` if it is known."""
        return {**self.regions} | ({} if self.truth is None else {"truth": self.truth})


def to_array(x: Tensor) -> np.ndarray:
    """Convert a tensor of any type to a float64 array; NumPy lacks bfloat16."""
    return x.detach().double().cpu().numpy()


def says_nothing(relevance: np.ndarray) -> bool:
    """Whether a map is empty, constant or not finite everywhere, so that no metric is meaningful."""
    return not np.isfinite(relevance).all() or relevance.size == 0 or bool(relevance.min() == relevance.max())


@torch.no_grad()
def score_all(score: Callable[[Tensor], Tensor], inputs: Iterable[Tensor]) -> np.ndarray:
    """The score of every input [1, 1, X, Y, Z], `BATCH_SIZE` per forward pass; float64 [n]."""
    scores, batch = [], []
    for x in inputs:
        batch.append(x)
        if len(batch) == BATCH_SIZE:
            scores.append(score(torch.cat(batch)))
            batch = []
    if batch:
        scores.append(score(torch.cat(batch)))
    return torch.cat(scores).double().cpu().numpy()


def _check_shape(name: str, values: Tensor | np.ndarray, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise InputError(f"{name} is of shape {tuple(values.shape)}, expected {shape} to match the relevance.")


def _as_mask(name: str, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert a mask of 0 and 1 to bool; as integers it would select voxels by index."""
    mask = np.asarray(mask)
    _check_shape(name, mask, shape)
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise InputError(f"{name} has values other than 0 and 1, expected a mask.")
    return mask.astype(bool, copy=False)
