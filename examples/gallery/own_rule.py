# %% [markdown]
# # My own rule
#
# A rule is a Zennit hook. Pass it by name to use it in a composite like any other. This one, magnitude,
# distributes relevance by the absolute size of each contribution, so that nothing cancels.

# %%
from zennit.core import BasicHook, ParamMod, Stabilizer


class Magnitude(BasicHook):
    """Shares of |input| times |weight|."""

    def __init__(self, stabilizer=1e-9):
        super().__init__(
            input_modifiers=[lambda x: x.abs()],
            param_modifiers=[ParamMod(lambda weight, _: weight.abs(), zero_params="bias")],
            output_modifiers=[lambda output: output],
            gradient_mapper=lambda relevance, outputs: relevance / Stabilizer(stabilizer)(outputs[0]),
            reducer=lambda inputs, gradients: inputs[0] * gradients[0],
        )


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
lines = [
    {"match": ["type:Convolution"], "rule": "magnitude"},
    {"match": ["type:Linear"], "rule": "epsilon", "parameters": {"epsilon": 1e-4}},
    {"match": ["type:Activation"], "rule": "pass"},
]
found = attribute(model, x, composite=lines, own_rules={"magnitude": Magnitude}, target="difference")
print(f"starts with {sum(found.seeds[0]):.3f}, arrives with {found.relevance.sum():.3f}")

# %%
from datxai.pages.figures import plot_case

relevance = found.relevance[0, 0].numpy()
peak = [int(place[0]) for place in (abs(relevance) == abs(relevance).max()).nonzero()]
plot_case(run.anatomy.frame, x[0, 0].numpy(), relevance, peak)

# %% [markdown]
# On the command line: `composite.rules_from=my_rules.py`, [rules of your own](../../docs/composites.md).
