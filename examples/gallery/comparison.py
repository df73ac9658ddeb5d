# %% [markdown]
# # Conventional classifiers
#
# A cutoff on the putaminal binding ratio, chosen on the training cases:

# %%
from datxai.findings import Findings
from datxai.run import Run
from datxai.run_figures import FIGURES

run = Findings(Run("runs/gallery"))
FIGURES["sbr"](run)

# %% [markdown]
# A classification tree (CART) on the binding ratios of both sides:

# %%
FIGURES["cart"](run)
