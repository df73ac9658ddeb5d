# %% [markdown]
# # Other methods on the same patient
#
# LRP and methods without rules, for one decision: reduced minus normal. Each map is scaled to its own
# maximum.

# %%
from pathlib import Path

import torch

from datxai.explain import attribute
from datxai.findings import Findings
from datxai.model import checkpoint
from datxai.run import Run

run = Findings(Run("runs/gallery"))
model, _ = checkpoint.load(Path("runs/gallery/model"), "cpu", None)
case = max(run.tested, key=lambda case: case["p_reduced"])["participant_id"]
x = torch.from_numpy(run.store.volume(case).copy())[None, None]
chosen = {
    "gradient": {},
    "input_x_gradient": {},
    "smoothgrad": {"n_samples": 8},
    "integrated_gradients": {"n_steps": 16, "baseline": 1.0},
    "occlusion": {"block": 12, "baseline": 1.0},
}
maps = {"lrp": run.map_of(case).data}
for name, options in chosen.items():
    maps[name] = attribute(model, x, name, target="difference", options=options).relevance[0, 0].numpy()

# %%
import matplotlib.pyplot as plt

from datxai.pages.slices import Shade, draw_slice

frame = run.anatomy.frame
figure, axes = plt.subplots(2, 3, figsize=(7, 5.4), layout="constrained")
for place, (name, relevance) in zip(axes.flat, maps.items()):
    data = relevance[:, :, frame.level]
    draw_slice(place, frame, data, Shade.of_relevance([data]))
    place.set_title(name.replace("_", " "))

# %% [markdown]
# LRP is red and the others are blue in the same place, and both are right: the network subtracts the mean scan first.
# LRP says that this patient's missing uptake is evidence for "reduced"; gradients, that more uptake would be evidence
# against it.
#
# All methods and their options: [methods](../../docs/methods.md). To compare them with metrics: `datxai benchmark`.
