# %% [markdown]
# # Back into the archive: DICOM
#
# `dicom=True` writes a map as two DICOM objects: a Parametric Map for measurements, and a colour capture that
# every viewer shows. Both belong to the scan's own study.

# %%
from pathlib import Path

from datxai.reader import Reader

reader = Reader.open("runs/gallery", dicom=True)
scan = sorted(Path("runs/cohort/simulated").glob("*.dcm"))[3]
reading = reader.read(scan)
reader.write(reading, "my_dicom_case")
files = sorted(Path("my_dicom_case").rglob("*.dcm"))
print([path.name.split("_")[0] for path in files])

# %%
import pydicom

for path in files:
    dataset = pydicom.dcmread(path)
    print(dataset.Modality, "|", dataset.SeriesDescription, "|", dataset.NumberOfFrames, "frames")
assert dataset.StudyInstanceUID == pydicom.dcmread(scan).StudyInstanceUID

# %% [markdown]
# A frame of the colour capture, as an archive shows it (the patient's right on the left):

# %%
import matplotlib.pyplot as plt
import numpy as np

colour = next(pydicom.dcmread(path) for path in files if "colour" in path.name)
frames = colour.pixel_array
figure, axes = plt.subplots(figsize=(4, 4.4), layout="constrained")
axes.imshow(frames[np.ptp(frames, axis=-1).sum(axis=(1, 2)).argmax()])  # the frame with most colour
axes.axis("off")

# %% [markdown]
# To remove the patient's identity, use `deidentify=True`. What is copied and what is not: [DICOM](../../docs/dicom.md).
