"""Imaging of one scan: MNI space, quality control, intensity scaling, binding ratios, mirroring, the network's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from datxai.analysis.normal_range import derive_ratios
from datxai.anatomy import WORKING_GRID, Anatomy
from datxai.config import Config, describe
from datxai.errors import InputError
from datxai.volume import AFFINE_TOLERANCE_MM, Grid, Volume, field_of_view, find_covered, resample

SBR = [f"{region}_{side}" for region in ("putamen", "caudate", "striatum") for side in ("left", "right")]
HALVES = [f"putamen_{half}_{side}" for half in ("anterior", "posterior") for side in ("left", "right")]
MEASURED = {"reference_region": "reference region"} | {
    f"{region}_roi_{side}": f"{side} {region}"
    for region in ("putamen", "caudate", "striatum")
    for side in ("left", "right")
}  # regions needed for the binding ratios, in words


def tabulate_measures(measures: Mapping) -> dict[str, float | None]:
    """The measures of `Imaging.process` that have normal ranges: binding ratios, and ratios derived from them. Earlier
    versions did not measure the halves of the putamen."""
    measured = {name: measures[name] for name in (*SBR, *HALVES) if name in measures}
    return measured | derive_ratios(measured)


def describe_imaging(settings: Config) -> dict:
    """The settings on which the results of `Imaging` depend."""
    groups = ("grid", "registration", "atlas", "preprocessing")
    return {name: describe(getattr(settings, name)) for name in groups} | {"orientation": settings.data.orientation}


def describe_appearance(volume: np.ndarray, measures: Mapping, anatomy: Anatomy) -> dict[str, np.ndarray]:
    """Features that compare a scan with others, each 1-D, by their names in `datxai.analysis.shift`; ``volume``
    (X, Y, Z) and ``measures`` are the results of `Imaging.process`."""
    to_scan = np.asarray(measures["transform"]) @ np.diag([-1.0 if measures["mirrored"] else 1.0, 1.0, 1.0, 1.0])
    noise, sharpness = anatomy.appearance.measure_texture(volume, to_scan)
    quality, reference = measures["quality"], volume[anatomy.regions["reference_region"]].astype(float)
    ratios = np.array([measures[name] for name in SBR]).reshape(-1, 2)
    return {
        "noise": noise,
        "sharpness": sharpness,
        "field of view": np.array([quality["coverage"]]),
        "reference region": np.log([quality["reference"], max(reference.std() / reference.mean(), 1e-6)]),
        "binding ratios": (ratios[:, ::-1] if measures["mirrored"] else ratios).ravel(),  # as the network sees them
        "uptake": anatomy.appearance.average_uptake(volume),
    }


@dataclass(frozen=True)
class Imaging:
    """The preprocessing of a cohort, the same for every scan."""

    settings: Config
    grid: Grid
    regions: Mapping[str, np.ndarray]  # on WORKING_GRID
    bases: Mapping[str, Volume]  # of the template for registration and quality control

    @classmethod
    def of(cls, settings: Config, anatomy: Anatomy | None = None) -> Imaging:
        """The imaging of these settings; ``anatomy`` is theirs, if it is available."""
        kind = settings.registration.kind
        if kind not in ("affine", "none"):
            raise InputError(f"registration.kind={kind}: expected affine or none.")
        anatomy = anatomy or Anatomy.of(settings)
        return cls(settings, anatomy.grid, anatomy.working, anatomy.bases)

    def process(self, scan: Volume, name: object) -> tuple[Volume, dict]:
        """Preprocess one scan: MNI space, quality control, intensity scaling, SBR, mirroring, the network's grid.

        Returns the volume and its measures: SBR of the patient's own sides (`SBR`, and `HALVES` of the putamen, None
        if nothing is covered), ``mirrored``, ``reference_value``, ``coverage`` (the part of each region within the
        field of view; the rest is not measured), ``transform`` (world mm of MNI space to world mm of the scan; its
        inverse maps the scan to MNI space), ``similarity`` to the template, and ``quality`` from
        `datxai.imaging.quality.judge`. An unusable scan raises `InputError`, with a message that begins with ``name``.
        """
        try:
            return self._process(scan)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    def _process(self, scan: Volume) -> tuple[Volume, dict]:
        from datxai.imaging import quality
        from datxai.imaging.intensity import scale
        from datxai.imaging.mirror import mirror_to_lower_left
        from datxai.imaging.quantification import measure_halves, measure_sbr
        from datxai.imaging.values import measure_values

        sizes = self.settings.preprocessing
        registered = self.settings.registration.kind != "none"  # registration needs a whole head
        values = measure_values(scan)
        if scan.recorded("reconstruct"):  # its counts were checked; its own values have no type's limit
            values = dict.fromkeys(values)
        quality.judge(values)
        transform, upright, stored = self._register(scan)
        if stored:
            scan = scan.after("turn", scan.data, upright @ scan.affine, stored=stored)
        fit = quality.measure_fit(scan, transform, self.bases)
        if registered:  # judged before coverage, since a failed registration leaves little covered
            quality.judge(fit)
        covered = find_covered(field_of_view(scan), WORKING_GRID, transform)
        self._require_coverage(scan, transform, covered)
        volume = resample(scan, WORKING_GRID, transform, step="register")
        volume = scale(volume, self.regions["reference_region"] & covered, sizes.reference_percentile)
        sbr = measure_sbr(volume, self.regions, sizes.putamen_ml, sizes.caudate_ml, sizes.striatum_ml, covered)
        halves = measure_halves(volume, self.regions, sizes.putamen_ml, covered)
        brain = self.regions["brain"]
        if not registered and not covered[brain].all():  # in a slab, the striatum is a larger part than in a brain
            striatum = self.regions["striatum_roi_left"] | self.regions["striatum_roi_right"]
            brain = brain & self.within & ~striatum
        uptake = quality.measure_uptake(volume, brain, covered) | {"contrast": max(sbr.values())}
        judged = quality.judge(fit | uptake | values)
        if stored:
            turned = f"stored {stored}, turned as the registration found it; left and right are as the header says"
            judged |= {"verdict": quality.AMBER, "reason": "; ".join(filter(None, [turned, judged["reason"]]))}
        mirrored = False
        if sizes.mirror:
            volume, mirrored = mirror_to_lower_left(volume, sbr)
        scaled = volume.recorded("scale")
        assert scaled is not None
        return resample(volume, self.grid), {
            **sbr,
            **halves,
            "mirrored": mirrored,
            "reference_value": scaled["reference_value"],
            "coverage": {name: float(covered[self.regions[name]].mean()) for name in MEASURED},
            "transform": np.linalg.inv(upright) @ transform,
            "similarity": judged["similarity"],
            "quality": judged,
        }

    def follow(self, volume: Volume, measures: Mapping) -> Volume:
        """A volume in the space of a processed scan, moved to the network's grid and mirrored like the scan."""
        from datxai.imaging.mirror import mirror

        volume = resample(volume, WORKING_GRID, measures["transform"], step="register")
        return resample(mirror(volume) if measures["mirrored"] else volume, self.grid)

    @cached_property
    def within(self) -> np.ndarray:
        """Voxels of `WORKING_GRID` that lie within the network's grid."""
        return find_covered(self.grid, WORKING_GRID)

    def _require_coverage(self, scan: Volume, transform: np.ndarray, covered: np.ndarray) -> None:
        """Raise `InputError` if a scan does not cover the network's grid, or the measured regions within it."""
        minimum = self.settings.preprocessing.min_coverage
        for axis, n in enumerate(self.grid.shape):
            thickness = self.grid.spacing[axis]
            if n == scan.shape[axis] == 1 and abs(scan.grid.spacing[axis] - thickness) > AFFINE_TOLERANCE_MM:
                raise InputError(
                    f"the scan is one slice of {scan.grid.spacing[axis]:g} mm, expected {thickness:g} mm as grid "
                    f"{self.grid.name} has; give slices of that thickness or a grid that fits."
                )
        fraction = find_covered(scan.grid, self.grid, transform).mean()
        if fraction < minimum:
            raise InputError(
                f"the scan covers {fraction:.0%} of grid {self.grid.name}, expected {minimum:.0%} or more; choose a "
                f"smaller grid or a scan with a larger field of view."
            )
        short = []
        for name, description in MEASURED.items():
            needed = covered[self.regions[name] & self.within]
            fraction = needed.mean() if needed.size else 0.0  # a region may lie outside the grid
            if not fraction or fraction < minimum:
                short.append(f"{fraction:.0%} of the {description}")
        if short:
            raise InputError(
                f"the field of view holds {', '.join(short)} within grid {self.grid.name}, expected "
                f"{max(minimum, 0.01):.0%} or more of each; give a scan that shows them."
            )

    def _register(self, scan: Volume) -> tuple[np.ndarray, np.ndarray, str]:
        """The map from MNI space to the upright scan (4 x 4), the map from the scan as stored to the upright one, and
        how it is stored, if that is wrong and to be corrected (``data.orientation=as_fitted``)."""
        if self.settings.registration.kind == "none":
            return np.eye(4), np.eye(4), ""
        from datxai.imaging.registration import register

        fitted = register(scan, self.bases)
        if not fitted.orientation:
            return fitted.affine, np.eye(4), ""
        if self.settings.data.orientation == "as_fitted":
            assert fitted.upright is not None
            again = register(replace(scan, affine=fitted.upright @ scan.affine), self.bases)
            if not again.orientation:
                return again.affine, fitted.upright, fitted.orientation
        raise InputError(
            f"the scan seems to be stored {fitted.orientation}: it fits the template clearly better that way than "
            f"as its header says; correct the orientation in the header (or set data.orientation=as_fitted) or, if it "
            f"is right, give the whole head: one that is cut at the top cannot be registered."
        )
