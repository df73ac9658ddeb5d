# %% [markdown]
# # Binding ratios and the normal range by age
#
# The 95 % prediction interval for one more normal subject, by age: ordinary least squares on age (and on sex, with
# at least ten cases of each) over the run's normal cases.

# %%
import matplotlib.pyplot as plt
import numpy as np

from datxai.findings import Findings
from datxai.run import Run

run = Findings(Run("runs/gallery"))
normal_range = run.ranges["putamen_left"]
years = np.linspace(45, 85, 41)
limits = np.array([normal_range.expect(year).limits for year in years])
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.fill_between(years, *limits.T, color="#56b4e9", alpha=0.3)
axes.plot(years, [normal_range.expect(year).median for year in years], color="#0072b2")
for label, name, marker, color in ((0, "normal", "o", "#0072b2"), (1, "reduced", "x", "#d55e00")):
    cases = [case for case, person in run.people.items() if person["label"] == label]
    ages, ratios = [run.people[case]["age"] for case in cases], [run.sbr[case]["putamen_left"] for case in cases]
    axes.plot(ages, ratios, marker, color=color, label=name)
axes.set(xlabel="age in years", ylabel="SBR of the left putamen")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

# %% [markdown]
# One case compared with this range: z, the standard normal deviate, and its percentile.

# %%
case = max(run.tested, key=lambda case: case["p_reduced"])["participant_id"]
expected = normal_range.expect(run.people[case]["age"], run.people[case]["sex"])
"z {:.1f}, percentile {:.1f}".format(*expected.score(run.sbr[case]["putamen_left"]))
