# %% [markdown]
# # Which layer ate the relevance?
#
# LRP hands relevance on from layer to layer. Biases and stabilisers absorb some on the way; the ledger says
# where. Means over the test cases, as shares of what the explanation started with.

# %%
import pandas as pd

from datxai.findings import Findings
from datxai.run import Run

run = Findings(Run("runs/gallery"))
ledger = pd.DataFrame(run.average_ledger([case["participant_id"] for case in run.tested]))
ledger.round(3)

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
names = [f"{row.layer} {row.type}" for row in ledger.itertuples()]
axes.barh(names, ledger.absorbed, color="#0072b2")
axes.axvline(0, color="black", linewidth=0.8)
axes.invert_yaxis()
axes.set(xlabel="absorbed, share of what the explanation started with")

# %% [markdown]
# `composite.bias=false` gives biases nothing. What a share means is said under [ledger](../../docs/zennit.md).
