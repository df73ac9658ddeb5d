# %% [markdown]
# # Fig. 5: relevance in the putamen
#
# The hottest voxels of each map in the ipsilateral putamen, by classification of the case. To the right of the
# line, relevance is evidence for reduced uptake.

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
