"""One scan through the house: imaging, network, explanation. The stages do it for many, the command `case` for one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from datxai.config import Composite, Config, describe
from datxai.errors import InputError
from datxai.run import Run
from datxai.volume import Grid, Volume, covered_fraction, load, resample

log = logging.getLogger("datxai")

SBR = [f"{region}_{side}" for region in ("putamen", "caudate", "striatum") for side in ("left", "right")]
SIDES = {"ipsilateral": "left", "contralateral": "right"}  # after mirroring
WORKING_GRID = Grid.axis_aligned((91, 109, 91), (2, 2, 2), (-90, -126, -72), "mni_2mm")  # where scans are measured


@dataclass(frozen=True)
class Imaging:
    """What every scan of a cohort is preprocessed with."""

    settings: Config
    grid: Grid
    regions: Mapping[str, np.ndarray]  # on WORKING_GRID
    bases: Mapping[str, Volume]  # what a scan is registered to, and compared with

    @classmethod
    def of(cls, settings: Config) -> Imaging:
        from datxai.imaging.atlas import load_atlas, make_regions, make_template_bases

        atlas = load_atlas(settings.atlas.labels, settings.atlas.names)
        kind, file = settings.registration.kind, settings.registration.template
        if kind not in ("affine", "none"):
            raise InputError(f"registration.kind={kind}: expected affine or none.")
        bases = make_template_bases(atlas, None if file is None else load(file))
        return cls(settings, grid_of(settings), make_regions(WORKING_GRID, atlas), bases)

    def process(self, scan: Volume, name: object) -> tuple[Volume, dict]:
        """One scan through imaging: MNI space, quality control, intensity scaling, SBR, mirroring, the network's grid.

        Returns the volume and its measures: SBR of the patient's own sides, ``mirrored``, ``reference_value``,
        ``transform`` (world mm of MNI space to those of the scan; its inverse takes the scan to MNI space),
        ``similarity`` to the template and ``quality``, as `datxai.imaging.quality.judge` has it. What cannot be used
        is an `InputError` that begins with ``name``.
        """
        try:
            return self._process(scan)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    def _process(self, scan: Volume) -> tuple[Volume, dict]:
        from datxai.imaging import quality
        from datxai.imaging.intensity import scale
        from datxai.imaging.mirror import mirror_to_lower_left
        from datxai.imaging.quantification import measure_sbr

        chosen = self.settings.preprocessing
        transform = self._register(scan)
        fit = quality.measure_fit(scan, transform, self.bases)
        quality.judge(fit)
        covered = covered_fraction(scan, self.grid, transform)
        if covered < chosen.min_coverage:
            raise InputError(
                f"the scan covers {covered:.0%} of grid {self.grid.name}, expected "
                f"{chosen.min_coverage:.0%} or more; choose a smaller grid or a scan with a larger field of view."
            )
        volume = resample(scan, WORKING_GRID, transform, step="register")
        volume = scale(volume, self.regions["reference_region"], chosen.reference_percentile)
        sbr = measure_sbr(volume, self.regions, chosen.putamen_ml, chosen.caudate_ml, chosen.striatum_ml)
        seen = quality.measure_uptake(volume, self.regions) | {"contrast": max(sbr.values())}
        judged = quality.judge(fit | seen)
        mirrored = False
        if chosen.mirror:
            volume, mirrored = mirror_to_lower_left(volume, sbr)
        return resample(volume, self.grid), {
            **sbr,
            "mirrored": mirrored,
            "reference_value": volume.recorded("scale")["reference_value"],
            "transform": transform,
            "similarity": judged["similarity"],
            "quality": judged,
        }

    def follow(self, volume: Volume, measures: Mapping) -> Volume:
        """What lies in the world of a processed scan, on the network's grid: moved and mirrored as ``measures`` say."""
        from datxai.imaging.mirror import mirror

        volume = resample(volume, WORKING_GRID, measures["transform"], step="register")
        return resample(mirror(volume) if measures["mirrored"] else volume, self.grid)

    def _register(self, scan: Volume) -> np.ndarray:
        if self.settings.registration.kind == "none":
            return np.eye(4)
        from datxai.imaging.registration import register

        found = register(scan, self.bases)
        if found.orientation:
            raise InputError(
                f"the scan seems to be stored {found.orientation}: it fits the template clearly better that way than "
                f"as its header says; correct the orientation in the header or, if it is right, give the whole head: "
                f"one that is cut at the top cannot be registered."
            )
        return found.affine


def read_path(path: Path, settings: Config) -> Volume:
    """A scan from a NIfTI file, a DICOM file or a folder with one DICOM series."""
    if not path.exists():
        raise InputError(f"scan={path}: no such file or folder.")
    nifti = path.is_file() and path.name.lower().endswith((".nii", ".nii.gz"))
    return read_scan([path] if nifti else path, "nifti" if nifti else "dicom", settings)


def read_scan(files: Sequence[Path] | Path, form: str, settings: Config) -> Volume:
    """A scan from its files (or their folder), ``form`` 'nifti' or 'dicom'; raw projections are reconstructed."""
    if form == "nifti":
        return load(files[0])
    from datxai.imaging import dicom

    files = dicom.keep_scans(files)
    if dicom.identify(files) == "volume":
        return dicom.read_series(files)
    from datxai.imaging.reconstruction import reconstruct

    chosen = asdict(settings.reconstruction)
    seen = dicom.read_projections(files, chosen.pop("start_angle_deg"), chosen.pop("flip"))
    if chosen["centre"] is None:
        chosen["centre"] = seen.centre_bin
    try:
        volume = reconstruct(seen.counts, seen.angles_deg, seen.pixel_mm, seen.row_spacing_mm, **chosen)
    except InputError as error:
        raise InputError(f"{files[0]}: {error}") from error
    return replace(volume, history=(*seen.history, *volume.history))


def describe_imaging(settings: Config) -> dict:
    """The settings that shape what `Imaging` makes of a volume."""
    groups = ("grid", "registration", "atlas", "preprocessing")
    return {name: describe(getattr(settings, name)) for name in groups}


def grid_of(settings: Config) -> Grid:
    """The grid of the network's input."""
    chosen = settings.grid
    return Grid.axis_aligned(chosen.shape, chosen.spacing, chosen.origin, chosen.name)


def outline_of(regions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Caudate and putamen of both sides: what figures draw to show where the striatum lies."""
    structures = ("caudate_left", "caudate_right", "putamen_left", "putamen_right")
    return np.logical_or.reduce([regions[name] for name in structures])


def predict_label(logits: Sequence[float]) -> dict:
    """What a pair of logits (normal, reduced) says: label, probability of reduced, the logits."""
    normal, reduced = map(float, logits)
    return {
        "predicted": int(reduced > normal),
        "p_reduced": float(1 / (1 + np.exp(np.clip(normal - reduced, -700, 700)))),
        "logit_normal": normal,
        "logit_reduced": reduced,
    }


def read_composite(chosen: Composite) -> tuple[list[dict], dict]:
    """The lines of a composite, and the rest of it as keywords of `attribute`; a file of own rules is executed."""
    from datxai.explain.composite import load_rules

    own_rules = None if chosen.rules_from is None else load_rules(chosen.rules_from)
    how = {"canonizers": chosen.canonizers, "bias": chosen.bias, "own_rules": own_rules}
    return [asdict(layer) for layer in chosen.layers], how


@dataclass(frozen=True)
class Explainer:
    """A trained network and how its decisions are explained."""

    model: object
    settings: Config
    device: str

    @classmethod
    def of(cls, settings: Config, run: Run) -> Explainer:
        from datxai.model import checkpoint

        device = choose_device(settings)
        model, _ = checkpoint.load(run.model, device)
        return cls(model, settings, device)

    def batch_size(self, shape: Sequence[int]) -> int:
        """How many cases of this shape (X, Y, Z) to explain at once."""
        from datxai.explain.batches import choose_batch_size

        chosen = self.settings.attribution
        if chosen.batch_size == "auto":
            kind = "fast" if chosen.method == "lrp" and chosen.rules == "fast" else "zennit"
            return choose_batch_size(self.model, (1, *shape), self.device, kind)
        if not chosen.batch_size.isdecimal() or int(chosen.batch_size) == 0:
            raise InputError(f"attribution.batch_size={chosen.batch_size}: expected auto or a number, such as 4.")
        return int(chosen.batch_size)

    @cached_property
    def parcels(self) -> np.ndarray | None:
        """The atlas as parcels (X, Y, Z), if these are asked for; what is brain and has no label is one more."""
        chosen = self.settings.attribution.parcels
        if chosen not in (None, "atlas"):
            raise InputError(f"attribution.parcels={chosen}: expected atlas, or null for the method's own parts.")
        if chosen is None:
            return None
        from datxai.imaging.atlas import load_atlas, make_parcellation, make_regions

        atlas, grid = load_atlas(self.settings.atlas.labels, self.settings.atlas.names), grid_of(self.settings)
        parcels, _ = make_parcellation(grid, atlas)
        return np.where((parcels == 0) & make_regions(grid, atlas)["brain"], parcels.max() + 1, parcels)

    def attribute(self, x, target: str | int | None = None, labels=None, model=None, ledger=True, answers=None):
        """The `Explanation` of a batch, a float32 tensor (n, 1, X, Y, Z); another target or model goes first.

        ``answers``: what networks have answered so far (`datxai.explain.answers`), to be used and added to.
        """
        from datxai.explain.attribution import attribute

        chosen, composite = self.settings.attribution, self.settings.composite
        lines, how = read_composite(composite) if chosen.method == "lrp" else ((), {})
        return attribute(
            self.model if model is None else model,
            x.to(self.device),
            chosen.method,
            lines,
            target=self.settings.target if target is None else target,
            labels=labels,
            start=chosen.start,
            ledger=ledger,
            rules=chosen.rules,
            precision=chosen.precision,
            at_once=len(x) if chosen.method == "lrp" else self.batch_size(x.shape[2:]),
            parcels=self.parcels,
            options=chosen.options,
            answers=answers,
            **how,
        )

    def explain(self, x, labels: Sequence[int] | None = None) -> list[tuple[np.ndarray, dict]]:
        """Relevance map (X, Y, Z) and its record for each case of a batch, a float32 tensor (n, 1, X, Y, Z)."""
        found = self.attribute(x, labels=labels)
        chosen, composite = self.settings.attribution, self.settings.composite
        method = {"attribution": chosen.method, "target": self.settings.target, "start": chosen.start}
        if chosen.method == "lrp":
            method |= {"composite": composite.name, "rules": chosen.rules, "precision": chosen.precision}
            method |= {} if composite.bias else {"bias": False}
        method |= {key: value for key in ("options", "parcels") if (value := getattr(chosen, key))}
        maps = found.relevance[:, 0].cpu().numpy()
        return [
            (
                data,
                {"method": method, "logits": pair, "seed": seed, "sum": float(data.sum(dtype=float)), "ledger": ledger},
            )
            for data, pair, seed, ledger in zip(maps, found.logits.tolist(), found.seeds, found.ledgers)
        ]


def measure_map(
    relevance: np.ndarray, grid: Grid, regions: Mapping[str, np.ndarray], settings: Config
) -> dict[str, float]:
    """Mean relevance of the hottest voxels in putamen and caudate of both sides, as the SBR is measured."""
    from datxai.imaging.quantification import average_hottest

    return {
        f"{region}_{side}": average_hottest(
            relevance,
            regions[f"{region}_roi_{hemisphere}"],
            getattr(settings.preprocessing, f"{region}_ml"),
            grid.voxel_ml,
        )
        for region in ("putamen", "caudate")
        for side, hemisphere in SIDES.items()
    }


def choose_device(settings: Config) -> str:
    """The device asked for; ``auto`` is a GPU where there is one. Warns of bf16 where it has no instructions for it."""
    import torch

    from datxai.memory import keep_freed_memory

    keep_freed_memory()
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={settings.device} cannot be used here ({reason}); try device=auto.") from error
    lowered = "bf16" in (settings.training.precision, settings.attribution.precision)
    if lowered and device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning("  precision=bf16: this processor has no instructions for it, float32 takes far less time")
    return device
