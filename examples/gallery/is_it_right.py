# %% [markdown]
# # Is this map right?
#
# No single number shows it. This page tests one map in three ways: does the decision change when the relevant
# voxels are replaced; is the relevance where the disease is; does the map change when the network's weights are
# randomised?

# %%
import numpy as np
import torch

from datxai.explain import attribute
from datxai.findings import Findings
from datxai.metrics import METRICS, Case
from datxai.reader import Reader
from datxai.run import Run

run, explainer = Findings(Run("runs/gallery")), Reader.open("runs/gallery").explainer
model = explainer.model.eval()
name = max(run.tested, key=lambda case: case["p_reduced"])["participant_id"]
x = torch.from_numpy(run.store.volume(name).copy())[None, None]
mean = np.mean([run.store.volume(case["participant_id"]) for case in run.of_set("train")], axis=0)


def explain(model, x, target="difference"):
    """By the run's own method, LRP with the paper's composite."""
    return explainer.attribute(x, target, model=model).relevance[:, 0]


case = Case(
    model=model,
    x=x,
    relevance=explain(model, x)[0],
    score=lambda x: model(x)[:, 1] - model(x)[:, 0],
    explain=explain,
    explain_other=lambda model, x: explain(model, x, target=0),
    fill=torch.from_numpy(mean),
    parcels=run.anatomy.parcels,
    regions={"brain": run.anatomy.brain, "striatum": run.anatomy.striatum},
    spacing=run.store.grid.spacing,
)

# %% [markdown]
# **Flipping.** Patches are replaced by the mean training scan, the most relevant first, the least relevant first,
# and in random order. With a correct ranking the first curve falls fastest. It does not for input times gradient:
# the network subtracts the mean scan first, so missing uptake is evidence for disease; but the
# input itself is positive there and the gradient negative, so their product has the wrong sign.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt

from datxai.metrics.flipping import cut_patches, flip

other = replace(case, relevance=attribute(model, x, "input_x_gradient", target="difference").relevance[0, 0])
patches = cut_patches(case.parcels.shape, case.spacing)
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for place, (name, judged) in zip(axes, {"LRP": case, "input × gradient": other}.items()):
    curves = flip(judged, patches)
    for label, curve in {"most": curves.most, "random": curves.random.mean(0), "least": curves.least}.items():
        place.plot(curves.fractions, curve, label=f"{label} relevant first" if label != "random" else "random order")
    place.set(title=name, xlabel="share of the volume replaced")
axes[0].set_ylabel("logit of reduced − normal")
axes[1].legend(frameon=False)

# %% [markdown]
# **All measures** ([what they mean](../../docs/metrics.md)): mass and rank in the striatum, and how much of
# the map remains when layer after layer is randomised (`parameter_randomisation`).

# %%
import pandas as pd

rows = {metric.title: metric(case)[metric.headline] for metric in METRICS.values()}
pd.DataFrame({"value": rows, "higher is better": {m.title: m.higher_is_better for m in METRICS.values()}}).round(3)

# %% [markdown]
# Only a known cause gives certainty: `datxai benchmark` simulates lesions in healthy phantoms and tests which
# methods show them.
