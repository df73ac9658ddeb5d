"""Is filtered back projection right, and how long does it take? One table of targets and measurements.

    python -m benchmarks.reconstruction [--rounds 7] [--tiny]

References are closed formulas (`benchmarks.analytic`) and scikit-image's iradon. Seconds are medians of interleaved
rounds on one thread of the CPU, where reconstruction runs.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from skimage.transform import iradon

from benchmarks import analytic
from datxai.imaging import reconstruction
from datxai.imaging.reconstruction import FILTERS, reconstruct

PIXEL_MM = 4.0
EDGE_BINS = 4  # nearer to an edge, ringing dominates
FINE = 8  # parts of a bin, where an image is band-limited
CASES = ((64, 60, 64), (64, 60, 128), (128, 120, 128))  # rows, views, bins; iradon takes the last
TINY = ((4, 30, 16), (4, 30, 32), (8, 40, 32))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="coarse objects, to see that everything runs")
    given = parser.parse_args(words)
    head, beside = ((64, 60), (47, 45)) if given.tiny else ((128, 180), (95, 90))
    cases = TINY if given.tiny else CASES
    print("| measured | target | here |\n|---|---|---|")
    for row in [
        *measure_head(*head), *compare_iradon(*beside), *measure_points(), *count(), *measure_chang(),
        *clock(given.rounds, cases),
    ]:  # fmt: skip
        print("| {} | {} | {} |".format(*row))


def slice_of(lines: np.ndarray, angles: np.ndarray, **options) -> np.ndarray:
    return reconstruct(lines[:, None], angles, PIXEL_MM, **options).data[:, :, 0].astype(float)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def measure_head(bins: int, views: int):
    """Error against the analytic head, and the part due to the inevitable blur of bins, filter and interpolation."""
    angles = np.arange(views) * 180.0 / views
    lines, image = analytic.shepp_logan(bins, angles)
    fine = analytic.shepp_logan(bins * FINE, np.zeros(1), 1)[1]
    calm = analytic.away_from_edges(bins, EDGE_BINS)
    for name in ("ramp", "shepp-logan"):
        expected = analytic.blur_as_expected(fine, name, FINE)
        found = slice_of(lines, angles, filter=name)
        for where, mask in (("overall", np.ones_like(calm)), (f"over {EDGE_BINS} bins from edges", calm)):
            yield (
                f"Shepp-Logan head, {views} views x {bins} bins, {name}, {where}: rel. L2 to the head (of the blur "
                f"that is due; to the head so blurred)",
                "-",
                f"{relative(found[mask], image[mask]):.1%} ({relative(expected[mask], image[mask]):.1%}; "
                f"{relative(found[mask], expected[mask]):.1%})",
            )


def compare_iradon(bins: int, views: int):
    """An odd number of bins, for which both rotate about the same bin."""
    angles = np.arange(views) * 360.0 / views
    lines, _ = analytic.shepp_logan(bins, angles)
    x, y = np.meshgrid(*2 * [analytic.positions(bins)])
    inside = np.hypot(x, y) < bins / 2 - 1
    for name in ("ramp", "shepp-logan", "hann"):
        theirs = iradon(lines.T, theta=angles, filter_name=name, circle=True).T
        found = relative(slice_of(lines, angles, filter=name)[inside], theirs[inside])
        yield f"iradon, {name} at Nyquist: rel. L2", "<= 2 %", f"{found:.2%}"


def measure_points(sigma: float = 1.2, centre: tuple[int, int] = (10, -7)):
    """An off-axis point source, as wide as the best camera resolution."""
    angles = np.arange(120) * 3.0
    lines = analytic.gaussian_projections(angles, centre, sigma, bins=63)
    x, y = 31 + centre[0], 31 + centre[1]
    for name in (f for f in FILTERS if f != "none"):
        for cutoff_per_cm in (1.25, 0.8):
            theory, sharper = (
                analytic.point_fwhm(name, cutoff_per_cm * PIXEL_MM / 10, sigma, interpolated)
                for interpolated in (True, False)
            )
            image = slice_of(lines, angles, filter=name, cutoff_per_cm=cutoff_per_cm)
            widths = [analytic.profile_fwhm(flank) for flank in (image[x:, y], image[x::-1, y], image[x, y:])]
            found = np.mean(widths)
            yield (
                f"point source, {name}, {cutoff_per_cm} per cm: FWHM (theory; without the interpolation of bins), mm",
                "within 5 %",
                f"{found * PIXEL_MM:.2f} ({theory * PIXEL_MM:.2f}, {found / theory - 1:+.1%}; "
                f"{sharper * PIXEL_MM:.2f}, {found / sharper - 1:+.1%})",
            )


def count():
    angles = np.arange(120) * 3.0
    for what, lines in (
        ("head", analytic.shepp_logan(128, angles)[0]),
        ("source off the centre", analytic.gaussian_projections(angles, (15.0, -8.0))),
    ):
        kept = slice_of(lines, angles).sum() / (lines.sum() / len(angles)) - 1
        yield f"counts kept, {what}", "within 1 %", f"{kept:+.2%}"


def measure_chang(disc_cm: float = 9.0, per_cm: float = 0.11, bins: int = 64):
    """The correction on a uniform disc with its own attenuation."""
    s = analytic.positions(bins, FINE) * PIXEL_MM / 10
    chord = 2 * np.sqrt(np.clip(disc_cm**2 - s**2, 0, None))
    line = ((1 - np.exp(-per_cm * chord)) / per_cm).reshape(bins, FINE).mean(axis=1)
    lines = np.broadcast_to(line, (60, 24, bins))
    plain, corrected = (
        reconstruct(lines, np.arange(60) * 6.0, PIXEL_MM, attenuation_per_cm=mu).data[:, :, 12] for mu in (None, per_cm)
    )
    radius = np.hypot(*np.meshgrid(*2 * [analytic.positions(bins) * PIXEL_MM / 10]))
    for where, at in (("centre", 0.3), ("1 cm below the rim", disc_cm - 1.0)):
        near = np.abs(radius - at) < 0.2
        exact = np.mean([analytic.chang_factor(r, disc_cm, per_cm) for r in radius[near]])
        found = float((corrected[near] / plain[near]).mean())
        yield (
            f"Chang's factor, disc of {disc_cm:g} cm, {where} (theory)",
            "within 5 %",
            f"{found:.3f} ({exact:.3f}, {found / exact - 1:+.1%})",
        )


def clock(rounds: int, cases: Sequence[tuple[int, int, int]]):
    rng = np.random.default_rng(0)
    counts = {
        f"{rows} slices x {views} views x {bins} bins": rng.poisson(5.0, (views, rows, bins)).astype(np.float32)
        for rows, views, bins in cases
    }
    ours: dict[str, list[float]] = {name: [] for name in counts}
    first: dict[str, list[float]] = {name: [] for name in counts}
    theirs = []
    *coarser, name = counts
    for _ in range(rounds):  # interleaved: slowdowns affect all equally
        for case, projections in counts.items():
            angles = np.arange(len(projections)) * 360.0 / len(projections)
            reconstruction._back_projector.cache_clear()
            for seconds in (first[case], ours[case]):
                begin = time.perf_counter()
                reconstruct(projections, angles, PIXEL_MM)
                seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        iradon(counts[name][:, 0].T, theta=angles, filter_name="shepp-logan", circle=True)
        theirs.append(time.perf_counter() - begin)
    for case in coarser:
        yield (
            f"{case}: s (with the matrix of a new geometry)",
            "<= 0.5",
            f"{statistics.median(ours[case]):.3f} ({statistics.median(first[case]):.3f})",
        )
    slices = cases[-1][0]
    slice_s, slice_iradon_s = statistics.median(ours[name]) / slices, statistics.median(theirs)
    new_s = statistics.median(first[name]) / slices
    yield (
        f"{name}: ms per slice (with the matrix of a new geometry); iradon; ratio",
        ">= 5 x",
        f"{slice_s * 1e3:.1f} ({new_s * 1e3:.1f}); {slice_iradon_s * 1e3:.1f}; "
        f"{slice_iradon_s / slice_s:.0f} x ({slice_iradon_s / new_s:.0f} x)",
    )


if __name__ == "__main__":
    main()
