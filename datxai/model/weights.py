"""Pretrained weights: loading them into a network under other names, and freezing some of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from datxai.errors import InputError

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")  # under which checkpoints hold the weights
MAX_LISTED_NAMES = 8  # in a message


def load_pretrained(
    model: nn.Sequential, path: str | Path, rename: Mapping[str, str | None] | None = None, initial: Sequence[str] = ()
) -> None:
    """Load the weights of a file into a network from `architectures.build`.

    Parameters
    ----------
    model
        If it has a module ``network``, the names are those of that module. An outline is checked, but not filled.
    path
        Safetensors (``.safetensors``), or a PyTorch file, which is read as data (``weights_only=True``): the weights
        themselves, or a dictionary that holds them as ``state_dict``, ``model_state_dict`` or ``model``.
    rename
        Regular expressions for the beginnings of names, and their replacements, applied in this order to each name in
        the file. Names that match an expression whose replacement is None are left out.
    initial
        Patterns (``*`` any text) of names of the network that may be missing in the file and keep their initial values.

    Raises
    ------
    InputError
        If the file cannot be read, or if names are missing, unexpected or of another shape; the message lists them.
    """
    inner = _inner(model)
    path, expected = Path(path), inner.state_dict()
    saved = _rename(_read(path), rename or {})
    _require_matches(initial, expected, "initial")
    missing = [name for name in expected if name not in saved and not _matches(name, initial)]
    unexpected = [name for name in saved if name not in expected]
    misshapen = [
        f"{name} ({list(saved[name].shape)} in the file, {list(tensor.shape)} in the network)"
        for name, tensor in expected.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    problems = [f"{fault}: {_list_names(names)}" for fault, names in faults.items() if names]
    if problems:
        raise InputError(
            f"network.weights={path}: does not fit the network; {'; '.join(problems)}. Rename names of the file by "
            f"network.rename={{PATTERN:REPLACEMENT}} (null leaves them out), and let names of the network keep their "
            f"initial values by network.initial=[PATTERN]."
        )
    if not any(tensor.is_meta for tensor in expected.values()):  # an outline cannot hold values
        inner.load_state_dict(saved, strict=False)


def freeze(model: nn.Sequential, patterns: Sequence[str]) -> None:
    """Exclude parameters from training by name; `InputError` if a pattern matches none, or none are left to train."""
    parameters = dict(_inner(model).named_parameters())
    _require_matches(patterns, parameters, "freeze")
    for name, parameter in parameters.items():
        if _matches(name, patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"network.freeze={list(patterns)}: leaves nothing to train; take training=none for that.")


def _inner(model: nn.Sequential) -> nn.Module:
    inner = getattr(model, "network", model)
    assert isinstance(inner, nn.Module)
    return inner


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(f"network.weights={path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the type depends on the damage
        raise InputError(
            f"network.weights={path}: cannot be read as weights ({' '.join(str(error).split())[:200]}); expected "
            f"safetensors, or a file of torch.save that holds tensors and nothing else."
        ) from error
    while isinstance(content, Mapping):
        inner = next((content[name] for name in STATE_DICT_KEYS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    values = [*content.values()] if isinstance(content, Mapping) else []
    if not isinstance(content, Mapping) or not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise InputError(
            f"network.weights={path}: holds no weights, expected names with tensors, or these as one of "
            f"{', '.join(STATE_DICT_KEYS)}."
        )
    return {str(name): value for name, value in content.items()}


def _rename(saved: Mapping[str, torch.Tensor], rename: Mapping[str, str | None]) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in saved.items():
        new: str | None = name
        for pattern, replacement in rename.items():
            try:
                if new is not None and re.match(pattern, new):
                    new = None if replacement is None else re.sub(pattern, str(replacement), new, count=1)
            except re.error as error:
                raise InputError(
                    f"network.rename: {pattern!r} with {replacement!r} is no regular expression ({error})."
                ) from error
        if new in renamed:
            raise InputError(f"network.rename: two names of the file become {new}; make the patterns narrower.")
        if new is not None:
            renamed[new] = tensor
    return renamed


def _require_matches(patterns: Sequence[str], names: Mapping[str, object], setting: str) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"network.{setting}: no weights of the network match {pattern!r}; they are {_list_names(list(names))}."
            )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _list_names(names: Sequence[str]) -> str:
    n_more = len(names) - MAX_LISTED_NAMES
    return ", ".join(names[:MAX_LISTED_NAMES]) + (f" and {n_more} more" if n_more > 0 else "")
