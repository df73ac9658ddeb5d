"""A Clever Hans effect, created and detected: a marker outside the head reveals the label, and the network uses it.

    python examples/clever_hans.py [--out DIR]

A small network classifies synthetic scans (the template with less uptake in the putamina of reduced cases, and noise),
once unchanged and once with a marker beside the head of some of the reduced scans, like a laterality marker
or a label burnt into the image at some hospitals. The classes overlap, so the marker helps: accuracy on scans of the
same hospital rises without showing why. The relevance maps do show it: they form clusters, and one of them has its
relevance outside the head.
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from datxai.analysis.spectral import find_strategies, shrink
from datxai.anatomy import Anatomy
from datxai.explain import attribute
from datxai.files import write_json
from datxai.metrics.localisation import mass, point
from datxai.model import network
from datxai.pages.figures import plot_strategies
from datxai.pages.slices import Frame
from datxai.pages.style import save_figure
from datxai.volume import Grid, resample

GRID = Grid.axis_aligned((23, 27, 16), (8, 8, 8), (-88, -124, -56), "8 mm")
MARKER = (slice(0, 3), slice(23, 26), slice(10, 13))  # voxels, beside the head
COMPOSITE = [  # zeros, as beside the head, get no relevance
    {"match": ["type:Convolution", "type:Linear"], "rule": "epsilon", "parameters": {"epsilon": 1e-4}},
    {"match": ["type:Activation"], "rule": "pass"},
]


@cache
def make_bases() -> dict[str, np.ndarray]:
    return {name: resample(base, GRID).data for name, base in Anatomy(GRID).bases.items()}


def make_scans(n: int, share_marked: float, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Scans [n, 1, X, Y, Z], their labels, and which have the marker: a fraction of the reduced ones, no normal one."""
    bases = make_bases()
    rest = bases["brain"] + 0.8 * bases["scalp"]
    labels = np.arange(n) % 2
    marked = (labels == 1) & (np.arange(n) // 2 < round(share_marked * (n // 2)))
    scans = np.empty((n, 1, *GRID.shape), np.float32)
    for scan, label, with_marker in zip(scans[:, 0], labels, marked):
        scan[:] = rest
        loss = rng.normal((0.0, 1.2)[label], 0.7)  # the classes overlap
        for name, base in bases.items():
            if name.startswith(("caudate", "putamen")):
                scan += (4.5 - loss * name.startswith("putamen") + rng.normal(0, 0.3)) * base
        scan += rng.normal(0, 0.15, GRID.shape) * (scan > 0.1)
        if with_marker:
            scan[MARKER] = 4.0
    return torch.from_numpy(scans), torch.from_numpy(labels), marked


def train(scans: torch.Tensor, labels: torch.Tensor, epochs: int) -> torch.nn.Module:
    model = network.build(GRID.shape, channels=(4, 4), hidden=(8,), dropout=0.0, seed=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(scans), generator=generator).split(8):
            optimiser.zero_grad()
            F.cross_entropy(model(scans[batch]), labels[batch]).backward()
            optimiser.step()
    return model.eval()


def examine(share_marked: float, n_train: int, n_test: int, epochs: int) -> tuple[dict, dict]:
    """Train on marked scans and cluster the maps of test scans; returns findings, and the data of the figure."""
    rng = np.random.default_rng(0)
    scans, labels, _ = make_scans(n_train, share_marked, rng)
    model = train(scans, labels, epochs)
    scans, labels, marked = make_scans(n_test, share_marked, rng)
    cleaned = scans.clone()
    cleaned[:, 0, *MARKER] = 0
    with torch.no_grad():
        margins, without = (torch.diff(model(x))[:, 0].numpy() for x in (scans, cleaned))
    predicted = margins > 0
    head = ndimage.binary_fill_holes(cleaned[:, 0].numpy().mean(axis=0) > 0.1)
    reduced = np.flatnonzero(predicted)
    explained = attribute(model, scans[reduced], composite=COMPOSITE, target="difference")
    maps = explained.relevance[:, 0].numpy()
    strategies = find_strategies(np.stack([shrink(data, GRID.spacing, 16.0) for data in maps]))
    outside = np.array([mass(data, ~head) for data in maps])
    anatomy = Anatomy(GRID)
    striatum = anatomy.striatum
    groups = [
        {
            "n": int((strategies.clusters == k).sum()),
            "marked": float(marked[reduced][strategies.clusters == k].mean()),
            "outside_head": float(outside[strategies.clusters == k].mean()),
        }
        for k in range(strategies.n)
    ]
    findings = {
        "accuracy": float((predicted == labels.numpy().astype(bool)).mean()),
        "accuracy_without_marker": float(((without > 0) == labels.numpy().astype(bool)).mean()),
        "outside_head": float(outside.mean()),
        "points_at_striatum": float(np.mean([point(data, striatum, GRID.spacing) for data in maps])),
        "groups": groups,
        "p": strategies.p,
    }
    frame = Frame(GRID, striatum, anatomy.brain)
    names = [f"scan {number}{' (marked)' if marked[number] else ''}" for number in reduced]
    return findings, {"frame": frame, "strategies": strategies, "maps": maps, "names": names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("clever_hans"))
    parser.add_argument("--train", type=int, default=160, help="scans")
    parser.add_argument("--test", type=int, default=200, help="scans")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    report = {}
    for name, share in (("clean", 0.0), ("marked", 0.5)):
        findings, drawn = examine(share, options.train, options.test, options.epochs)
        report[name] = findings
        save_figure(plot_strategies(**drawn), options.out / name)
        print(f"{name} cohort: accuracy {findings['accuracy']:.0%}, "
              f"with the marker taken away {findings['accuracy_without_marker']:.0%}")  # fmt: skip
        print(f"  relevance outside the head {findings['outside_head']:.0%}, "
              f"maps that point at the striatum {findings['points_at_striatum']:.0%}")  # fmt: skip
        for number, group in enumerate(findings["groups"], start=1):
            print(f"  group {number}: {group['n']} maps, {group['marked']:.0%} of them marked, "
                  f"{group['outside_head']:.0%} of the relevance outside the head")  # fmt: skip
    write_json(options.out / "clever_hans.json", report)
    print(f"Figures: {options.out}")


if __name__ == "__main__":
    main()
