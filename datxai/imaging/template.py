"""A template from a site's own scans: the mean of registered normal ones, as Nazari et al. 2022 made theirs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from datxai.errors import InputError
from datxai.imaging.atlas import HEAD, Atlas, make_regions
from datxai.imaging.intensity import scale
from datxai.volume import Volume, resample

SMOOTH_MM = 4.0  # FWHM: takes the noise off a mean of few scans and costs little sharpness
MIN_SEEN = 0.5  # part of the scans that must show a place; elsewhere the mean is zero


def average_scans(scans: Iterable[tuple[Volume, np.ndarray]], atlas: Atlas) -> Volume:
    """Mean of scans on `HEAD`, each scaled by its reference region, symmetric about x = 0, lightly smoothed.

    ``scans``: volumes, each with its affine map from MNI space (mm) to the scan, as a registration gives it.
    """
    reference = make_regions(HEAD, atlas)["reference_region"]
    total, seen, count = np.zeros(HEAD.shape), np.zeros(HEAD.shape, int), 0
    for scan, affine in scans:
        data = scale(resample(scan, HEAD, affine), reference).data
        total += data
        seen += data != 0
        count += 1
    if not count:
        raise InputError("template: no scan to average, expected one at least.")
    total, seen = total + total[::-1], seen + seen[::-1]
    mean = np.where(seen >= 2 * count * MIN_SEEN, total / np.maximum(seen, 1), 0)
    sigma = SMOOTH_MM / np.sqrt(8 * np.log(2)) / HEAD.spacing
    record = {"step": "average", "scans": count, "smooth_fwhm_mm": SMOOTH_MM}
    return Volume(ndimage.gaussian_filter(mean, sigma), HEAD.affine, (record,))
