# %% [markdown]
# # Relevance by region
#
# The share of each region of the atlas in the absolute relevance, over its share of the volume: above one,
# there is more than chance would put there.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["regions"](run)
