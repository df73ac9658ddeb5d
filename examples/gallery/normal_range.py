# %% [markdown]
# # Binding ratios beside normal cases as old
#
# The 95 % prediction interval for one more normal subject, by age: ordinary least squares of the binding ratio
# on age over the run's normal cases.

# %%
import matplotlib.pyplot as plt
import numpy as np

from datxai.analysis.normal_range import fit_normal_range
from datxai.findings import Findings
from datxai.run import Run

run = Findings(Run("runs/gallery"))
ages, values = ([case[name] for case in run.normals] for name in ("age", "putamen_left"))
years = np.linspace(45, 85, 41)
ranges = [fit_normal_range(values, ages, year) for year in years]
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.fill_between(years, *([one[end] for one in ranges] for end in ("low", "high")), color="#56b4e9", alpha=0.3)
axes.plot(years, [one["median"] for one in ranges], color="#0072b2")
axes.plot(ages, values, "o", color="#0072b2", label="normal")
reduced = [name for name, person in run.people.items() if person["label"] == 1]
axes.plot([run.people[name]["age"] for name in reduced], [run.sbr[name]["putamen_left"] for name in reduced], "x",
          color="#d55e00", label="reduced")  # fmt: skip
axes.set(xlabel="age in years", ylabel="SBR of the left putamen")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
