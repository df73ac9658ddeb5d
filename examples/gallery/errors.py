# %% [markdown]
# # Can misclassified cases be detected?
#
# Scores that might detect misclassified cases: an inconsistent map, a narrow margin, a binding ratio near the
# cutoff. The area under the ROC curve measures how well. With fewer than five errors there is no interval.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["detection"](run)
