"""Compare datxai's metrics with those of Quantus 0.6.0 on a small network in three dimensions.

    pip install quantus==0.6.0
    python -m benchmarks.quantus

Prints both numbers of every metric that both have; fails if numbers that should agree differ by more than
1e-4. Max-sensitivity uses the same noise in both, SSIM the same voxels. Region perturbation of Quantus only supports
two dimensions: its result on a volume is printed. Its cascade of randomised parameters draws new weights from
each layer's own initialisation, which is a different test than datxai's, and is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from datxai.explain import attribute  # repairs an import of torchvision that fails beside a CPU build of torch
from datxai.metrics import Case
from datxai.metrics.localisation import mass, point, rank
from datxai.metrics.randomisation import random_logit
from datxai.metrics.similarity import WINDOW, compare
from datxai.metrics.sparseness import gini
from datxai.metrics.stability import RADIUS, SAMPLES, max_sensitivity

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
    given = {"x_batch": x, "y_batch": np.array([0, 1]), "a_batch": maps, "s_batch": masks}
    quiet = {"disable_warnings": True, "display_progressbar": False, "normalise": False}

    def ask(metric: type, given: dict = given, explain_func: Callable | None = None, **settings) -> list[float]:
        inputs = {key: value.copy() for key, value in given.items()}
        return metric(**quiet, **settings)(model=model, channel_first=True, explain_func=explain_func, **inputs)

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
    case, ask_about = make_case(model, torch.from_numpy(x[:1]))
    one = {"x_batch": x[:1], "y_batch": np.array([0]), "a_batch": case.map[None, None]}
    generator = torch.Generator().manual_seed(case.seed)
    noise = iter(RADIUS * (2 * torch.rand(SAMPLES, 1, *SHAPE, generator=generator).flatten(1).numpy() - 1))
    rows["max-sensitivity"] = (
        ask(
            quantus.MaxSensitivity, one, ask_about, nr_samples=SAMPLES, abs=False,
            return_nan_when_prediction_changes=False, perturb_func=lambda arr, **_: arr + next(noise),
        ),
        [max_sensitivity(case)["max_sensitivity"]],
    )  # fmt: skip
    rows["random logit"] = (
        ask(quantus.RandomLogit, one, ask_about, num_classes=2, abs=False, similarity_func=correlation_spearman),
        [random_logit(case)["spearman"]],
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
    inside = np.zeros(SHAPE, bool)  # of the margin, half a window wide, which Quantus leaves out
    inside[(slice(WINDOW // 2, -(WINDOW // 2)),) * 3] = True
    alike = [np.where(inside, np.abs(data), 0) for data in (a, b)]
    scaled = [data / data.max() for data in alike]
    rows["SSIM"] = ([ssim(*scaled, win_size=WINDOW)], [compare(*alike, inside)["ssim"]])
    wrong = []
    for name, (theirs, ours) in rows.items():
        apart = float(np.abs(np.array(theirs, float) - np.array(ours)).max())
        wrong += [name] if apart > TOLERANCE else []
        print(
            f"{name:22} Quantus {np.round(np.array(theirs, float), 6)}  datxai {np.round(ours, 6)}  apart {apart:.1e}"
        )
    given["a_batch"] = maps
    try:
        curve = ask(quantus.RegionPerturbation, patch_size=4, regions_evaluation=3, abs=False)
        print(f"region perturbation    Quantus gives {np.round(np.array(curve)[0], 4)}")
    except Exception as error:  # any error is shown
        print(f"region perturbation    Quantus fails in 3-D: {type(error).__name__}: {str(error).splitlines()[0]}")
    if wrong:
        raise SystemExit(f"These should agree within {TOLERANCE:g} and do not: {', '.join(wrong)}.")


def make_case(model: nn.Module, x: torch.Tensor) -> tuple[Case, Callable]:
    """The map of output 0 by input x gradient, for both: a `Case`, and a function for Quantus."""

    def explain(model: nn.Module, x: torch.Tensor, target: int = 0) -> torch.Tensor:
        return attribute(model, x.float(), "input_x_gradient", target=target, ledger=False).relevance[:, 0]

    def ask_about(model, inputs, targets, **_) -> np.ndarray:
        return explain(model, torch.as_tensor(inputs), int(targets[0]))[:, None].numpy()

    everywhere = np.ones(SHAPE, bool)
    case = Case(
        model, x, explain(model, x)[0], lambda x: model(x)[:, 0], explain, partial(explain, target=1),
        torch.zeros(SHAPE), everywhere.astype(int), {"brain": everywhere, "striatum": everywhere}, (1, 1, 1),
    )  # fmt: skip
    return case, ask_about


if __name__ == "__main__":
    main()
