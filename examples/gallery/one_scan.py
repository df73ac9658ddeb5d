# %% [markdown]
# # One new scan
#
# Read a new scan with a finished run: a NIfTI file, a DICOM file or a folder. This example uses a
# phantom's raw projections (DICOM NM TOMO), which are reconstructed.

# %%
from pathlib import Path

from datxai.reader import Reader

reader = Reader.open("runs/gallery")
scan = sorted(Path("runs/cohort/simulated").glob("*.dcm"))[3]
reading = reader.read(scan, age=67)
result = reading.result
print(f"called {('normal', 'reduced')[result['predicted']]}, softmax {result['p_reduced']:.2f}")
print("\n".join(result["warnings"]) or "no warnings")

# %% [markdown]
# Map and uptake in MNI space, with the patient's own left and right:

# %%
from datxai.pages.figures import plot_case

relevance = reading.relevance.data
peak = [int(place[0]) for place in (abs(relevance) == abs(relevance).max()).nonzero()]
plot_case(reader.anatomy.frame, reading.spect.data, relevance, peak, sides=("L", "R"))

# %% [markdown]
# `reader.write` writes the page, the PDF, the numbers and the maps, like `datxai case scan=... run=...`.

# %%
folder = reader.write(reading, "my_case")
print(sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# For the meaning of each number, see [one new scan](../../docs/case.md).
