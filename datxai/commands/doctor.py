"""What is installed here and what works, in ten lines for a bug report; no name of a host, a person or a folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator

from datxai.config import Config
from datxai.run import Run, git_revision, versions

BESIDE = ("datxai", "python", "torch")  # packages with lines of their own
OF_DEVELOPERS = ("dev", "docs")  # extras that are not a user's


def run(settings: Config, folder: Run) -> None:
    """Print a line for each thing that reports of faults turn on: versions, accelerator, extras, room, and whether a
    small network is explained rightly."""
    print("\n".join(f"{name:<12}{_try(find)}" for name, find in LINES.items()))


def _try(find: Callable[[], str]) -> str:
    try:
        return find()
    except Exception as error:  # what does not work is what a report is about
        text = str(error).replace(os.path.expanduser("~"), "~").splitlines()
        return f"fails: {type(error).__name__}: {text[0] if text else ''}"


def _name_version() -> str:
    revision = git_revision()
    return versions()["datxai"] + (f", git {revision}" if revision else ", installed")


def _name_torch() -> str:
    import torch

    quick = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return f"{torch.__version__}, {torch.get_num_threads()} threads, bf16 instructions: {'yes' if quick else 'no'}"


def _name_accelerators() -> str:
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number} {card.name}, {card.total_memory / 2**30:.0f} GiB")
    return "; ".join(found) or "none that PyTorch can use (device=cpu)"


def find_extras() -> dict[str, list[str]]:
    """The packages that each extra lacks here, by the extra's name."""
    lacks: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("datxai") or ():
        match = re.match(r"""([\w.-]+).*;.*\bextra == ['"](\w+)['"]""", requirement)
        if match and match[2] not in OF_DEVELOPERS:
            lacks.setdefault(match[2], []).extend([] if _is_there(match[1]) else [match[1]])
    return lacks


def _is_there(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _name_extras() -> str:
    extras = find_extras()
    there = [name for name, lacking in extras.items() if not lacking]
    lacking = [f"{name} ({', '.join(names)})" for name, names in extras.items() if names]
    return f"{', '.join(there) or 'none'}; not: {', '.join(lacking) or 'none'}"


def _name_room() -> str:
    return f"{shutil.disk_usage('.').free / 1e9:.1f} GB free in this folder"


def _name_memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB, {os.cpu_count()} cores"


def _explain() -> str:
    """Explain a network without biases by the LRP-0 rule, which hands on all relevance (Bach et al. 2015)."""
    import torch

    from datxai.explain import attribute

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv3d(1, 4, 3, bias=False), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(4 * 4**3, 2, bias=False),
        )  # fmt: skip
        lines = [{"match": ["type:Convolution", "type:Linear"], "rule": "epsilon", "parameters": {"epsilon": 1e-9}},
                 {"match": ["type:Activation"], "rule": "pass"}]  # fmt: skip
        found = attribute(network, torch.rand(1, 1, 6, 6, 6), composite=lines, target=1)
    start, end = sum(found.seeds[0]), float(found.relevance.sum())
    verdict = "as it should be" if abs(end - start) < 1e-4 * abs(start) else "WRONG: LRP-0 loses none"
    return f"starts with {start:.4f}, ends with {end:.4f}, {verdict}"


def _name_packages() -> Iterator[str]:
    return (f"{name} {version}" for name, version in versions().items() if name not in BESIDE)


LINES: dict[str, Callable[[], str]] = {
    "datxai": _name_version,
    "python": lambda: f"{platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}",
    "torch": _name_torch,
    "accelerator": _name_accelerators,
    "packages": lambda: ", ".join(_name_packages()),
    "extras": _name_extras,
    "memory": _name_memory,
    "disk": _name_room,
    "explanation": _explain,
}
