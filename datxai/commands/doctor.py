"""Diagnostics for a bug report, without names of hosts, people or folders: what is installed and whether it works."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator

from datxai.config import Config
from datxai.run import Run, git_revision, versions

OWN_LINES = ("datxai", "python", "torch")  # packages with a line of their own
DEVELOPER_EXTRAS = ("dev", "docs")  # not for users


def run(settings: Config, folder: Run) -> None:
    """Print versions, accelerators, extras, memory, disk space, and whether a small network is explained correctly."""
    print("\n".join(f"{name:<12}{_try(find)}" for name, find in LINES.items()))


def _try(find: Callable[[], str]) -> str:
    try:
        return find()
    except Exception as error:  # failures belong in the report
        text = str(error).replace(os.path.expanduser("~"), "~").splitlines()
        return f"fails: {type(error).__name__}: {text[0] if text else ''}"


def _name_version() -> str:
    revision = git_revision()
    return versions()["datxai"] + (f", git {revision}" if revision else ", installed")


def _name_torch() -> str:
    import torch

    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return f"{torch.__version__}, {torch.get_num_threads()} threads, bf16 instructions: {'yes' if has_bf16 else 'no'}"


def _name_accelerators() -> str:
    import torch

    accelerators = []
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        accelerators.append(f"cuda:{number} {card.name}, {card.total_memory / 2**30:.0f} GiB")
    return "; ".join(accelerators) or "none that PyTorch can use (device=cpu)"


def find_extras() -> dict[str, list[str]]:
    """The missing packages of each extra, by the extra's name."""
    missing: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("datxai") or ():
        match = re.match(r"""([\w.-]+).*;.*\bextra == ['"](\w+)['"]""", requirement)
        if match and match[2] not in DEVELOPER_EXTRAS:
            missing.setdefault(match[2], []).extend([] if _is_installed(match[1]) else [match[1]])
    return missing


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _name_extras() -> str:
    extras = find_extras()
    complete = [name for name, missing in extras.items() if not missing]
    incomplete = [f"{name} ({', '.join(missing)})" for name, missing in extras.items() if missing]
    return f"{', '.join(complete) or 'none'}; not: {', '.join(incomplete) or 'none'}"


def _name_free_space() -> str:
    return f"{shutil.disk_usage('.').free / 1e9:.1f} GB free in this folder"


def _name_memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB, {os.cpu_count()} cores"


def _explain() -> str:
    """Explain a network without biases by the LRP-0 rule, which conserves relevance (Bach et al. 2015)."""
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
        result = attribute(network, torch.rand(1, 1, 6, 6, 6), composite=lines, target=1)
    start, end = sum(result.seeds[0]), float(result.relevance.sum())
    verdict = "as it should be" if abs(end - start) < 1e-4 * abs(start) else "WRONG: LRP-0 loses none"
    return f"starts with {start:.4f}, ends with {end:.4f}, {verdict}"


def _name_packages() -> Iterator[str]:
    return (f"{name} {version}" for name, version in versions().items() if name not in OWN_LINES)


LINES: dict[str, Callable[[], str]] = {
    "datxai": _name_version,
    "python": lambda: f"{platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}",
    "torch": _name_torch,
    "accelerator": _name_accelerators,
    "packages": lambda: ", ".join(_name_packages()),
    "extras": _name_extras,
    "memory": _name_memory,
    "disk": _name_free_space,
    "explanation": _explain,
}
