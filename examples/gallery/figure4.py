# %% [markdown]
# # Fig. 4: the misclassified cases
#
# Every misclassified test case, with the means of the true negatives and true positives. A map is called
# inconsistent if it resembles the mean map of the other class more than that of the predicted class.

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["fig4"](run)
