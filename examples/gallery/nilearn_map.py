# %% [markdown]
# # The map in nilearn
#
# Maps are NIfTI files in MNI space, so nilearn plots them directly. The run of this gallery has one slice
# of 12 mm; with a grid of the brain (`grid=mni_3mm`) omit `display_mode`.

# %%
from pathlib import Path

import nibabel as nib
import pandas as pd
from nilearn import plotting
from nilearn.datasets import load_mni152_template

run = Path("runs/gallery")
cases = pd.read_table(run / "predictions.tsv")
name = cases[cases["set"] == "test"].sort_values("p_reduced").participant_id.iloc[-1]
relevance = nib.load(run / "relevance" / f"{name}_relevance.nii.gz")
print(relevance.shape, "voxels of", [float(length) for length in relevance.header.get_zooms()], "mm")

# %%
limit = abs(relevance.get_fdata()).max()
plotting.plot_stat_map(
    relevance,
    load_mni152_template(resolution=2),
    display_mode="z",
    cut_coords=[3],
    cmap="RdBu_r",
    title=name,
    threshold=limit / 5,
    vmax=limit,
)

# %% [markdown]
# The map is mirrored: left is the side of the lower putamen, whichever side it is in the patient. `datxai case`
# reverts this.
