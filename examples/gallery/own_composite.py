# %% [markdown]
# # My own composite
#
# A composite is a file that assigns LRP rules to layers. The first line that matches a layer wins. `datxai
# explain --dry-run` shows the assignment before anything is computed; the same in Python:

# %%
from pathlib import Path

MINE = """
name: mine
layers:
  - {match: ["type:Convolution[0]"], rule: flat}
  - {match: ["type:Convolution"], rule: gamma, parameters: {gamma: 0.25}}
  - {match: ["type:Linear"], rule: epsilon, parameters: {epsilon: 1.0e-4}}
  - {match: ["type:Activation"], rule: pass}
"""
Path("my_conf/composite").mkdir(parents=True, exist_ok=True)
_ = Path("my_conf/composite/mine.yaml").write_text(MINE)

# %%
import pandas as pd
import yaml

from datxai.explain import describe_composite
from datxai.model import checkpoint

model, _ = checkpoint.load(Path("runs/gallery/model"), "cpu", None)
pd.DataFrame(describe_composite(yaml.safe_load(MINE)["layers"], model))[["layer", "type", "rule", "parameters"]]

# %% [markdown]
# `explanation="mine"` saves its maps separately from the default, in `explanations/mine`.

# %%
from datxai import Pipeline

run = Pipeline("runs/gallery", "--config-dir=my_conf", composite="mine", explanation="mine")
run.explain()
found = run.evaluate()

# %%
from datxai.run_figures import FIGURES

FIGURES["fig3"](found)

# %% [markdown]
# For rules, layer patterns and canonizers, see [composites](../../docs/composites.md).
