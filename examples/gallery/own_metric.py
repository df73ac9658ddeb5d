# %% [markdown]
# # A metric of my own
#
# A metric is a function from a `Case` (a map, the network, regions) to named numbers. This one measures
# how much of the relevance is on the side of the lower putamen.

# %%
from datxai.findings import Findings
from datxai.run import Run

run = Findings(Run("runs/gallery"))
frame = run.anatomy.frame
putamina = run.anatomy.regions["putamen_left"], run.anatomy.regions["putamen_right"]


def laterality(relevance):
    """(ipsilateral - contralateral) / (both), of the absolute relevance in the putamina; -1 to 1."""
    ipsilateral, contralateral = (abs(relevance[mask]).sum() for mask in putamina)
    return float((ipsilateral - contralateral) / (ipsilateral + contralateral))


# %% [markdown]
# Over the test cases, by group; a synthetic map checks the function.

# %%
import numpy as np
import pandas as pd

assert laterality(np.where(putamina[0], -2.0, 0.0)) == 1
values = pd.DataFrame(run.tested)[["participant_id", "group"]]
values["laterality"] = [laterality(run.map_of(name).data) for name in values.participant_id]
values.round(2)

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(4, 2.5), layout="constrained")
groups = sorted(values.group.unique())
for place, group in enumerate(groups):
    own = values.laterality[values.group == group]
    axes.plot([place] * len(own), own, "o", color="#0072b2")
axes.axhline(0, color="grey", linewidth=0.8)
axes.set(
    xticks=range(len(groups)), xticklabels=groups, ylabel="laterality", ylim=(-1, 1), xlim=(-0.5, len(groups) - 0.5)
)

# %% [markdown]
# To use it in `datxai benchmark`, add it to `datxai.metrics.METRICS`: [contributing](../../CONTRIBUTING.md).
