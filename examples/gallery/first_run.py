# %% [markdown]
# # A run from Python
#
# `Pipeline` is the `datxai` command for notebooks: settings as keywords, stages as methods, the same run folder.
# This page simulates a cohort of 24 phantoms on one slice of 12 mm, so that it takes a minute. The other pages
# of the gallery use its output.

# %%
from datxai import Pipeline

cohort = Pipeline(
    "runs/cohort",
    data={"n_subjects": 24},
    grid="slab_12mm",
    split={"sizes": [12, 6, 6]},
    network={"channels": [4, 4, 4, 4]},
    training={"max_epochs": 2},
)
cohort.make()
print(sorted(path.name for path in cohort.folder.iterdir()))

# %% [markdown]
# Two epochs are too few. A second run reuses cohort and split (`base=`), trains longer, and explains again.

# %%
run = Pipeline("runs/gallery", base="runs/cohort", training={"max_epochs": 25, "learning_rate": 1e-3})
run.train()
run.explain()
run.evaluate()
cnn = run.findings.metrics["classifiers"]["cnn"]
print(f"accuracy {cnn['accuracy']:.2f}, 95 % interval {cnn['accuracy_ci95'][0]:.2f} to {cnn['accuracy_ci95'][1]:.2f}")

# %% [markdown]
# Six test cases give a wide interval. Finished stages are not repeated: the same call returns at once. Draw the
# figures of a run by name:

# %%
from datxai.run_figures import FIGURES

FIGURES["fig3"](run.findings)
