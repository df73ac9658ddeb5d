# %% [markdown]
# # How the training went
#
# Training and validation loss and accuracy by epoch; the dashed line is the epoch whose weights were
# kept.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["training"](run)
