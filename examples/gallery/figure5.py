# %% [markdown]
# # Fig. 5: relevance in the putamen
#
# The hottest voxels of each map in the ipsilateral putamen, by how the case was classified. Right of the line
# the relevance speaks for reduced uptake.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["fig5"](run)

# %%
import pandas as pd

cases = pd.DataFrame(run.tested)
cases[["participant_id", "group", "p_reduced", "putamen_ipsilateral", "consistent"]].round(4)
