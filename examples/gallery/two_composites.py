# %% [markdown]
# # Two composites on one patient
#
# A run can have several explanations. This one uses only the epsilon rule; the default uses the
# paper's combination of rules.

# %%
from datxai import Pipeline
from datxai.findings import Findings
from datxai.run import Run

Pipeline("runs/gallery", composite="epsilon", explanation="epsilon").explain()
runs = {name: Findings(Run("runs/gallery", name)) for name in ("default", "epsilon")}
case = max(runs["default"].tested, key=lambda case: case["p_reduced"])["participant_id"]
maps = {name: run.map_of(case).data for name, run in runs.items()}

# %%
import matplotlib.pyplot as plt

from datxai.pages.slices import Shade, add_bar, draw_slice

frame = runs["default"].anatomy.frame
figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
for place, (name, relevance) in zip(axes, maps.items()):
    data = relevance[:, :, frame.level]
    shade = Shade.of_relevance([data])
    draw_slice(place, frame, data, shade)
    place.set_title(name)
    add_bar(figure, [place], shade)

# %% [markdown]
# Each map has its own scale, because relevance of two composites is not in the same units. How similar are they?

# %%
from datxai.metrics.similarity import compare

compare(maps["default"], maps["epsilon"], frame.brain)

# %% [markdown]
# In a shell, `datxai compare RUN explanations=[default,epsilon]` does this for all cases.
