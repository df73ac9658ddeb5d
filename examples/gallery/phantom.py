# %% [markdown]
# # The phantom and its camera
#
# The cohort is simulated from a head with regional uptake and a rotating gamma camera. It contains no patient
# data.

# %%
import matplotlib.pyplot as plt

from datxai.phantom.population import draw_population
from datxai.phantom.scan import simulate_projections, simulate_volume

people = draw_population(6)
normal, reduced = (next(person for person in people if person.label == label) for label in (0, 1))
figure, axes = plt.subplots(2, 2, figsize=(6, 5.6), layout="constrained")
for row, person in zip(axes, (normal, reduced)):
    counts, camera = simulate_projections(person, views=8)
    volume = simulate_volume(person).data
    level = int(volume[22:42, 26:46].max(axis=(0, 1)).argmax())  # of the striatum: salivary glands may be hotter
    row[0].imshow(counts[0], cmap="inferno")
    row[1].imshow(volume[:, :, level].T, origin="lower", cmap="inferno")
    row[0].set_ylabel(f"{('normal', 'reduced')[person.label]}, {person.age:.0f} years")
    for place, title in zip(row, (f"one of {camera.views} views", "reconstructed, axial")):
        place.set(title=title, xticks=[], yticks=[])

# %% [markdown]
# Binding ratios of the striatum from the true uptake, before the camera blurs it:

# %%
import pandas as pd

pd.DataFrame([{"label": one.label, "age": one.age, "pattern": one.pattern, **one.uptake} for one in people]).iloc[
    :, :8
].round(2)

# %% [markdown]
# For details and a comparison with real scans, see [the phantom](../../docs/phantom.md).
