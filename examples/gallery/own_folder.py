# %% [markdown]
# # My own NIfTI folder
#
# A folder with NIfTI files and a table of participants is a cohort: `data=folder`. Here four phantoms, in camera
# space, replace your scans; they are registered, scaled, measured and mirrored.

# %%
from pathlib import Path

from datxai.phantom.population import draw_population
from datxai.phantom.scan import simulate_volume
from datxai.volume import save

folder = Path("my_scans")
folder.mkdir(exist_ok=True)
people = draw_population(4, seed=7)
for person in people:
    save(simulate_volume(person), folder / f"{person.participant_id}.nii.gz", mni=False)
rows = [f"{person.participant_id}\t{person.age:.0f}\t{person.sex}\t{person.label}" for person in people]
_ = (folder / "participants.tsv").write_text("participant_id\tage\tsex\tlabel\n" + "\n".join(rows) + "\n")

# %%
from datxai import Pipeline

run = Pipeline("runs/mine", "data=folder", "data.root=my_scans", grid="slab_12mm", n_jobs=1)
found = run.preprocess()

# %% [markdown]
# Look at the contact sheet of quality control first: is the striatum inside the outlines?

# %%
from IPython.display import Image

Image(found.run.sheet(1).with_suffix(".png"), width=700)

# %% [markdown]
# Specific binding ratios of the patient's own sides, and the verdict of quality control for each scan:

# %%
import pandas as pd

pd.read_table(found.run.sbr).iloc[:, :5].round(2)

# %%
pd.read_table(found.run.qc)[["participant_id", "verdict", "similarity"]].round(2)

# %% [markdown]
# Continue as with the phantom: `run.split()`, `run.train()`, ... or `run.make()` for all stages. For
# other columns, labels as words, or a PPMI download, see [Your own scans](../../docs/data.md).
