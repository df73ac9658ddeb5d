"""What a relevance map costs: time of one map over time of one forward pass, and error against float64.

    python -m benchmarks.explain                              # the 4 mm grid, batch 1
    python -m benchmarks.explain --grid mni_2mm_paper --batches 1 4 --json explain.json

All variants take turns, round after round, in one process, so that a busy machine slows all of them alike; medians
and quartiles over rounds. The forward pass is the plain network's, without gradient. Every variant gives the map of
the reduced class through the composite of Nazari et al. 2022, with random weights and random scans (half of the
voxels zero). Freed memory is kept for all variants alike (see `datxai.memory`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from datxai.explain import attribute
from datxai.memory import keep_freed_memory
from datxai.model import network

CONF = Path(__file__).parents[1] / "conf"
REDUCED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="mni_4mm", help="name of a file in conf/grid")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--others", action="store_true", help="captum's methods too (slow)")
    parser.add_argument("--error", action="store_true", help="error against float64 too (slow on large grids)")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds; for busy machines, with --threads 1")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)

    shape = yaml.safe_load((CONF / "grid" / f"{options.grid}.yaml").read_text())["shape"]
    composite = yaml.safe_load((CONF / "composite" / "nazari2021.yaml").read_text())
    model = network.build(shape).to(options.device).eval()
    print(f"{options.grid} {shape}, {options.device}, {options.threads} threads, float32, {options.rounds} rounds")
    results = []
    for batch in options.batches:
        x = scans(batch, shape).to(options.device)
        variants = variants_of(model, composite["layers"], x, options.others)
        times = interleaved(variants, options.rounds, time.process_time if options.cpu_time else time.perf_counter)
        errors = errors_of(model, composite["layers"], x) if options.error else {}
        forward = statistics.median(times["forward"])
        print(f"\nbatch {batch:<24} ms per case   x forward   quartiles        rel. L2 to float64")
        for name, seconds in times.items():
            low, middle, high = statistics.quantiles(seconds, n=4)
            result = {
                "grid": options.grid, "batch": batch, "variant": name, "ms_per_case": 1000 * middle / batch,
                "x_forward": middle / forward, "quartiles": [low / forward, high / forward],
                "error": errors.get(name),
            }  # fmt: skip
            results.append(result)
            error = "" if result["error"] is None else f"{result['error']:.1e}"
            print(
                f"  {name:<28} {result['ms_per_case']:>11.1f} {result['x_forward']:>11.2f}"
                f"   {low / forward:.2f} to {high / forward:<8.2f} {error}"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def scans(batch: int, shape: list[int]) -> Tensor:
    """Random scans [batch, 1, X, Y, Z], with about half of the voxels zero, as outside the head."""
    x = torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(0))
    return torch.where(x < 0.5, 0, x * 3)


def variants_of(model: nn.Module, lines: list[Mapping], x: Tensor, others: bool) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""

    def forward():
        with torch.no_grad():
            return model(x)

    def lrp(rules: str, ledger: bool) -> Callable[[], Tensor]:
        return lambda: attribute(
            model, x, composite=lines, target=REDUCED, rules=rules, ledger=ledger
        ).relevance

    def gradient():
        return attribute(model, x, method="gradient", target=REDUCED).relevance

    variants = {
        "forward": forward,
        "gradient": gradient,
        "LRP, datxai": lrp("fast", False),
        "LRP, datxai, with ledger": lrp("fast", True),
        "LRP, stock Zennit": lrp("zennit", False),
    }
    if others:
        from captum.attr import IntegratedGradients, Occlusion

        window = tuple(min(16, n) for n in x.shape[2:])
        integrated, occlusion = IntegratedGradients(model), Occlusion(model)
        variants["integrated gradients, 50 steps (captum)"] = lambda: integrated.attribute(
            x, target=REDUCED, n_steps=50, internal_batch_size=len(x)
        )
        variants["occlusion, windows of 16 (captum)"] = lambda: occlusion.attribute(
            x, sliding_window_shapes=(1, *window), strides=(1, *window), target=REDUCED
        )
    return variants


def interleaved(variants: Mapping[str, Callable], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every variant in every round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            started = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(clock() - started)
    return times


def errors_of(model: nn.Module, lines: list[Mapping], x: Tensor) -> dict[str, float]:
    """Relative L2 distance of the float32 maps to the same rules' map in float64."""
    found = {
        name: attribute(model, x, composite=lines, target=REDUCED, rules=rules, ledger=False).relevance
        for name, rules in {"LRP, datxai": "fast", "LRP, stock Zennit": "zennit"}.items()
    }
    model.double()
    exact = attribute(model, x.double(), composite=lines, target=REDUCED, ledger=False).relevance
    model.float()
    return {name: float((map_ - exact).norm() / exact.norm()) for name, map_ in found.items()}


if __name__ == "__main__":
    main()
