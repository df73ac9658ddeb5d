# %% [markdown]
# # Another cohort: does it hold elsewhere?
#
# External test of a finished run on scans that it has not seen: other simulated people here, another clinic in
# practice. Nothing is fitted to them; all references are the run's own.

# %%
import subprocess
import sys

words = ["run=runs/gallery", "to=runs/elsewhere", "data=phantom", "data.n_subjects=12", "data.seed=7", "n_jobs=1"]
subprocess.run([sys.executable, "-m", "datxai", "apply", *words, "subgroups=[sex]"], check=True, capture_output=True)

# %% [markdown]
# Internal and external test side by side, each with its 95 % interval; `external.html` shows all of it.

# %%
import pandas as pd

table = pd.read_csv("runs/elsewhere/external.tsv", sep="\t")
cnn = table[(table.group == "all") & (table.classifier == "cnn")].set_index("measure")
cnn[["internal", "internal_n", "external", "external_n", "difference_low", "difference_high", "p"]].round(3)

# %%
from IPython.display import Image

Image("runs/elsewhere/external/tests.png", width=700)

# %% [markdown]
# With so few cases every interval is wide. For a clinic's archive, with or without labels, see
# [external test](../../docs/apply.md).
