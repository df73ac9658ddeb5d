"""Cost of a relevance map: time and peak memory relative to one forward pass, and error against float64.

    python -m benchmarks.explain                                           # the 4 mm grid, batch 1: a minute
    python -m benchmarks.explain --grids mni_4mm mni_2mm_paper --batches 1 4 --memory 1 4 16 --json explain.json
    python -m benchmarks.explain --network resnet3d --batches 1 4 --no-slow

All variants alternate, round by round, in one process, so that a busy machine slows all of them equally. The results
are medians and quartiles over rounds (the slow variants, captum's perturbations and paths, only run in the first two).
Every variant computes the map of the reduced class. LRP uses the composite of Nazari et al. 2022, or for another
network ``composite=auto``: with `attribute`, also with Zennit's own hooks in it, and with Zennit alone (for the paper's
network), on the network as PyTorch builds it. Weights are random, unless you pass a run; scans are random, with half of
their voxels zero. The forward pass is the same network's without gradient, in float32, with the memory layout
in which trained networks are loaded. All variants reuse freed memory (see `datxai.memory`). Peak memory is
the total of a process which does nothing else; on a GPU, that of its tensors.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from datxai.explain import attribute, build_composite
from datxai.explain.automatic import choose_rules
from datxai.memory import keep_freed_memory
from datxai.model import architectures, checkpoint, network

CONF = Path(__file__).parents[1] / "conf"
PAPER = "nazari2021"
NAZARI = yaml.safe_load((CONF / "composite" / f"{PAPER}.yaml").read_text())["layers"]
REDUCED = 1
SLOW_ROUNDS = 2
SLOW = {"integrated gradients, 50 steps (captum)", "occlusion, windows of 16 (captum)"}
LRP = {
    "LRP": {},
    "LRP, with ledger": {"ledger": True},
    "LRP, bf16": {"precision": "bf16"},
    "LRP, stock Zennit": {"rules": "zennit"},
}
if not (torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
    del LRP["LRP, bf16"]  # minutes per map on a processor without instructions for it


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", nargs="+", default=["mni_4mm"], help="names of files in conf/grid")
    parser.add_argument("--network", default=PAPER, help="name of a file in conf/network")
    parser.add_argument("--batches", type=int, nargs="*", default=[1], help="to be timed")
    parser.add_argument("--memory", type=int, nargs="*", default=[], help="batches whose peak memory is measured")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--weights", type=Path, help="model folder of a run (RUN/model), for the grid that it is of")
    parser.add_argument("--no-slow", action="store_true", help="without integrated gradients and occlusion")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # one variant, in a process of its own
    options = parser.parse_args(words)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(peak_gib(options))
        return
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads, {options.rounds} rounds")
    results = []
    for grid in options.grids:
        model, shape = load(grid, options)
        errors = errors_of(model, scans(1, shape).to(options.device))
        for batch in sorted({*options.batches, *options.memory}):
            no_slow = options.no_slow or batch > 1  # they explain case by case anyway
            variants = variants_of(model, scans(batch, shape).to(options.device), no_slow)
            times = interleaved(variants, options.rounds) if batch in options.batches else {}
            peaks = peaks_of(variants, grid, batch, options) if batch in options.memory else {}
            rows = [row(name, times, peaks, errors if batch == 1 else {}) for name in variants]
            print_table(f"{options.network}, {grid} {shape}, batch {batch}", rows)
            results += [{"network": options.network, "grid": grid, "batch": batch, **row} for row in rows]
    if options.json:
        head = {"torch": torch.__version__, "device": options.device, "threads": options.threads}
        options.json.write_text(json.dumps({**head, "rounds": options.rounds, "rows": results}, indent=2) + "\n")


def load(grid: str, options: argparse.Namespace) -> tuple[nn.Module, list[int]]:
    """The network for a grid, with random weights or those of a run, and the grid's shape."""
    shape = yaml.safe_load((CONF / "grid" / f"{grid}.yaml").read_text())["shape"]
    if options.weights:
        return checkpoint.load(options.weights, options.device)[0], shape
    settings = yaml.safe_load((CONF / "network" / f"{options.network}.yaml").read_text())
    model = architectures.build(shape, **settings)
    network.place(model, options.device)
    return model.eval(), shape


def scans(batch: int, shape: Sequence[int]) -> Tensor:
    """Random scans [batch, 1, X, Y, Z], with about half of the voxels zero, as outside the head."""
    x = torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(0))
    return torch.where(x < 0.5, 0, x * 3)


def is_the_papers(model: nn.Module) -> bool:
    return any(name == "conv4" for name, _ in model.named_modules())


def lrp(model: nn.Module, x: Tensor, **choice) -> Tensor:
    lines, canonizers = (NAZARI, []) if is_the_papers(model) else choose_rules(model)
    choice = {"ledger": False, "composite": lines, "canonizers": canonizers} | choice
    return attribute(model, x, target=REDUCED, **choice).relevance


def variants_of(model: nn.Module, x: Tensor, no_slow: bool = False) -> dict[str, Callable[[], object]]:
    """The variants, by name."""
    from captum.attr import IntegratedGradients, Occlusion, Saliency
    from zennit.attribution import Gradient

    def forward():
        with torch.no_grad():
            return model(x)

    def zennit_alone():
        with Gradient(plain, stock) as attributor:
            return attributor(x.clone().requires_grad_(), lambda logits: logits * torch.eye(2)[REDUCED].to(x))[1]

    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]  # shared, as memory is measured
    plain = copy.deepcopy(model, {id(layer): layer for layer in linear}).to(memory_format=torch.contiguous_format)
    stock = build_composite(NAZARI, plain, rules="zennit") if is_the_papers(model) else None
    window = tuple(min(16, n) for n in x.shape[2:])
    saliency, integrated, occlusion = Saliency(model), IntegratedGradients(model), Occlusion(model)
    variants = {
        "forward": forward,
        "gradient": lambda: attribute(model, x, method="gradient", target=REDUCED).relevance,
        "gradient (captum)": lambda: saliency.attribute(x.clone().requires_grad_(), target=REDUCED, abs=False),
        **{name: lambda choice=choice: lrp(model, x, **choice) for name, choice in LRP.items()},
        **({"LRP, Zennit alone": zennit_alone} if is_the_papers(model) else {}),
        "integrated gradients, 50 steps (captum)": lambda: integrated.attribute(
            x, target=REDUCED, n_steps=50, internal_batch_size=len(x)
        ),
        "occlusion, windows of 16 (captum)": lambda: occlusion.attribute(
            x, sliding_window_shapes=(1, *window), strides=(1, *window), target=REDUCED
        ),
    }
    return {name: run for name, run in variants.items() if not (no_slow and name in SLOW)}


def interleaved(variants: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round, after a warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-1, rounds):
        for name, run in variants.items():
            if name in SLOW and not 0 <= number < SLOW_ROUNDS:
                continue
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                times[name].append(time.perf_counter() - started)
    return times


def errors_of(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Relative L2 distance of LRP maps to the same rules' map in float64."""
    found = {name: run() for name, run in variants_of(model, x, no_slow=True).items() if name.startswith("LRP")}
    model.double()
    exact = lrp(model, x.double())
    model.float()
    return {name: float((map_ - exact).norm() / exact.norm()) for name, map_ in found.items()}


def peaks_of(variants: Mapping, grid: str, batch: int, options: argparse.Namespace) -> dict[str, float]:
    """GiB of every variant, each in a separate process; variants that do not fit in memory are skipped."""
    command = [sys.executable, "-m", "benchmarks.explain", "--grids", grid, "--memory", str(batch)]
    command += ["--device", options.device, "--threads", str(options.threads), "--network", options.network]
    command += ["--weights", str(options.weights)] if options.weights else []
    peaks = {}
    for name in [name for name in variants if name not in SLOW]:
        ended = subprocess.run([*command, "--peak-of", name], capture_output=True, text=True)
        if ended.returncode == -signal.SIGKILL and name != "forward":
            print(f"{name}, batch {batch}: killed, presumably out of memory")
        elif ended.returncode:
            raise RuntimeError(f"peak of {name}, exit status {ended.returncode}: {ended.stderr}")
        else:
            peaks[name] = float(ended.stdout)
    return peaks


def peak_gib(options: argparse.Namespace) -> float:
    model, shape = load(options.grids[0], options)
    variants_of(model, scans(options.memory[0], shape).to(options.device))[options.peak_of]()
    if options.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent process too
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def row(name: str, times: Mapping, peaks: Mapping, errors: Mapping) -> dict:
    """Results of one variant: median seconds of the whole batch, quartiles of the ratio to the forward
    pass of the same round, which is robust against temporary slowdowns."""
    found = {"variant": name, "peak_gib": peaks.get(name), "error": errors.get(name)}
    if peaks:
        found["peak_x_forward"] = peaks[name] / peaks["forward"] if name in peaks else None
    if times:
        ratios = [own / forward for own, forward in zip(times[name], times["forward"])]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        found |= {"seconds": statistics.median(times[name]), "x_forward": middle, "quartiles": [low, high]}
    return found


def print_table(title: str, rows: Sequence[Mapping]) -> None:
    batch = int(title.rsplit(" ", 1)[1])
    print(f"\n{title:<42} ms per case   x forward    quartiles   peak GiB   x forward   rel. L2 to float64")
    for found in rows:
        cells = [f"  {found['variant']:<40}"]
        timed = "seconds" in found
        cells.append(f"{1000 * found['seconds'] / batch:>11.1f}" if timed else f"{'':>11}")
        cells.append(f"{found['x_forward']:>11.2f}" if timed else f"{'':>11}")
        cells.append("{:>6.2f}-{:<6.2f}".format(*found["quartiles"]) if timed else f"{'':>13}")
        measured = found["peak_gib"] is not None
        cells.append(f"{found['peak_gib']:>10.2f}" if measured else f"{'':>10}")
        cells.append(f"{found['peak_x_forward']:>11.2f}" if measured else f"{'':>11}")
        cells.append("" if found["error"] is None else f"{found['error']:>12.1e}")
        print(" ".join(cells).rstrip(), flush=True)


if __name__ == "__main__":
    main()
