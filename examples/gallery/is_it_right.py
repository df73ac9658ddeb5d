# %% [markdown]
# # Is this map right?
#
# No single number says so. This page asks three questions of one map: does the decision change when what is
# relevant is replaced; does the relevance lie where the disease is; does the map change when the network
# forgets?

# %%
from pathlib import Path

import numpy as np
import torch

from datxai.explain import attribute
from datxai.findings import Findings
from datxai.metrics import METRICS, Case
from datxai.model import checkpoint
from datxai.run import Run

run = Findings(Run("runs/gallery"))
model, _ = checkpoint.load(Path("runs/gallery/model"), "cpu", None)
name = max(run.tested, key=lambda case: case["p_reduced"])["participant_id"]
x = torch.from_numpy(run.store.volume(name).copy())[None, None]
mean = np.mean([run.store.volume(case["participant_id"]) for case in run.of_set("train")], axis=0)


def explain(model, x, target="difference"):
    return attribute(model, x, "input_x_gradient", target=target).relevance[:, 0]


case = Case(
    model=model.eval(), x=x, relevance=explain(model, x)[0],
    score=lambda x: model(x)[:, 1] - model(x)[:, 0],
    explain=explain, explain_other=lambda model, x: explain(model, x, target=0),
    fill=torch.from_numpy(mean), parcels=run.anatomy.parcels,
    regions={"brain": run.anatomy.brain, "striatum": run.anatomy.striatum}, spacing=run.store.grid.spacing,
)

# %% [markdown]
# **Flipping.** Patches are replaced by the mean training scan, the most relevant first, the least relevant first, and
# in random order. A map that ranks rightly makes the first curve fall fastest.

# %%
import matplotlib.pyplot as plt

from datxai.metrics.flipping import cut_patches, flip

curves = flip(case, cut_patches(case.parcels.shape, case.spacing))
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for label, curve in {"most relevant first": curves.most, "random": curves.random.mean(0), "least": curves.least}.items():
    axes.plot(curves.fractions, curve, label=label)
axes.set(xlabel="share of the volume replaced", ylabel="logit of reduced − normal")
axes.legend(frameon=False)
figure

# %% [markdown]
# **All measures** ([what they mean](../../docs/metrics.md)): mass and rank in the striatum, and what is left of the map
# when layer after layer forgets (`parameter_randomisation`).

# %%
import pandas as pd

rows = {metric.title: metric(case)[metric.headline] for metric in METRICS.values()}
pd.DataFrame({"value": rows, "higher is better": {m.title: m.higher_is_better for m in METRICS.values()}}).round(3)

# %% [markdown]
# Only a known cause tells for certain: `datxai benchmark` puts lesions into healthy phantoms and asks which method shows
# them.
