# %% [markdown]
# # A run from Python
#
# `Pipeline` is the command `datxai` for a notebook: settings as keywords, stages as methods, the same run folder.
# Here a cohort of 24 phantoms is made, on one slice of 12 mm, so that this page takes a minute. The other pages
# of the gallery read what it leaves.

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
# Two epochs teach nothing. A second run takes cohort and split over (`base=`), trains longer, and explains again.

# %%
run = Pipeline("runs/gallery", base="runs/cohort", training={"max_epochs": 25, "learning_rate": 1e-3})
run.train()
run.explain()
run.evaluate()
cnn = run.findings.metrics["classifiers"]["cnn"]
print(f"accuracy {cnn['accuracy']:.2f}, 95 % interval {cnn['accuracy_ci95'][0]:.2f} to {cnn['accuracy_ci95'][1]:.2f}")

# %% [markdown]
# Six test cases make for a wide interval. What was made is not made again: the same call returns at once. The
# figures of a run have names.

# %%
from datxai.run_figures import FIGURES

FIGURES["fig3"](run.findings)
