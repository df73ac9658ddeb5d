"""Trained networks on disk: the weights as safetensors, the description of the network as YAML."""

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
    """Write a model's ``state_dict`` atomically as safetensors; contiguous tensors are not copied.

    The header holds a CRC-32 of the values.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {"crc32": _checksum(tensors)})


def is_whole(path: str | os.PathLike) -> bool:
    """Whether saved weights match the checksum in their header; older files without one count as whole."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("crc32")
        return expected is None or expected == _checksum(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError):
        return False


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32 of names and values, in hexadecimal."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Put saved weights into ``model``.

    The parameters of a model on the meta device become views of the memory-mapped file, on the CPU: values are
    read on first use, and the file is never written to. Any other model keeps its parameters and their device, and
    the values are copied.

    Raises `InputError` if the file is missing or damaged, or belongs to another network or grid; the message
    names the first tensor that differs.
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
    """Write the configuration that the weights need as YAML, atomically.

    ``config["network"]`` holds the arguments of `architectures.build`; the caller decides on the rest (grid, names of
    the classes), in plain numbers, strings, lists and dicts.
    """
    write_text(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def load_network(path: str | os.PathLike) -> dict:
    """Read what `save_network` wrote; `InputError` if it is missing or malformed."""
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
    """Load the trained network in ``folder``, ready to predict (evaluation mode), and its configuration.

    A custom network is code that is executed, so its class must be the one that the caller has ``trusted``.
    The weights are memory-mapped, not read: milliseconds for the paper's 0.94 GB. On the CPU they stay mapped, and
    each is read on first use.
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
        model = outline(**config["network"])  # its weights are replaced below
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, KeyError) as error:  # depends on what is wrong
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
