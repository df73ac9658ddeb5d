"""datxai's metrics beside those of Quantus 0.6.0 on a small network in three dimensions.

    pip install quantus==0.6.0
    python -m benchmarks.quantus

Prints both numbers of every metric that both have; ends with an error if one that should agree differs by more than
1e-4. Region perturbation of Quantus knows two dimensions only: what it does with a volume is printed.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn

import datxai.explain  # repairs an import of torchvision that fails beside a CPU build of torch
from datxai.metrics.localisation import mass, point, rank
from datxai.metrics.similarity import compare
from datxai.metrics.sparseness import gini

assert datxai.explain
warnings.simplefilter("ignore")
import quantus  # noqa: E402
from quantus.functions.similarity_func import correlation_spearman, ssim  # noqa: E402

TOLERANCE = 1e-4
SHAPE = (12, 11, 10)


def main() -> None:
    torch.manual_seed(0)
    layers = nn.Conv3d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 10 * 9 * 8, 2)
    model, rng = nn.Sequential(*layers).eval(), np.random.default_rng(0)
    x = rng.normal(size=(2, 1, *SHAPE)).astype(np.float32)
    maps = rng.normal(size=(2, 1, *SHAPE))
    masks = np.zeros((2, 1, *SHAPE), bool)
    masks[:, :, 3:7, 2:6, 4:8] = True
    given = {"model": model, "x_batch": x, "y_batch": np.array([0, 1]), "a_batch": maps, "s_batch": masks}
    quiet = {"disable_warnings": True, "display_progressbar": False, "normalise": False}

    def ask(metric: type, **settings) -> list[float]:
        inputs = {key: None if value is None else value.copy() for key, value in given.items() if key != "model"}
        return metric(**quiet, **settings)(model=model, channel_first=True, **inputs)

    positive = np.maximum(maps, 0)
    rows = {
        "relevance rank": (
            ask(quantus.RelevanceRankAccuracy, abs=False),
            [rank(data[0], mask[0]) for data, mask in zip(maps, masks)],
        ),
        "pointing game": (
            ask(quantus.PointingGame, abs=False),
            [point(data[0], mask[0], (1, 1, 1), 0.0) for data, mask in zip(maps, masks)],
        ),
        "Gini sparseness": (ask(quantus.Sparseness, abs=True), [gini(data) for data in maps]),
    }
    given["a_batch"] = positive
    rows["relevance mass"] = (
        ask(quantus.RelevanceMassAccuracy, abs=False),
        [mass(data[0], mask[0]) for data, mask in zip(maps, masks)],
    )
    whole = np.ones(SHAPE, bool)
    a, b = (data[0] for data in maps)
    found = compare(a, b, whole)
    absolute = [np.abs(data) / np.abs(data).max() for data in (a, b)]
    rows["Spearman"] = ([correlation_spearman(a.ravel(), b.ravel())], [found["spearman"]])
    rows["Spearman, absolute"] = (
        [correlation_spearman(*(data.ravel() for data in absolute))],
        [found["spearman_abs"]],
    )
    wrong = []
    for name, (theirs, ours) in rows.items():
        apart = float(np.abs(np.array(theirs, float) - np.array(ours)).max())
        wrong += [name] if apart > TOLERANCE else []
        print(
            f"{name:22} Quantus {np.round(np.array(theirs, float), 6)}  datxai {np.round(ours, 6)}  apart {apart:.1e}"
        )
    print(f"{'SSIM of whole maps':22} Quantus {ssim(*absolute):.6f} (of all but the rim), datxai {found['ssim']:.6f}")
    given["a_batch"] = maps
    try:
        curve = ask(quantus.RegionPerturbation, patch_size=4, regions_evaluation=3, abs=False)
        print(f"region perturbation    Quantus gives {np.round(np.array(curve)[0], 4)}")
    except Exception as error:  # whatever it fails with is what is to be shown
        print(f"region perturbation    Quantus fails in 3-D: {type(error).__name__}: {str(error).splitlines()[0]}")
    if wrong:
        raise SystemExit(f"These should agree within {TOLERANCE:g} and do not: {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
