# %% [markdown]
# # Another cohort: does it hold elsewhere?
#
# A finished run meets scans that it has not seen: other people here, another clinic in life. Nothing is learnt from
# them; all that is judged by is the run's own.

# %%
import subprocess
import sys

words = ["run=runs/gallery", "to=runs/elsewhere", "data=phantom", "data.n_subjects=12", "data.seed=7", "n_jobs=1"]
subprocess.run([sys.executable, "-m", "datxai", "apply", *words, "subgroups=[sex]"], check=True, capture_output=True)

# %% [markdown]
# Internal and external test side by side, each with its 95 % interval; `external.html` has all of it as a page.

# %%
import pandas as pd

table = pd.read_csv("runs/elsewhere/external.tsv", sep="\t")
cnn = table[(table.group == "all") & (table.classifier == "cnn")].set_index("measure")
cnn[["internal", "internal_n", "external", "external_n", "difference_low", "difference_high", "p"]].round(3)

# %%
from IPython.display import Image

Image("runs/elsewhere/external/tests.png", width=700)

# %% [markdown]
# With so few cases every interval is wide. A clinic's archive, with or without labels:
# [a finished run meets another cohort](../../docs/apply.md).
