"""Trained networks on disk: the weights as safetensors, what the network is as YAML."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import yaml
from torch import nn

from datxai.errors import InputError
from datxai.files import replacing, write_text
from datxai.model.architectures import outline
from datxai.model.network import place

WEIGHTS, CONFIG = "weights.safetensors", "config.yaml"


def save_weights(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Write a model's ``state_dict`` atomically as safetensors; what is contiguous already is not copied.

    The header holds a CRC-32 of the values.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {"crc32": _sum_up(tensors)})


def is_whole(path: str | os.PathLike) -> bool:
    """Whether saved weights have the checksum that they were written with; older ones without it count as whole."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            known = (file.metadata() or {}).get("crc32")
        return known is None or known == _sum_up(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError):
        return False


def _sum_up(tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32 of names and values."""
    checksum = 0
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(name.encode(), checksum)
        checksum = zlib.crc32(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Put saved weights into ``model``.

    A model on the meta device gets the memory-mapped file itself as its parameters, on the CPU: nothing is
    read before it is used, and the file is never written to. Any other model keeps its parameters and their
    device, the values are copied.

    Raises `InputError` if the file is missing or damaged, and if it belongs to another network or grid: then
    the first layer that differs is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected the weights of a trained network; train it first.")
    try:
        saved = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path}: cannot be read as safetensors ({error}), the file is damaged or of another format; "
            f"copy it again or train again."
        ) from error
    expected = model.state_dict()
    for name in [*expected, *(name for name in saved if name not in expected)]:
        stored, wanted = _describe(saved.get(name)), _describe(expected.get(name))
        if stored != wanted:
            raise InputError(
                f"{path}: {name} is {stored} in the file but {wanted} in the network: these weights are of "
                f"another network or grid; use the configuration they were trained with."
            )
    model.load_state_dict(saved, assign=any(parameter.is_meta for parameter in model.parameters()))


def save_network(config: Mapping, path: str | os.PathLike) -> None:
    """Write what is needed to use the weights as YAML, atomically.

    ``config["network"]`` holds the arguments of `architectures.build`; the rest is the caller's (grid, names of the
    classes), in plain numbers, strings, lists and dicts.
    """
    write_text(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def load_network(path: str | os.PathLike) -> dict:
    """Read what `save_network` wrote. Raises `InputError` if it is missing or not of that form."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected the YAML of a trained network; train it first.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not readable as YAML ({reason}); train again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("network"), dict):
        raise InputError(f"{path}: no network in it, expected a mapping called 'network'; train again.")
    return config


def load(
    folder: str | os.PathLike, device: str | torch.device = "cpu", trusted: str | None = None
) -> tuple[nn.Sequential, dict]:
    """The trained network in ``folder``, ready to predict (evaluation mode), and its configuration.

    A network of the user's own is code that is executed: its class has to be the one that the caller has ``trusted``.
    The weights are memory-mapped, not read: milliseconds for the paper's 0.94 GB. On the CPU they stay so,
    the first use of each reads it.
    """
    folder = Path(folder)
    config = load_network(folder / CONFIG)
    target = config["network"].get("target")
    if target is not None and target != trusted:
        raise InputError(
            f"{folder / CONFIG}: the network is made by {target}, Python code that would be executed; if you trust it, "
            f"name it on the command line: network.target={target}"
        )
    try:
        model = outline(**config["network"])  # of weights that are replaced at once
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, KeyError) as error:  # as what is wrong has it
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{folder / CONFIG}: 'network' does not hold what a network is built from ({reason}); train again."
        ) from error
    load_weights(model, folder / WEIGHTS)
    place(model, device)
    return model.eval(), config


def _describe(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
