# %% [markdown]
# # Fig. 3: mean image and mean relevance
#
# Mean image and mean relevance map of the correctly classified test cases, the template, and the
# heat map: true positives minus true negatives. I is the ipsilateral side, that of the lower putamen; the
# figure shows it on the left.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["fig3"](run)

# %% [markdown]
# The peak of the heat map, and how close the two mean maps are to being each other's negative:

# %%
peak = run.metrics["heat_map_peak"]
print({axis: round(peak[axis]) for axis in "xyz"}, "mm,", "inside" if peak["inside"] else "outside", "the striatum")
print(f"correlation of the mean maps: {run.metrics['mean_map_correlation']:.2f}")
