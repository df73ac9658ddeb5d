"""Is the phantom cohort plausible? Its binding ratios after the whole pipeline beside published ones.

    datxai preprocess run=RUN_DIR data.n_subjects=240
    python -m benchmarks.phantom RUN_DIR

Reads the tables of a run folder: ratios are those that the pipeline measured (reconstruction, registration, scaling),
of the side with the lower putamen.
"""

import sys
from pathlib import Path

import numpy as np

from datxai.analysis.classification import FEATURES, choose_cutoff, summarise, tabulate_features
from datxai.cohort.reads import reach_consensus, read_reads
from datxai.files import read_table
from datxai.results import read_sbr
from datxai.run import Run

# mean and SD of normal and reduced cases, no attenuation correction (PMC4182457, Table 2)
PUBLISHED = {
    "putamen_ipsilateral": ((1.64, 0.21), (0.80, 0.41)),
    "caudate_ipsilateral": ((3.01, 0.51), (1.85, 0.75)),
    "caudate_putamen_ratio": ((1.93, 0.30), (2.67, 0.84)),
    "putamen_asymmetry": ((9.1, 7.9), (23.3, 24.2)),
    "caudate_asymmetry": ((7.1, 6.1), (15.2, 12.0)),
}


def main() -> None:
    run = Run(sys.argv[1])
    people = [row["participant_id"] for row in read_table(run.participants)]
    labels = np.array([int(row["label"]) for row in read_table(run.participants)])
    sbr = read_sbr(run)
    features = tabulate_features([sbr[name] for name in people])
    print(f"{len(labels)} cases, {int((labels == 0).sum())} normal and {int(labels.sum())} reduced; mean ± SD\n")
    print("| lower side | normal, here | published | reduced, here | published |\n|---|---|---|---|---|")
    for name, published in PUBLISHED.items():
        values = features[:, FEATURES.index(name)]
        cells = [
            text
            for label in (0, 1)
            for text in (describe(values[labels == label]), "{:.2f} ± {:.2f}".format(*published[label]))
        ]
        print(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    lower = features[:, FEATURES.index("putamen_ipsilateral")]
    half = np.arange(len(labels)) % 2 == 0
    cutoff = choose_cutoff(lower[half], labels[half])
    found = summarise(labels[~half], (lower[~half] < cutoff).astype(int), -lower[~half])
    low, high = found["balanced_accuracy_ci95"]
    print(
        f"\nSBR cutoff {cutoff:.2f} of one half, on the other: balanced accuracy {found['balanced_accuracy']:.3f} "
        f"({low:.3f} to {high:.3f}), AUC {found['auc']:.3f}"
    )
    reads = Path(run.simulated, "reads.tsv")
    if reads.is_file():
        kappa = reach_consensus(read_reads(reads)).kappa
        print(
            f"Readers disagree in {1 - kappa.agreement:.1%} of the cases, kappa {kappa.kappa:.3f} "
            f"(SE {kappa.standard_error:.3f}); published 2.4%, 0.952 (SE 0.008)"
        )


def describe(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


if __name__ == "__main__":
    main()
