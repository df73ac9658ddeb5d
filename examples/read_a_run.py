"""A run folder contains plain files: read its tables and maps with any tool.

    python examples/read_a_run.py RUN_DIR
"""

import sys
from pathlib import Path

import nibabel as nib
import pandas as pd

run = Path(sys.argv[1])
cases = pd.read_table(run / "predictions.tsv", index_col="participant_id")
regional = pd.read_table(run / "roi_relevance.tsv", index_col="participant_id")
test = cases[cases["set"] == "test"].join(regional.drop(columns="group"))

print(f"{len(cases)} cases, {len(test)} in the test set, {(test.label == test.predicted).mean():.1%} of them right")
print(test.groupby(["label", "predicted"])[["putamen_ipsilateral", "putamen_contralateral"]].mean())

doubtful = (test.p_reduced - 0.5).abs().idxmin()
relevance = nib.load(run / "relevance" / f"{doubtful}_relevance.nii.gz")
print(f"least certain: {doubtful}, sum of its relevance {relevance.get_fdata().sum():.4g}, grid {relevance.shape}")
