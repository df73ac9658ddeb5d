"""A training step of datxai beside a plain PyTorch loop: seconds, ratio, peak memory.

    python -m benchmarks.train                 # 4 mm grid, half a minute
    python -m benchmarks.train --grid paper    # 91 x 109 x 63, 6 GB, some minutes

The variants take turns, each in a process of its own (what the allocator was told cannot be taken back), so that
other load on the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

GRIDS = {"4mm": ((46, 55, 46), 12), "paper": ((91, 109, 63), 6)}  # shape, steps a turn
WARM_UP = 3  # steps that meet fresh memory, not counted
BATCH = 8
VARIANTS = ("plain loop", "float32", "bf16")


def plain_loop(model, dataset) -> list[float]:
    """The loop of every tutorial; the times at which its steps ended."""
    import torch

    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    criterion = torch.nn.CrossEntropyLoss()
    model.train()
    ends = []
    for volumes, labels in torch.utils.data.DataLoader(dataset, BATCH, shuffle=True):
        optimiser.zero_grad()
        loss = criterion(model(volumes), labels)
        loss.backward()
        optimiser.step()
        loss.item()
        ends.append(time.perf_counter())
    return ends


def ours(model, dataset, precision: str) -> list[float]:
    """The same through `datxai.model.training.train`."""
    from datxai.model import training

    ends = []
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            model,
            dataset,
            dataset[:1],
            folder=folder,
            fingerprint="benchmark",
            max_epochs=1,
            precision=precision,
            on_batch=lambda n: ends.append(time.perf_counter()),
        )
    return ends


def turn(variant: str, grid: str) -> None:
    """Print the seconds of each step after the warm-up, and the peak memory in GiB, as JSON."""
    import torch

    from datxai.model.network import build

    shape, steps = GRIDS[grid]
    dataset = [(torch.rand(1, *shape), case % 2) for case in range(BATCH)] * steps
    model = build(shape)
    ends = plain_loop(model, dataset) if variant == "plain loop" else ours(model, dataset, variant)
    seconds = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", choices=GRIDS, default="4mm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        return turn(arguments.turn, arguments.grid)
    turns = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.rounds):
        for variant in VARIANTS:
            command = [sys.executable, "-m", "benchmarks.train", "--grid", arguments.grid, "--turn", variant]
            turns[variant].append(json.loads(subprocess.check_output(command)))
    seconds = {variant: median(s for t in turns[variant] for s in t["seconds"]) for variant in VARIANTS}
    print(f"training step, batch {BATCH}, grid {'x'.join(map(str, GRIDS[arguments.grid][0]))}")
    print(f"{'':12}{'s':>8}{'ratio':>8}{'peak GiB':>10}")
    for variant in VARIANTS:
        ratio = seconds["plain loop"] / seconds[variant]
        peak = max(t["peak"] for t in turns[variant])
        print(f"{variant:12}{seconds[variant]:8.3f}{ratio:8.2f}{peak:10.2f}")


if __name__ == "__main__":
    main()
