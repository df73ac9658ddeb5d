# %% [markdown]
# # What does 90 % mean?
#
# Softmax outputs are calibrated by temperature scaling on the validation cases, if these determine a
# temperature. The reliability diagram compares predicted probabilities with observed frequencies.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["reliability"](run)
