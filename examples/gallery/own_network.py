# %% [markdown]
# # My own network
#
# Any `nn.Module` can replace the paper's CNN: `network=custom network.target=package.module:Class`.
# It takes volumes [n, 1, X, Y, Z] and returns two logits, normal and reduced.

# %%
from pathlib import Path

CODE = """
from torch import nn


class Small(nn.Sequential):
    def __init__(self, width=8):
        super().__init__(
            nn.AvgPool3d((2, 2, 1)), nn.Conv3d(1, width, (5, 5, 1)), nn.ReLU(), nn.AvgPool3d((3, 3, 1)),
            nn.Conv3d(width, width, (3, 3, 1)), nn.ReLU(), nn.AdaptiveAvgPool3d((5, 6, 1)), nn.Flatten(),
            nn.Linear(5 * 6 * width, 2),
        )
"""
_ = Path("my_models.py").write_text(CODE)

# %% [markdown]
# This reuses cohort and split of an existing run. `composite="auto"` chooses LRP rules by layer type.
# The class is code, so every call must name it: a run folder cannot.

# %%
from datxai import Pipeline

run = Pipeline(
    "runs/small",
    "network=custom",
    "network.target=my_models:Small",
    base="runs/cohort",
    composite="auto",
    training={"max_epochs": 20, "learning_rate": 1e-2},
)
run.train()
run.explain()
found = run.evaluate()
print(f"{sum(case['label'] == case['predicted'] for case in found.tested)} of {len(found.tested)} test cases right")

# %%
from datxai.run_figures import FIGURES

FIGURES["fig3"](found)

# %% [markdown]
# For MONAI networks, pretrained weights and frozen layers, see [networks](../../docs/networks.md).
