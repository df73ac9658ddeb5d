"""Does the phantom's striatum look like that of real scans? Compare measures of a run's scans with real values.

    datxai simulate run=RUN_DIR data.n_subjects=300 data.seed=123
    datxai preprocess run=RUN_DIR
    python -m benchmarks.phantom RUN_DIR [--markdown FILE]

The real values were measured on scans that may not be redistributed, with the regions and measures of this project:

- the average of normal FP-CIT scans in MNI space, symmetric, 2 mm; compared with the mean normal scan of the run;
- 645 single scans of PPMI (212 controls, 433 patients), each the mean of the six 2 mm slices at z = -2 to 8 mm, over
  the 75th percentile of a ring around the striata. Iterative reconstruction: their noise is not a target.

`benchmarks.fit_phantom` fits the phantom to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from datxai.analysis.classification import choose_cutoff, summarise
from datxai.anatomy import WORKING_GRID
from datxai.cohort.consensus import reach_consensus, read_reads
from datxai.files import read_table, write_text
from datxai.findings import Findings
from datxai.imaging.atlas import LabelAtlas, load_atlas, make_parcellation, make_regions
from datxai.imaging.intensity import scale
from datxai.imaging.quantification import average_hottest, measure_sbr
from datxai.run import Run
from datxai.volume import Grid, Volume, load, resample

AVERAGE = {
    "putamen SBR, 10 ml": 1.62, "caudate SBR, 5 ml": 1.44, "striatum SBR, 15 ml": 1.56, "caudate/putamen": 0.89,
    "putamen, hottest 1 ml": 3.57, "putamen, hottest 5 ml": 3.12,
    "caudate, hottest 1 ml": 3.04, "caudate, hottest 5 ml": 2.48,
    "pallidum": 2.50, "accumbens": 1.66, "thalamus": 1.17, "amygdala": 1.16, "insula": 1.06, "hippocampus": 1.05,
    "brainstem": 1.02, "superiorfrontal": 0.73, "cuneus": 0.89, "lateraloccipital": 0.80, "medialorbitofrontal": 0.83,
    "precuneus": 0.96, "superiortemporal": 0.92,
}  # fmt: skip
# uptake over the reference region along an axis, every 6 mm: (axis, first and last place, the other coordinates in mm)
PROFILES = {
    ("y", -30, 30, (-26, 0, 2)): (1.10, 1.30, 1.84, 2.60, 3.13, 3.32, 3.16, 2.54, 1.71, 1.15, 1.01),
    ("y", -30, 30, (-12, 0, 10)): (0.88, 0.96, 1.07, 1.26, 1.56, 2.10, 2.64, 2.57, 1.79, 1.11, 0.96),
    ("x", -48, 0, (0, 4, 2)): (0.97, 1.01, 1.38, 2.48, 3.51, 3.46, 2.70, 1.85, 1.47),
    ("x", -48, 0, (0, 14, 4)): (0.87, 0.96, 1.07, 1.54, 2.53, 3.32, 3.07, 2.06, 1.51),
}
PEAK, PEAK_MM = 3.85, (18, 8, 2)  # hottest voxel of either side
# normal and reduced scans: 10th, 50th and 90th percentile
SLABS = {
    "putamen, lower side": ((1.80, 2.25, 2.91), (0.67, 1.09, 1.60)),
    "putamen, other side": ((1.93, 2.36, 3.07), (0.95, 1.44, 2.05)),
    "caudate, lower side": ((1.43, 1.90, 2.52), (0.85, 1.28, 1.80)),
    "caudate, other side": ((1.46, 1.90, 2.58), (1.00, 1.50, 2.03)),
    "caudate/putamen, lower side": ((0.71, 0.84, 0.97), (0.86, 1.18, 1.60)),
    "caudate/putamen, other side": ((0.67, 0.80, 0.94), (0.80, 1.03, 1.33)),
    "rear/front putamen, lower side": ((0.69, 0.78, 0.88), (0.40, 0.51, 0.66)),
    "rear/front putamen, other side": ((0.67, 0.77, 0.85), (0.44, 0.56, 0.69)),
    "putamen asymmetry, %": ((0.7, 5.0, 13.3), (6.0, 25.9, 51.2)),
}
SLAB = Grid.axis_aligned((91, 109, 6), (2, 2, 2), (-90, -126, -2), "slab of six slices")
SLAB_ML = {"putamen": 3.0, "caudate": 2.0, "front": 1.5, "rear": 1.5}  # hottest voxels that count
SLAB_VOXEL_ML = 0.048  # 2 x 2 x 12 mm
REACH_MM = 6.0  # of the slab's regions beyond the anatomy
HEMISPHERES = ("left", "right")


class Average:
    """Measures of the mean of normal scans."""

    def __init__(self, atlas: LabelAtlas):
        self.regions = make_regions(WORKING_GRID, atlas)
        parcels, names = make_parcellation(WORKING_GRID, atlas)
        self.parcels = {
            region: np.isin(parcels, [n for n, name in names.items() if name.split("_")[0] == region])
            for region in list(AVERAGE)[list(AVERAGE).index("pallidum") :]
        }

    def measure(self, mean: Volume) -> tuple[dict[str, float], list[np.ndarray], tuple[float, np.ndarray]]:
        """Rows as in `AVERAGE`, profiles as in `PROFILES`, and the hottest voxel: its value and position in MNI mm."""
        mean = scale(resample(mean, WORKING_GRID), self.regions["reference_region"])
        sbr = measure_sbr(mean, self.regions)
        rows = {
            f"{name} SBR, {ml} ml": (sbr[f"{name}_left"] + sbr[f"{name}_right"]) / 2
            for name, ml in (("putamen", 10), ("caudate", 5), ("striatum", 15))
        }
        rows["caudate/putamen"] = rows["caudate SBR, 5 ml"] / rows["putamen SBR, 10 ml"]
        for name in ("putamen", "caudate"):
            both = self.regions[f"{name}_left"] | self.regions[f"{name}_right"]
            for ml in (1, 5):
                rows[f"{name}, hottest {ml} ml"] = average_hottest(mean.data, both, ml, WORKING_GRID.voxel_ml)
        rows |= {region: float(mean.data[mask].mean()) for region, mask in self.parcels.items()}
        hottest = np.unravel_index(mean.data.argmax(), mean.shape)
        peak = float(mean.data.max()), WORKING_GRID.index_to_mm(hottest)
        return rows, [read_profile(mean, profile) for profile in PROFILES], peak


def read_profile(volume: Volume, profile: tuple) -> np.ndarray:
    """Values of the nearest voxels along a profile as the keys of `PROFILES` describe it."""
    axis, low, high, point = profile
    places = np.tile(np.array(point, float), ((high - low) // 6 + 1, 1))
    places[:, "xyz".index(axis)] = np.arange(low, high + 1, 6)
    index = np.rint([volume.grid.mm_to_index(place) for place in places]).astype(int)
    return volume.data[tuple(index.T)]


def make_slab_regions(atlas: LabelAtlas) -> dict[str, np.ndarray]:
    """Regions of the slab, boolean (91, 109): around putamen and caudate of each side, the putamen's front and
    rear, and the ring whose 75th percentile is the reference."""
    parcels, names = make_parcellation(SLAB, atlas)
    anatomy = {name: (parcels == number).any(axis=2) for number, name in names.items()}
    x, y = np.moveaxis(SLAB.world_coordinates()[:, :, 0, :2], -1, 0)
    regions = {}
    for side in HEMISPHERES:
        caudate, putamen = anatomy[f"caudate_{side}"], anatomy[f"putamen_{side}"]
        to_caudate, to_putamen = (2.0 * ndimage.distance_transform_edt(~mask) for mask in (caudate, putamen))
        near = (to_putamen <= REACH_MM) & (to_putamen <= to_caudate)
        front = y > np.median(y[putamen])
        regions |= {
            f"caudate_{side}": (to_caudate <= REACH_MM) & (to_caudate < to_putamen),
            f"putamen_{side}": near,
            f"front_{side}": near & front,
            f"rear_{side}": near & ~front,
        }
    striata = (np.abs(x) < 48) & (y > -34) & (y < 46)
    regions["ring"] = (np.hypot(x / 68.0, (y + 18) / 86.0) < 1) & ~striata
    return regions


def measure_slabs(images: np.ndarray, regions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows as in `SLABS`, each of shape (n,). ``images`` (n, pixels), ``regions`` boolean (pixels,)."""
    reference = np.percentile(images[:, regions["ring"]], 75, axis=1)[:, None]
    sbr = {}
    for name, ml in SLAB_ML.items():
        sides = []
        for side in HEMISPHERES:
            hottest = np.sort(images[:, regions[f"{name}_{side}"]] / reference, axis=1)
            sides.append(hottest[:, -round(ml / SLAB_VOXEL_ML) :].mean(axis=1) - 1)
        sbr[name] = np.stack(sides)
    order = np.argsort(sbr["putamen"], axis=0)
    sbr = {name: np.take_along_axis(values, order, axis=0) for name, values in sbr.items()}
    rows = {}
    for name, top, bottom in (
        ("putamen", "putamen", None),
        ("caudate", "caudate", None),
        ("caudate/putamen", "caudate", "putamen"),
        ("rear/front putamen", "rear", "front"),
    ):
        values = sbr[top] if bottom is None else sbr[top] / sbr[bottom]
        rows |= {f"{name}, {side} side": values[i] for i, side in enumerate(("lower", "other"))}
    lower, other = sbr["putamen"]
    return rows | {"putamen asymmetry, %": 200 * (other - lower) / (lower + other)}


def measure_difficulty(labels: np.ndarray, lower: np.ndarray) -> dict:
    """Cutoff of the lower putaminal SBR: each half of the cases by the cutoff of the other half."""
    half = np.arange(len(labels)) < len(labels) / 2
    cutoffs = [choose_cutoff(lower[part], labels[part]) for part in (~half, half)]
    return {"cutoffs": cutoffs, **summarise(labels, (lower < np.where(half, *cutoffs)).astype(int), -lower)}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    given = parser.parse_args(words)
    text = describe(Run(given.run))
    print(text, end="")
    if given.markdown:
        write_text(given.markdown, text)


def describe(run: Run) -> str:
    """The tables of a run folder, as markdown."""
    people = read_table(run.participants)
    labels = np.array([int(row["label"]) for row in people])
    atlas, sbr = load_atlas(), Findings(run).sbr
    slabs, total = [], 0.0
    for row, label in zip(people, labels):
        volume = load(run.scan_of(row["participant_id"]))
        slabs.append(resample(volume, SLAB).data.mean(axis=2).ravel())
        if label == 0:
            total = total + volume.data.astype(float)
    mean = Volume((total / (labels == 0).sum()).astype(np.float32), volume.affine)
    lower = np.array([min(sbr[row["participant_id"]][f"putamen_{side}"] for side in HEMISPHERES) for row in people])
    lines = [
        *_describe_average(*Average(atlas).measure(mean), int((labels == 0).sum())),
        *_describe_slabs(np.array(slabs), labels, atlas),
        *_describe_difficulty(run, labels, lower),
    ]
    return "\n".join(lines) + "\n"


def _describe_average(
    rows: Mapping[str, float], profiles: Sequence[np.ndarray], peak: tuple[float, np.ndarray], n: int
) -> list[str]:
    lines = [f"Mean of {n} normal scans:", "", "| | real average | here | |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {real:.2f} | {rows[name]:.2f} | {rows[name] / real - 1:+.0%} |" for name, real in AVERAGE.items()
    ]
    value, place = peak
    away = np.linalg.norm(np.abs(place) - PEAK_MM)
    where = ", ".join(f"{p:.0f}" for p in place)
    lines.append(f"| hottest voxel | {PEAK:.2f} at (±18, 8, 2) | {value:.2f} at ({where}) | {away:.1f} mm |")
    lines += ["", "| uptake every 6 mm (MNI) | | root mean square |", "|---|---|---|"]
    for (profile, real), here in zip(PROFILES.items(), profiles):
        axis, low, high, point = profile
        others = ", ".join(f"{name} {point['xyz'.index(name)]}" for name in "xyz" if name != axis)
        difference = np.sqrt(np.mean((here - real) ** 2))
        lines.append(f"| {axis} {low} to {high} at {others}, real | {' '.join(f'{v:.2f}' for v in real)} | |")
        lines.append(f"| here | {' '.join(f'{v:.2f}' for v in here)} | {difference:.2f} |")
    return lines


def _describe_slabs(images: np.ndarray, labels: np.ndarray, atlas: LabelAtlas) -> list[str]:
    regions = {name: mask.ravel() for name, mask in make_slab_regions(atlas).items()}
    found = [measure_slabs(images[labels == label], regions) for label in (0, 1)]

    def words(low: float, middle: float, high: float, digits: int) -> str:
        return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    lines = [
        "",
        f"Single scans, slab of 12 mm, median (10 to 90 %); here {(labels == 0).sum()} normal, {labels.sum()} reduced:",
        "",
        "| | normal, real | here | reduced, real | here |",
        "|---|---|---|---|---|",
    ]
    for name, real in SLABS.items():
        digits = 1 if name.endswith("%") else 2
        cells = [
            words(*values, digits)
            for label in (0, 1)
            for values in (real[label], np.percentile(found[label][name], (10, 50, 90)))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _describe_difficulty(run: Run, labels: np.ndarray, lower: np.ndarray) -> list[str]:
    found = measure_difficulty(labels, lower)
    low, high = found["balanced_accuracy_ci95"]
    first, second = found["cutoffs"]
    lines = [
        "",
        f"SBR cutoff, each half of the cases by the cutoff of the other ({first:.2f}, {second:.2f}): balanced accuracy "
        f"{found['balanced_accuracy']:.3f} ({low:.3f} to {high:.3f}), AUC {found['auc']:.3f}; clinical data about "
        f"0.935 and 0.983.",
    ]
    reads = run.simulated / "reads.tsv"
    if reads.is_file():
        kappa = reach_consensus(read_reads(reads)).kappa
        lines.append(
            f"Readers disagree in {1 - kappa.agreement:.1%} of the cases, kappa {kappa.kappa:.3f} (SE "
            f"{kappa.standard_error:.3f}); paper 2.4%, 0.952 (SE 0.008)."
        )
    return lines


if __name__ == "__main__":
    main()
