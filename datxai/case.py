"""Imaging of one scan: into MNI space, quality control, intensity scaling, binding ratios, mirroring, the network's
grid."""

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
}  # regions that the binding ratios rest on, in words


def tabulate_measures(measures: Mapping) -> dict[str, float | None]:
    """What of the measures of `Imaging.process` is held against normal cases: binding ratios, and what follows from
    them. The halves of the putamen are not among those of an earlier version."""
    known = {name: measures[name] for name in (*SBR, *HALVES) if name in measures}
    return known | derive_ratios(known)


def describe_imaging(settings: Config) -> dict:
    """The settings that shape what `Imaging` makes of a volume."""
    groups = ("grid", "registration", "atlas", "preprocessing")
    return {name: describe(getattr(settings, name)) for name in groups} | {"orientation": settings.data.orientation}


def describe_appearance(volume: np.ndarray, measures: Mapping, anatomy: Anatomy) -> dict[str, np.ndarray]:
    """Features of a scan that tell whether it is like others, 1-D each, by the names that `datxai.analysis.shift`
    gives them; ``volume`` (X, Y, Z) and ``measures`` are what `Imaging.process` makes of it."""
    moved = np.asarray(measures["transform"]) @ np.diag([-1.0 if measures["mirrored"] else 1.0, 1.0, 1.0, 1.0])
    noise, sharpness = anatomy.appearance.measure_texture(volume, moved)
    seen, reference = measures["quality"], volume[anatomy.regions["reference_region"]].astype(float)
    ratios = np.array([measures[name] for name in SBR]).reshape(-1, 2)
    return {
        "noise": noise,
        "sharpness": sharpness,
        "field of view": np.array([seen["coverage"]]),
        "reference region": np.log([seen["reference"], max(reference.std() / reference.mean(), 1e-6)]),
        "binding ratios": (ratios[:, ::-1] if measures["mirrored"] else ratios).ravel(),  # as the network sees them
        "uptake": anatomy.appearance.average_uptake(volume),
    }


@dataclass(frozen=True)
class Imaging:
    """What every scan of a cohort is preprocessed with."""

    settings: Config
    grid: Grid
    regions: Mapping[str, np.ndarray]  # on WORKING_GRID
    bases: Mapping[str, Volume]  # what a scan is registered to, and compared with

    @classmethod
    def of(cls, settings: Config, anatomy: Anatomy | None = None) -> Imaging:
        """For these settings; ``anatomy`` is that of the settings too, where it is known already."""
        kind = settings.registration.kind
        if kind not in ("affine", "none"):
            raise InputError(f"registration.kind={kind}: expected affine or none.")
        anatomy = anatomy or Anatomy.of(settings)
        return cls(settings, anatomy.grid, anatomy.working, anatomy.bases)

    def process(self, scan: Volume, name: object) -> tuple[Volume, dict]:
        """One scan through imaging: MNI space, quality control, intensity scaling, SBR, mirroring, the network's grid.

        Returns the volume and its measures: SBR of the patient's own sides (`SBR`, and `HALVES` of the putamen, None
        where nothing is covered), ``mirrored``, ``reference_value``, ``coverage`` (which part of each region the field
        of view holds; the rest is measured nowhere), ``transform`` (world mm of MNI space to those of the scan; its
        inverse takes the scan to MNI space), ``similarity`` to the template and ``quality``, as
        `datxai.imaging.quality.judge` has it. What cannot be used is an `InputError` that begins with ``name``.
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
        registered = self.settings.registration.kind != "none"  # which takes a whole head
        values = measure_values(scan)
        if scan.recorded("reconstruct"):  # of counts that were looked at themselves; its noise knows no limit of a type
            values = dict.fromkeys(values)
        quality.judge(values)
        transform, upright, stored = self._register(scan)
        if stored:
            scan = scan.after("turn", scan.data, upright @ scan.affine, stored=stored)
        fit = quality.measure_fit(scan, transform, self.bases)
        if registered:  # where that went wrong, it is why little is covered
            quality.judge(fit)
        covered = find_covered(field_of_view(scan), WORKING_GRID, transform)
        self._require_coverage(scan, transform, covered)
        volume = resample(scan, WORKING_GRID, transform, step="register")
        volume = scale(volume, self.regions["reference_region"] & covered, sizes.reference_percentile)
        sbr = measure_sbr(volume, self.regions, sizes.putamen_ml, sizes.caudate_ml, sizes.striatum_ml, covered)
        halves = measure_halves(volume, self.regions, sizes.putamen_ml, covered)
        brain = self.regions["brain"]
        if not registered and not covered[brain].all():  # a slab, of which the striatum takes more than of a brain
            striatum = self.regions["striatum_roi_left"] | self.regions["striatum_roi_right"]
            brain = brain & self.within & ~striatum
        seen = quality.measure_uptake(volume, brain, covered) | {"contrast": max(sbr.values())}
        judged = quality.judge(fit | seen | values)
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
        """What lies in the world of a processed scan, on the network's grid: moved and mirrored as ``measures`` say."""
        from datxai.imaging.mirror import mirror

        volume = resample(volume, WORKING_GRID, measures["transform"], step="register")
        return resample(mirror(volume) if measures["mirrored"] else volume, self.grid)

    @cached_property
    def within(self) -> np.ndarray:
        """Voxels of `WORKING_GRID` that lie within the network's grid."""
        return find_covered(self.grid, WORKING_GRID)

    def _require_coverage(self, scan: Volume, transform: np.ndarray, covered: np.ndarray) -> None:
        """Refuse a scan that does not show the network's grid, or what lies in it of the regions that are measured."""
        least = self.settings.preprocessing.min_coverage
        for axis, n in enumerate(self.grid.shape):
            thickness = self.grid.spacing[axis]
            if n == scan.shape[axis] == 1 and abs(scan.grid.spacing[axis] - thickness) > AFFINE_TOLERANCE_MM:
                raise InputError(
                    f"the scan is one slice of {scan.grid.spacing[axis]:g} mm, expected {thickness:g} mm as grid "
                    f"{self.grid.name} has; give slices of that thickness or a grid of theirs."
                )
        part = find_covered(scan.grid, self.grid, transform).mean()
        if part < least:
            raise InputError(
                f"the scan covers {part:.0%} of grid {self.grid.name}, expected {least:.0%} or more; choose a smaller "
                f"grid or a scan with a larger field of view."
            )
        short = []
        for name, words in MEASURED.items():
            needed = covered[self.regions[name] & self.within]
            part = needed.mean() if needed.size else 0.0  # a grid may miss a region
            if not part or part < least:
                short.append(f"{part:.0%} of the {words}")
        if short:
            raise InputError(
                f"the field of view holds {', '.join(short)} within grid {self.grid.name}, expected "
                f"{max(least, 0.01):.0%} or more of each; give a scan that shows them."
            )

    def _register(self, scan: Volume) -> tuple[np.ndarray, np.ndarray, str]:
        """MNI space to the scan as it lies upright, what takes its world there (4 x 4), and how it is stored, if that
        is wrong and to be put right (``data.orientation=as_fitted``)."""
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
