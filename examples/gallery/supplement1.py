# %% [markdown]
# # Supplementary Fig. 1: all slices
#
# Mean relevance maps and heat map, slice by slice. This run has a single slice of 12 mm; on the grids of the
# brain the figure is a page.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["fig3_all_slices"](run)
