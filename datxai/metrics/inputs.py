"""What a metric may ask for: a map, what it explains, and where things lie in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from datxai.errors import InputError

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
    regions : masks [X, Y, Z] by name, bool or 0 and 1, at least ``brain``, which is not empty, and ``striatum``
    spacing : mm of a voxel along X, Y, Z
    truth : mask [X, Y, Z], what the decision rests on, where that is known
    seed : of everything random
    memo : what depends on the input and not on the map, kept for other maps of the same input if they share it

    Raises
    ------
    InputError
        For shapes that do not fit the map's, masks of anything but 0 and 1, and regions that are missing.
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
        """The regions, and the ``truth`` where it is known."""
        return {**self.regions} | ({} if self.truth is None else {"truth": self.truth})


def to_array(x: Tensor) -> np.ndarray:
    """A tensor of any type as a float64 array; NumPy knows no bfloat16."""
    return x.detach().double().cpu().numpy()


def says_nothing(relevance: np.ndarray) -> bool:
    """Whether a map is zero or constant, or not finite everywhere, so that no metric has a meaning for it."""
    return not np.isfinite(relevance).all() or relevance.size == 0 or bool(relevance.min() == relevance.max())


@torch.no_grad()
def score_all(score: Callable[[Tensor], Tensor], inputs: Iterable[Tensor]) -> np.ndarray:
    """The score of every input [1, 1, X, Y, Z], `AT_ONCE` in one forward pass; float64 [n]."""
    scores, batch = [], []
    for x in inputs:
        batch.append(x)
        if len(batch) == AT_ONCE:
            scores.append(score(torch.cat(batch)))
            batch = []
    if batch:
        scores.append(score(torch.cat(batch)))
    return torch.cat(scores).double().cpu().numpy()


def _check_shape(name: str, values: Tensor | np.ndarray, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise InputError(f"{name} is of shape {tuple(values.shape)}, expected {shape}, which fits the relevance.")


def _as_mask(name: str, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of 0 and 1 as bool; as whole numbers it would pick voxels by number."""
    mask = np.asarray(mask)
    _check_shape(name, mask, shape)
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise InputError(f"{name} has values other than 0 and 1, expected a mask.")
    return mask.astype(bool, copy=False)
