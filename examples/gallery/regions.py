# %% [markdown]
# # Relevance by region
#
# Each atlas region's share of the absolute relevance over its share of the volume: above one means more than
# by chance.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["regions"](run)
