# %% [markdown]
# # Reading a run in pandas
#
# A run folder contains plain files: tab-separated tables, JSON, NIfTI. You can read them without datxai. The
# columns are described in [the run folder](../../docs/run_folder.md).

# %%
from pathlib import Path

import pandas as pd

run = Path("runs/gallery")
cases = pd.read_table(run / "predictions.tsv", index_col="participant_id")
people = pd.read_table(run / "participants.tsv", index_col="participant_id")
sbr = pd.read_table(run / "sbr.tsv", index_col="participant_id")
table = cases.join(people[["age", "sex"]]).join(sbr[["putamen_left", "putamen_right"]])
table.groupby(["set", "label"])[["age", "p_reduced", "putamen_left", "putamen_right"]].mean().round(2)

# %%
import matplotlib.pyplot as plt

table["lower putamen"] = table[["putamen_left", "putamen_right"]].min(axis=1)
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for label, colour in ((0, "#56b4e9"), (1, "#e69f00")):
    own = table[table.label == label]
    axes.plot(own["lower putamen"], own.p_reduced, "o", color=colour, label=("normal", "reduced")[label])
axes.set(xlabel="specific binding ratio of the lower putamen", ylabel="softmax output of reduced")
axes.legend(frameon=False)
