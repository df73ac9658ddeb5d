# %% [markdown]
# # Table 1: who was scanned
#
# Ages by set, label and sex, as in Table 1 of the paper. The phantom draws age and sex as published there;
# with your own scans they come from your table of participants.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["table1"](run)

# %%
import pandas as pd

pd.DataFrame(run.table1).round(1)
