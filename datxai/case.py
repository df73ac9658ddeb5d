"""One scan through the house: imaging, network, explanation. The stages do it for many, `report_case` for one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from datxai.config import Config
from datxai.errors import InputError
from datxai.files import write_json
from datxai.run import Run
from datxai.volume import Grid, Volume, covered_fraction, load, resample, save

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
    bases: Mapping[str, Volume] | None  # what a scan is registered to; None: it is in MNI space

    @classmethod
    def of(cls, settings: Config) -> Imaging:
        from datxai.imaging.atlas import HEAD, load_atlas, make_regions, make_template_bases

        atlas = load_atlas(settings.atlas.labels, settings.atlas.names)
        kind, file = settings.registration.kind, settings.registration.template
        if kind not in ("affine", "none"):
            raise InputError(f"registration.kind={kind}: expected affine or none.")
        bases = None
        if kind == "affine":
            bases = make_template_bases(atlas)
            if file is not None:  # a template of brains still lacks the rest of the head
                bases = {"template": resample(load(file), HEAD), "scalp": bases["scalp"], "glands": bases["glands"]}
        return cls(settings, grid_of(settings), make_regions(WORKING_GRID, atlas), bases)

    def process(self, scan: Volume, name: object) -> tuple[Volume, dict]:
        """One scan through imaging: MNI space, intensity scaling, SBR, mirroring, the grid of the network.

        Returns the volume and its measures: SBR of the patient's own sides, ``mirrored``, ``reference_value``,
        ``transform`` (world mm of MNI space to those of the scan) and ``similarity`` to the template. What cannot be
        used is an `InputError` that begins with ``name``.
        """
        try:
            return self._process(scan)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    def _process(self, scan: Volume) -> tuple[Volume, dict]:
        from datxai.imaging.intensity import scale
        from datxai.imaging.mirror import mirror_to_lower_left
        from datxai.imaging.quantification import measure_sbr

        chosen = self.settings.preprocessing
        transform, quality = np.eye(4), {"similarity": None}
        if self.bases is not None:
            from datxai.imaging.registration import register

            found = register(scan, self.bases)
            if not found.plausible:
                raise InputError(
                    f"registration to the template failed ({found.reason}); check that it is a head and that "
                    f"its orientation is right, or leave it out with on_error=skip."
                )
            transform, quality = found.affine, {"similarity": found.similarity}
        covered = covered_fraction(scan, self.grid, transform)
        if covered < chosen.min_coverage:
            raise InputError(
                f"the scan covers {covered:.0%} of grid {self.grid.name}, expected "
                f"{chosen.min_coverage:.0%} or more; choose a smaller grid or a scan with a larger field of view."
            )
        volume = resample(scan, WORKING_GRID, transform, step="register")
        volume = scale(volume, self.regions["reference_region"], chosen.reference_percentile)
        sbr = measure_sbr(volume, self.regions, chosen.putamen_ml, chosen.caudate_ml, chosen.striatum_ml)
        mirrored = False
        if chosen.mirror:
            volume, mirrored = mirror_to_lower_left(volume, sbr)
        reference = volume.recorded("scale")["reference_value"]
        return resample(volume, self.grid), {
            **sbr,
            "mirrored": mirrored,
            "reference_value": reference,
            "transform": transform,
            **quality,
        }


def report_case(settings: Config, run: Run) -> Path:
    """Explain one new scan (``settings.scan``) by a trained run; returns the folder of what was made.

    RUN/cases/NAME holds ``prediction.json``, the scan and its relevance map in MNI space, the relevance map in the
    scan's own space, and ``report.html``; left and right are the patient's own. Nothing is written if the scan
    cannot be used (`InputError`).
    """
    import torch

    from datxai.analysis.figures import plot_case, save_figure
    from datxai.analysis.relevance import check_consistency, find_peak
    from datxai.analysis.report import write_case_report
    from datxai.analysis.slices import Frame
    from datxai.imaging.atlas import load_atlas, make_regions
    from datxai.imaging.mirror import unmirror

    run.entry("evaluate", "case")
    if settings.scan is None:
        raise InputError("scan has no value; give the file or folder of the scan as scan=PATH.")
    if settings.target == "label":
        raise InputError("target=label needs a labelled case; choose predicted, normal, reduced or difference.")
    path = Path(settings.scan)
    scan = read_path(path, settings)
    name = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".dcm")
    volume, measures = Imaging.of(settings).process(scan, path)
    ((relevance, record),) = Explainer.of(settings, run).explain(torch.from_numpy(volume.data)[None, None])
    found = predict_label(record["logits"])

    grid = volume.grid
    regions = make_regions(grid, load_atlas(settings.atlas.labels, settings.atlas.names))
    striatum = regions["striatum_left"] | regions["striatum_right"]
    means = [run.mean_of(f"{group}_relevance") for group in ("TN", "TP")]
    likeness = {"consistent": None}
    if all(path.exists() for path in means):
        likeness = check_consistency(
            relevance, found["predicted"], *(load(path, blank=True).data for path in means), regions["brain"]
        )
    mirrored = measures["mirrored"]
    here = {
        "spect": unmirror(volume, mirrored),
        "relevance": unmirror(volume.after("explain", relevance, **record["method"]), mirrored),
    }
    peak = find_peak(here["relevance"].data, grid, striatum)
    centre = [0.0, 0.0, 0.0] if peak["x"] is None else [peak["x"], peak["y"], peak["z"]]
    own = resample(here["relevance"], scan.grid, np.linalg.inv(measures["transform"]), step="to_scan_space")

    folder = run.folder / "cases" / name
    for kind, made in here.items():
        save(made, folder / f"{name}_space-MNI_{kind}.nii.gz")
    save(own, folder / f"{name}_relevance.nii.gz", mni=False)
    result = {"scan": path.name, **found, **measures, **record, "peak": peak, **likeness}
    write_json(folder / "prediction.json", result)
    index = np.rint(grid.mm_to_index(centre)).astype(int)
    frame = Frame(grid, outline_of(regions), regions["brain"])
    save_figure(plot_case(frame, here["spect"].data, here["relevance"].data, index, ("L", "R")), folder / "case")
    write_case_report(
        folder / "report.html",
        {
            "case_id": name,
            "created": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            "predicted": found["predicted"],
            "p_reduced": found["p_reduced"],
            "figures": {"case": folder / "case.png"},
            "sbr": {key: measures[key] for key in SBR},
            "relevance": {
                **measure_map(relevance, grid, regions, settings),
                "likeness_to_mean_TN": likeness.get("r_normal"),
                "likeness_to_mean_TP": likeness.get("r_reduced"),
                "consistent": likeness["consistent"],
            },
            "explanation": {
                **record["method"],
                "seed (normal, reduced)": ", ".join(f"{value:.4g}" for value in record["seed"]),
                "sum": record["sum"],
            },
            "quality": {key: measures[key] for key in ("similarity", "reference_value", "mirrored")},
            "ledger": record["ledger"],
        },
    )
    log.info(
        "%s: %s (p = %.3f), SBR of the lower putamen %.2f\nReport: %s",
        path.name,
        ("normal", "reduced")[found["predicted"]],
        found["p_reduced"],
        min(measures["putamen_left"], measures["putamen_right"]),
        folder / "report.html",
    )
    return folder


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

    if dicom.identify(files) == "volume":
        return dicom.read_series(files)
    from datxai.imaging.reconstruction import reconstruct

    chosen = asdict(settings.reconstruction)
    seen = dicom.read_projections(files, chosen.pop("start_angle_deg"), chosen.pop("flip"))
    volume = reconstruct(seen.counts, seen.angles_deg, seen.pixel_mm, seen.row_spacing_mm, **chosen)
    return replace(volume, history=(*seen.history, *volume.history))


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

    def explain(self, x, labels: Sequence[int] | None = None) -> list[tuple[np.ndarray, dict]]:
        """Relevance map (X, Y, Z) and its record for each case of a batch, a float32 tensor (n, 1, X, Y, Z)."""
        from datxai.explain.attribution import attribute

        chosen, composite = self.settings.attribution, self.settings.composite
        found = attribute(
            self.model,
            x.to(self.device),
            chosen.method,
            [asdict(layer) for layer in composite.layers],
            composite.canonizers,
            self.settings.target,
            labels,
            chosen.start,
        )
        method = {"attribution": chosen.method, "target": self.settings.target, "start": chosen.start}
        if chosen.method == "lrp":
            method["composite"] = composite.name
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
    """The device asked for; ``auto`` is a GPU where there is one."""
    import torch

    from datxai.memory import keep_freed_memory

    keep_freed_memory()
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={settings.device} cannot be used here ({reason}); try device=auto.") from error
    return settings.device
