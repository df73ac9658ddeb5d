"""Compare a training step of datxai with a plain PyTorch loop, choice by choice: seconds, ratio, peak memory.

    python -m benchmarks.train                 # 4 mm grid, two minutes
    python -m benchmarks.train --grid paper    # 91 x 109 x 63, 7 GB, a quarter of an hour
    python -m benchmarks.train --device cuda

The variants alternate, each in a separate process (allocator settings cannot be undone), so that
other load on the machine affects all of them. All read the same volumes from one memory map. "other" is the share of
a step that is neither forward, backward nor optimiser; "cold" reads uncached volumes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

GRIDS = {"4mm": ((46, 55, 46), 15), "paper": ((91, 109, 63), 6), "tiny": ((23, 27, 23), 1)}  # shape, steps per turn
WARM_UP = 3  # warm-up steps with fresh memory, not counted
BATCH = 8
PLAIN = {
    "plain loop": set(),
    "+ keep freed memory": {"keep"},
    "+ fused Adam": {"keep", "fused"},
    "+ channels last": {"keep", "fused", "layout"},
}
OURS = {
    "datxai, float32": {},
    "datxai, cold": {},
    "datxai, save_memory": {"save_memory": True},
    "datxai, bf16": {"precision": "bf16"},
    "datxai, bf16, save_memory": {"precision": "bf16", "save_memory": True},
}
PHASES = ("forward", "backward", "optimiser")


def run_plain(model, dataset, device: str, choices: set[str]) -> list[float]:
    """A standard training loop, with some choices; returns the end times of its steps."""
    import torch

    from datxai.memory import keep_freed_memory

    if "keep" in choices:
        keep_freed_memory()
    layout = torch.channels_last_3d if "layout" in choices else torch.contiguous_format
    model.to(device, memory_format=layout)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True if "fused" in choices else None)
    criterion = torch.nn.CrossEntropyLoss()
    model.train()
    ends = []
    for volumes, labels in torch.utils.data.DataLoader(dataset, BATCH, shuffle=True):
        optimiser.zero_grad()
        loss = criterion(model(volumes.to(device, memory_format=layout)), labels.to(device))
        loss.backward()
        optimiser.step()
        loss.item()
        ends.append(time.perf_counter())
    return ends


def run_ours(model, dataset, device: str, settings: dict) -> tuple[list[float], list[dict]]:
    """The same with `datxai.model.training.train`; also the seconds of each phase up to the end of each step."""
    from datxai.model import prediction, training

    spent = dict.fromkeys(PHASES, 0.0)
    measure(prediction.Forward, "forward", spent, "forward", device)
    measure(training.torch.Tensor, "backward", spent, "backward", device)
    measure(training.torch.optim.Adam, "step", spent, "optimiser", device)
    ends, phases = [], []
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            model,
            dataset,
            training.torch.utils.data.Subset(dataset, [0]),
            training.Recipe(max_epochs=1, **settings),
            folder=folder,
            fingerprint="benchmark",
            device=device,
            on_batch=lambda n: (ends.append(time.perf_counter()), phases.append(dict(spent))),
        )
    return ends, phases


def measure(owner, name: str, spent: dict, phase: str, device: str) -> None:
    """Make calls of a method add their seconds to ``spent``; calls within a backward pass count as backward."""
    import torch

    method, depth = getattr(owner, name), spent

    def timed(*arguments, **keywords):
        if depth.get("inside"):
            return method(*arguments, **keywords)
        depth["inside"] = True
        start = time.perf_counter()
        try:
            return method(*arguments, **keywords)
        finally:
            if device == "cuda":
                torch.cuda.synchronize()
            spent[phase] += time.perf_counter() - start
            depth["inside"] = False

    setattr(owner, name, timed)


def turn(variant: str, store: Path, device: str) -> None:
    """Print the seconds of each step after the warm-up, those outside the phases, and the peak memory, as JSON."""
    import torch

    from datxai.cohort.dataset import CaseDataset, open_store
    from datxai.model.network import build

    volumes = open_store(store)
    if variant.endswith("cold"):
        with store.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dataset = CaseDataset(volumes, volumes.case_ids, [number % 2 for number in range(len(volumes))])
    model, phases = build(volumes.shape), []
    if variant in PLAIN:
        ends = run_plain(model, dataset, device, PLAIN[variant])
    else:
        ends, phases = run_ours(model, dataset, device, OURS[variant])
    seconds = np.diff(ends)[WARM_UP - 1 :].tolist()
    inside = [sum(spent[phase] for phase in PHASES) for spent in phases]
    other = (1 - np.diff(inside)[WARM_UP - 1 :].sum() / sum(seconds)) if phases else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps({"seconds": seconds, "other": other, "peak": peak}))


def has_bf16(device: str) -> bool:
    """Whether the device has instructions for bf16; without them a step takes minutes on a processor."""
    import torch

    return device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", choices=GRIDS, default="4mm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=[*PLAIN, *OURS], default=[*PLAIN, *OURS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.turn:
        return turn(arguments.turn[0], Path(arguments.turn[1]), arguments.device)
    from datxai.cohort.dataset import write_store
    from datxai.volume import Grid

    shape, steps = GRIDS[arguments.grid]
    n = BATCH * (WARM_UP + steps)
    turns = {variant: [] for variant in arguments.variants if "bf16" not in variant or has_bf16(arguments.device)}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "volumes.npy"
        volumes = (rng.random(shape, np.float32) for _ in range(n))
        write_store(store, [f"{number}" for number in range(n)], volumes, Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0])))
        with store.open("rb") as stream:
            os.fsync(stream.fileno())  # only what is on disk can be dropped from the cache
        for _ in range(arguments.rounds):
            for variant in turns:
                command = [sys.executable, "-m", "benchmarks.train", "--device", arguments.device]
                output = subprocess.check_output([*command, "--turn", variant, str(store)])
                turns[variant].append(json.loads(output))
    seconds = {variant: [s for turn in turns[variant] for s in turn["seconds"]] for variant in turns}
    print(f"training step, batch {BATCH}, grid {'x'.join(map(str, shape))}, {arguments.device}")
    print(f"{'':26}{'s':>8}{'fastest':>9}{'ratio':>7}{'other %':>9}{'peak GB':>9}")
    for variant, found in turns.items():
        ratio = median(seconds[arguments.variants[0]]) / median(seconds[variant])
        peak = max(turn["peak"] for turn in found)
        other = "" if variant in PLAIN else f"{100 * median(turn['other'] for turn in found):.1f}"
        fastest = min(seconds[variant])
        print(f"{variant:26}{median(seconds[variant]):8.3f}{fastest:9.3f}{ratio:7.2f}{other:>9}{peak:9.2f}")


if __name__ == "__main__":
    main()
