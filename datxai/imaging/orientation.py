"""How a head lies along the axes of a scan."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

# The 24 rotations that map axes to axes, the identity (upright) first. Reflections are left out: a symmetric head
# looks the same in them.
TURNS = [
    turn
    for order in permutations(range(3))
    for signs in product((1.0, -1.0), repeat=3)
    if np.linalg.det(turn := np.diag(signs)[list(order)]) > 0
]


def _nearest_turn(pose: np.ndarray) -> np.ndarray:
    """The element of `TURNS` nearest to the linear part of a pose."""
    return max(TURNS, key=lambda turn: (turn * pose[:3, :3]).sum())


def make_upright(pose: np.ndarray) -> np.ndarray:
    """The rotation (4 x 4) that brings a head with this pose upright.

    If no axes are swapped, x keeps its direction: a head that seems to be turned about y or z was really mirrored, for
    example by slices stacked in the wrong order, and left and right are where the header says.
    """
    upright, turn = np.eye(4), _nearest_turn(pose)
    if (np.abs(turn) == np.eye(3)).all():
        turn = np.diag([1.0, turn[1, 1], turn[2, 2]])
    upright[:3, :3] = turn
    return upright


def describe_orientation(pose: np.ndarray) -> str:
    """How the head lies in the scan, in words; empty if it is upright or turned by less than 45 degrees."""
    turn = _nearest_turn(pose)
    if (np.abs(turn) != np.eye(3)).any():
        axes = ", ".join("xyz"[i] for i in np.abs(turn).argmax(axis=1))
        return f"with its axes exchanged (left-right, back-front and foot-head of the patient along its {axes})"
    words = {2: "upside down", 1: "back to front"}
    return " and ".join(word for axis, word in words.items() if turn[axis, axis] < 0)
