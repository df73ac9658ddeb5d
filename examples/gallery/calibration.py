# %% [markdown]
# # What does 90 % mean?
#
# Softmax outputs are calibrated by temperature scaling on the validation cases, where these determine a
# temperature. The reliability diagram holds called probabilities against what came true.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["reliability"](run)
