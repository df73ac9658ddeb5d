# %% [markdown]
# # Which layer ate the relevance?
#
# LRP passes relevance from layer to layer. Biases and stabilisers absorb some of it; the ledger says
# where. Means over the test cases, as fractions of the seed:

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
# With `composite.bias=false` biases absorb nothing. For the definition of the columns, see the
# [ledger](../../docs/zennit.md#the-ledger-where-relevance-went).
