# %% [markdown]
# # Repeats: does the map depend on the seed?
#
# The same cases with different initial weights. On the command line, a sweep makes one run per seed (`datxai -m run=RUN
# training.seed=1,2`); in Python, use a loop.

# %%
from datxai import Pipeline
from datxai.findings import Findings
from datxai.run import Run

settings = {"max_epochs": 25, "learning_rate": 1e-3}
runs = {0: Findings(Run("runs/gallery"))}
for seed in (1, 2):
    run = Pipeline(f"runs/seeds/{seed}", base="runs/gallery", training={**settings, "seed": seed})
    run.train()
    run.explain()
    runs[seed] = run.evaluate()

# %%
import matplotlib.pyplot as plt
import numpy as np

from datxai.pages.slices import Shade, draw_slice

frame, case = runs[0].anatomy.frame, max(runs[0].tested, key=lambda case: case["p_reduced"])["participant_id"]
maps = {seed: found.map_of(case).data for seed, found in runs.items()}
figure, axes = plt.subplots(1, 3, figsize=(7, 2.8), layout="constrained")
for place, (seed, relevance) in zip(axes, maps.items()):
    data = relevance[:, :, frame.level]
    draw_slice(place, frame, data, Shade.of_relevance([data]))
    place.set_title(f"training.seed={seed}")

# %% [markdown]
# Voxel-wise agreement of the maps of one case:

# %%
brain = frame.brain
np.corrcoef([relevance[brain] for relevance in maps.values()]).round(2)

# %% [markdown]
# `datxai compare RUN` compares accuracies and maps, and adds an ensemble
# ([sweeps](../../docs/sweeps.md)).
