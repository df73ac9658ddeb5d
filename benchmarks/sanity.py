"""Do the metrics distinguish maps of a trained network from those of the same network with random weights?

    python -m benchmarks.sanity RUN [--cases 20] [--networks 3] [--markdown FILE]

Per method, over test cases: the similarity of a map to that of networks with more and more random layers (the cascade
of `datxai.metrics.randomisation`), and every other metric of the map, compared with maps of networks with all
weights random. Flipping uses the trained network in both. The explained output is the trained network's decision, the
logit of the class it predicts minus that of the other, for the random networks as well. A metric distinguishes them if
it is higher for the trained network than for each of the random ones in more cases than by chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml

from datxai.analysis.classification import wilson_interval
from datxai.cohort.dataset import open_store
from datxai.explain import attribute
from datxai.explain.attribution import NORMAL, REDUCED
from datxai.files import write_text
from datxai.findings import Findings
from datxai.imaging.atlas import load_atlas, make_parcellation, make_regions
from datxai.metrics import METRICS, Case
from datxai.metrics.randomisation import cascade, randomise
from datxai.model import checkpoint
from datxai.pages.tables import format_percent
from datxai.run import Run

COMPOSITE = Path(__file__).parents[1] / "conf" / "composite" / "nazari2021.yaml"
METHODS = {
    "LRP (nazari2021)": {"composite": yaml.safe_load(COMPOSITE.read_text())["layers"]},
    "gradient": {"method": "gradient", "start": "one"},
    "input x gradient": {"method": "input_x_gradient", "start": "one"},
}
COMPARED = ("patch_flipping", "parcel_flipping", "relevance_mass", "relevance_rank", "pointing_game", "sparseness")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--cases", type=int, default=20, help="correctly classified test cases, half of each class")
    parser.add_argument("--networks", type=int, default=3, help="with random weights")
    parser.add_argument("--markdown", type=Path, help="write the tables here as well")
    options = parser.parse_args(words)
    run = Run(options.run)
    model, _ = checkpoint.load(run.model)
    untaught = [[*randomise(model, seed)][-1][1] for seed in range(options.networks)]
    cases, chance = list(read_cases(run, model, options.cases)), 1 / (1 + options.networks)
    if not cases:
        raise SystemExit(f"{run.folder}: no test cases of both classes are classified correctly; train for longer.")
    lines = [
        "# Do the metrics tell a trained network from a random one?",
        "",
        f"Made by `python -m benchmarks.sanity RUN --networks {options.networks}` on {len(cases)} "
        f"test cases of a default run, explained for the logit of the class that the trained network predicts minus "
        f"that of the other (gradients start with one, LRP with the logits). "
        f"Upper tables: means over cases. Lower tables: `higher` is the share of cases in "
        f"which the trained network's map has a higher value than the map of each random network, with its 95 % "
        f"interval (Wilson); chance is {chance:.0%}, and a metric whose interval begins above it tells them apart.",
    ]
    for method, how in METHODS.items():
        steps, values = [], {name: [] for name in COMPARED}
        for make in cases:
            real, *random = (make(network, how) for network in (model, *untaught))
            steps.append(cascade(real))
            for name in COMPARED:
                values[name].append([METRICS[name](case)[METRICS[name].headline] for case in (real, *random)])
        lines += ["", f"## {method}", "", "| random from the output down to | " + " | ".join(steps[0]) + " |"]
        lines.append("|---" * (len(steps[0]) + 1) + "|")
        for name in ("spearman", "spearman_abs", "ssim"):
            means = (np.mean([found[layer][name] for found in steps]) for layer in steps[0])
            lines.append(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
        lines += ["", "| metric | trained | random | higher | tells them apart |", "|---|---|---|---|---|"]
        for name, found in values.items():
            trained, random = np.split(np.array(found), [1], axis=1)
            higher = int((trained > random).all(axis=1).sum())
            interval = wilson_interval(higher, len(cases))
            row = f"| {METRICS[name].title} ({METRICS[name].headline}) | {trained.mean():.3f} | {random.mean():.3f} "
            row += f"| {format_percent(higher / len(cases), interval)} "
            lines.append(row + f"| {'yes' if interval[0] > chance else 'no'} |")
    print("\n".join(lines))
    if options.markdown:
        write_text(options.markdown, "\n".join(lines).strip() + "\n")


def read_cases(run: Run, model: torch.nn.Module, n: int):
    """For each case, a function of a network and a method to the `Case` of its map; the score is of the trained one."""
    store, atlas, rows = open_store(run.store), load_atlas(), Findings(run).predictions
    regions, (parcels, _) = make_regions(store.grid, atlas), make_parcellation(store.grid, atlas)
    regions = {"brain": regions["brain"], "striatum": regions["striatum_left"] | regions["striatum_right"]}
    groups = [[row for row in rows if row["set"] == "train" and row["label"] == label] for label in (0, 1)]
    means = [np.mean([store.volume(row["participant_id"]) for row in group], axis=0) for group in groups]
    fill = torch.from_numpy(np.mean(means, axis=0)).float()

    right = [[row for row in rows if row["set"] == "test" and row["group"] == group] for group in ("TN", "TP")]
    for row in [row for pair in zip(*right) for row in pair][:n]:
        x = torch.from_numpy(np.array(store.volume(row["participant_id"]))).float()[None, None]
        sign = 1 if row["group"] == "TP" else -1
        memo: dict = {}

        def score(x: torch.Tensor, sign=sign) -> torch.Tensor:
            logits = model(x)
            return sign * (logits[:, REDUCED] - logits[:, NORMAL])

        def make(network, how, x=x, score=score, sign=sign, memo=memo) -> Case:
            explain = partial(explain_by, how=how, sign=sign)
            relevance = explain(network, x)[0]
            other = None  # no metric compared here needs another output
            return Case(
                network, x, relevance, score, explain, other, fill, parcels, regions, store.grid.spacing, memo=memo
            )

        yield make


def explain_by(model: torch.nn.Module, x: torch.Tensor, how: dict, sign: int) -> torch.Tensor:
    return sign * attribute(model, x, target="difference", ledger=False, **how).relevance[:, 0]


if __name__ == "__main__":
    main()
