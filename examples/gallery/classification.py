# %% [markdown]
# # How well is it classified?
#
# Accuracy, sensitivity and the other measures of the network and of conventional classifiers, with 95 %
# intervals (Wilson). Six test cases are too few, and the figure says so.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["classification"](run)
