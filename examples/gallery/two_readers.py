# %% [markdown]
# # Two readers, one label
#
# Combine the reads of two readers into a consensus label; Cohen's kappa measures their agreement. The phantom has
# simulated reads.

# %%
from datxai.cohort.consensus import reach_consensus, read_reads

reads = read_reads("runs/cohort/simulated/reads.tsv")
consensus = reach_consensus(reads)
summary = consensus.summarise()
between = summary["inter_reader"]
print(f"{between['disagreed']} of {between['n']} read differently, kappa {between['kappa']:.2f}")

# %%
import pandas as pd

pd.DataFrame(consensus.rows).head(8)

# %% [markdown]
# In a shell: `datxai reads file=reads.tsv out=DIR` ([two readers](../../docs/reads.md)).
