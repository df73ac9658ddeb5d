# %% [markdown]
# # Supplementary Fig. 1: all slices
#
# Mean relevance maps and heat map, slice by slice. This run has a single slice of 12 mm; on a grid of the
# whole brain the figure fills a page.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["fig3_all_slices"](run)
