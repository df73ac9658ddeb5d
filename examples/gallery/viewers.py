# %% [markdown]
# # The map in 3D Slicer and ITK-SNAP
#
# Both open the NIfTI files of a run directly. This page checks the header fields they use, and writes a label image
# with a table of its regions.

# %%
from pathlib import Path

import nibabel as nib

run = Path("runs/gallery")
path = sorted((run / "relevance").glob("*.nii.gz"))[0]
header = nib.load(path).header
print("units", header.get_xyzt_units(), "| sform code", int(header["sform_code"]), "(4: MNI152)")
print("axes", nib.aff2axcodes(nib.load(path).affine), "| voxels", [float(size) for size in header.get_zooms()], "mm")

# %% [markdown]
# Regions as a label image, with a table for ITK-SNAP (`Segmentation > Import label descriptions`):

# %%
import numpy as np
from matplotlib import colormaps

from datxai.findings import Findings
from datxai.run import Run
from datxai.volume import Volume, save

anatomy = Findings(Run(run)).anatomy
labels, names = anatomy.parcellation
save(Volume(labels.astype(np.float32), anatomy.grid.affine, ()), "regions.nii.gz")
lines = [
    '{:5d} {:4d} {:4d} {:4d} 1 1 1 "{}"'.format(
        number, *(int(255 * part) for part in colormaps["tab20"](number % 20)[:3]), name
    )
    for number, name in names.items()
]
Path("regions.label").write_text("\n".join(lines) + "\n")
print("\n".join(lines[:3]))

# %% [markdown]
# **3D Slicer**: `Slicer --python-code "slicer.util.loadVolume('SPECT.nii.gz');
# slicer.util.loadVolume('RELEVANCE.nii.gz')"`, then select the map as foreground in the slice views, colour table
# *ColdToHotRainbow* or *RedBlue*, and a window that is symmetric about zero.
#
# **ITK-SNAP**: `itksnap -g SPECT.nii.gz -o RELEVANCE.nii.gz -s regions.nii.gz -l regions.label`, then a diverging
# colour map for the overlay, its range symmetric about zero.
#
# The uptake in the same space is in `preprocessed/`. The viewers will show something like this:

# %%
import matplotlib.pyplot as plt

relevance = nib.load(path).get_fdata()[:, :, 0]
spect = nib.load(run / "preprocessed" / path.name.replace("_relevance", "_space-MNI_spect")).get_fdata()
limit = abs(relevance).max()
figure, axes = plt.subplots(1, 2, figsize=(6, 3.4), layout="constrained")
axes[0].imshow(spect[:, :, spect.shape[2] // 2].T, origin="lower", cmap="gray")
axes[1].imshow(relevance.T, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
axes[1].contour(labels[:, :, 0].T, levels=[0.5], colors="black", linewidths=0.5)
for place, title in zip(axes, ("uptake", "relevance and regions")):
    place.set_title(title)
    place.axis("off")
