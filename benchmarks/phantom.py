"""Is the phantom cohort plausible? What the whole pipeline measures in it beside published values.

    datxai preprocess run=RUN_DIR data.n_subjects=240 data.seed=123
    python -m benchmarks.phantom RUN_DIR

Reads a run folder: ratios are those that the pipeline measured (reconstruction, registration, scaling), of the side
with the lower putamen; regions are those of the mean normal scan, over the same percentile of its reference region as
single scans are scaled by (noise lifts that percentile in a single scan, not in the mean).
"""

import sys
from pathlib import Path

import numpy as np

from datxai.analysis.classification import FEATURES, choose_cutoff, summarise, tabulate_features
from datxai.cohort.reads import reach_consensus, read_reads
from datxai.files import read_table
from datxai.imaging.atlas import load_atlas, make_parcellation, make_regions
from datxai.imaging.intensity import scale
from datxai.results import read_sbr
from datxai.run import Run
from datxai.volume import Volume, load

# mean and SD of normal and reduced cases, no attenuation correction (PMC4182457, Table 2)
PUBLISHED = {
    "putamen_ipsilateral": ((1.64, 0.21), (0.80, 0.41)),
    "caudate_ipsilateral": ((3.01, 0.51), (1.85, 0.75)),
    "striatum_ipsilateral": ((2.36, 0.35), (1.33, 0.57)),
    "caudate_putamen_ratio": ((1.93, 0.30), (2.67, 0.84)),
    "putamen_asymmetry": ((9.1, 7.9), (23.3, 24.2)),
    "caudate_asymmetry": ((7.1, 6.1), (15.2, 12.0)),
}
# uptake over the reference region in an average of real normal scans; 5 to 10 % uncertain
PUBLISHED_UPTAKE = {
    "pallidum": 2.4,
    "accumbens": 1.6,
    "thalamus": 1.19,
    "amygdala": 1.17,
    "insula": 1.09,
    "hippocampus": 1.06,
    "brainstem": 1.04,
    "precuneus": 0.96,
    "superiortemporal": 0.92,
    "cuneus": 0.91,
    "medialorbitofrontal": 0.85,
    "lateraloccipital": 0.82,
    "superiorfrontal": 0.76,
}


def main() -> None:
    run = Run(sys.argv[1])
    people = [row["participant_id"] for row in read_table(run.participants)]
    labels = np.array([int(row["label"]) for row in read_table(run.participants)])
    sbr = read_sbr(run)
    rows = [sbr[name] for name in people]
    measured = dict(zip(FEATURES, tabulate_features(rows).T))
    sides = [min(("left", "right"), key=lambda side: row[f"putamen_{side}"]) for row in rows]
    measured["striatum_ipsilateral"] = np.array([row[f"striatum_{side}"] for row, side in zip(rows, sides)])
    print(f"{len(labels)} cases, {int((labels == 0).sum())} normal and {int(labels.sum())} reduced; mean ± SD\n")
    print("| lower side | normal, here | published | reduced, here | published |\n|---|---|---|---|---|")
    for name, published in PUBLISHED.items():
        cells = [
            text
            for label in (0, 1)
            for text in (describe(measured[name][labels == label]), "{:.2f} ± {:.2f}".format(*published[label]))
        ]
        print(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")

    print("\n| uptake of normals over the reference | here | published | |\n|---|---|---|---|")
    for region, uptake in measure_uptake([run.scan_of(name) for name, label in zip(people, labels) if not label]):
        expected = PUBLISHED_UPTAKE[region]
        print(f"| {region} | {uptake:.2f} | {expected:.2f} | {uptake / expected - 1:+.0%} |")

    lower = measured["putamen_ipsilateral"]
    half = np.arange(len(labels)) < len(labels) / 2
    cutoffs = [choose_cutoff(lower[part], labels[part]) for part in (~half, half)]
    found = summarise(labels, (lower < np.where(half, *cutoffs)).astype(int), -lower)
    low, high = found["balanced_accuracy_ci95"]
    print(
        f"\nSBR cutoff, each half of the cases by the cutoff of the other ({cutoffs[0]:.2f}, {cutoffs[1]:.2f}): "
        f"balanced accuracy {found['balanced_accuracy']:.3f} ({low:.3f} to {high:.3f}), AUC {found['auc']:.3f}"
    )
    reads = Path(run.simulated, "reads.tsv")
    if reads.is_file():
        kappa = reach_consensus(read_reads(reads)).kappa
        print(
            f"Readers disagree in {1 - kappa.agreement:.1%} of the cases, kappa {kappa.kappa:.3f} "
            f"(SE {kappa.standard_error:.3f}); published 2.4%, 0.952 (SE 0.008)"
        )


def measure_uptake(paths: list[Path]) -> list[tuple[str, float]]:
    """Uptake of the regions of `PUBLISHED_UPTAKE` in the mean of scans in MNI space, both sides together."""
    scans = [load(path) for path in paths]
    mean = Volume(np.mean([scan.data for scan in scans], axis=0), scans[0].affine)
    atlas = load_atlas()
    mean = scale(mean, make_regions(mean.grid, atlas)["reference_region"])
    parcels, names = make_parcellation(mean.grid, atlas)
    sides = ("", "_left", "_right")
    members = {
        region: [i for i, name in names.items() if name in {region + s for s in sides}] for region in PUBLISHED_UPTAKE
    }
    return [(region, float(mean.data[np.isin(parcels, codes)].mean())) for region, codes in members.items() if codes]


def describe(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


if __name__ == "__main__":
    main()
