"""What a metric may ask for: a map, what it explains, and where things lie in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

AT_ONCE = 16  # inputs in one forward pass: on a CPU more bring nothing but take memory


@dataclass(frozen=True, eq=False)
class Case:
    """One relevance map, the decision that it explains, and the anatomy under it.

    Attributes
    ----------
    model : module in evaluation mode, from [n, 1, X, Y, Z] to logits [n, outputs]; no metric changes it
    x : tensor [1, 1, X, Y, Z], the input explained
    relevance : tensor [X, Y, Z], the map that is judged
    score : from inputs [n, 1, X, Y, Z] to [n], the explained quantity of each: a logit, or a difference of logits
    explain : from a model and inputs [n, 1, X, Y, Z] to maps [n, X, Y, Z], by the method that made ``relevance`` and of
        the same output, whatever the model predicts
    explain_other : the same of another output
    fill : tensor [X, Y, Z], what a voxel becomes when it is flipped (`datxai.metrics.flipping`)
    parcels : int array [X, Y, Z], an atlas's regions, 0 for none
    regions : bool arrays [X, Y, Z] by name, at least ``brain`` and ``striatum``
    spacing : mm of a voxel along X, Y, Z
    truth : bool array [X, Y, Z], what the decision rests on, where that is known
    seed : of everything random
    memo : what depends on the input and not on the map, kept for other maps of the same input if they share it
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
    spacing: Sequence[float]
    truth: np.ndarray | None = None
    seed: int = 0
    memo: dict = field(default_factory=dict)

    def __post_init__(self):
        shape = tuple(self.relevance.shape)
        assert tuple(self.x.shape) == (1, 1, *shape), (self.x.shape, shape)
        assert {"brain", "striatum"} <= self.regions.keys(), self.regions.keys()
        grids = [self.fill, self.parcels, *self.regions.values(), *([] if self.truth is None else [self.truth])]
        assert all(tuple(grid.shape) == shape for grid in grids), [grid.shape for grid in grids]

    @property
    def map(self) -> np.ndarray:
        """The relevance as a float64 array [X, Y, Z]."""
        return self.relevance.detach().cpu().numpy().astype(float)

    @property
    def places(self) -> dict[str, np.ndarray]:
        """The regions, and the ``truth`` where it is known."""
        return {**self.regions} | ({} if self.truth is None else {"truth": self.truth})


@torch.no_grad()
def score_all(score: Callable[[Tensor], Tensor], inputs: Iterable[Tensor]) -> np.ndarray:
    """The score of every input [1, 1, X, Y, Z], `AT_ONCE` in one forward pass; float64 [n]."""
    found, batch = [], []
    for x in inputs:
        batch.append(x)
        if len(batch) == AT_ONCE:
            found.append(score(torch.cat(batch)))
            batch = []
    if batch:
        found.append(score(torch.cat(batch)))
    return torch.cat(found).double().cpu().numpy()
