# %% [markdown]
# # Cross-validation
#
# With `split=kfold`, each case is tested by a network that has not seen it. Here: two folds of twenty epochs.

# %%
from datxai import Pipeline

folds = []
for fold in range(2):
    run = Pipeline(
        f"runs/folds/{fold}",
        "split=kfold",
        "split.folds=2",
        f"split.fold={fold}",
        "split.validation=0.25",
        base="runs/cohort",
        training={"max_epochs": 20, "learning_rate": 3e-3},
    )
    run.split()
    folds.append(run.train())

# %%
import pandas as pd

tested = pd.concat([pd.DataFrame(found.of_set("test")).assign(fold=fold) for fold, found in enumerate(folds)])
assert tested.participant_id.is_unique and len(tested) == 24
pd.crosstab(tested.fold, tested.group)

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 2.5), layout="constrained")
for label, colour in ((0, "#56b4e9"), (1, "#e69f00")):
    own = tested[tested.label == label]
    axes.plot(own.p_reduced, own.fold + 0.1 * (label - 0.5), "o", color=colour, label=("normal", "reduced")[label])
axes.set(xlabel="probability of reduced, by the network that did not see the case", yticks=[0, 1], ylabel="fold")
axes.legend(frameon=False)

# %% [markdown]
# In a shell: `datxai -m run=RUN split=kfold split.fold=0,1,2,3,4`, then `datxai compare RUN/split.fold=*` pools
# the out-of-fold predictions, with intervals ([cross-validation](../../docs/sweeps.md#cross-validation)).
