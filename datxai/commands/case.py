"""One new scan through a trained run: registration, classification, relevance map, report."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

import numpy as np

from datxai.case import SBR, Explainer, Imaging, measure_map, outline_of, predict_label, read_path
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import write_json
from datxai.run import Run
from datxai.volume import load, resample, save

log = logging.getLogger("datxai")


def run(settings: Config, trained: Run) -> None:
    """Explain one new scan (``settings.scan``) by a trained run.

    RUN/cases/NAME holds ``prediction.json``, the scan and its relevance map in MNI space, the relevance map in the
    scan's own space, and ``report.html``; left and right are the patient's own. Nothing is written if the scan
    cannot be used (`InputError`).
    """
    import torch

    from datxai.analysis.figures import plot_case
    from datxai.analysis.relevance import check_consistency, find_peak
    from datxai.analysis.report import write_case_report
    from datxai.analysis.slices import Frame
    from datxai.analysis.style import save_figure
    from datxai.imaging.atlas import load_atlas, make_regions
    from datxai.imaging.mirror import unmirror

    trained.entry("evaluate", "case")
    if settings.scan is None:
        raise InputError("scan has no value; give the file or folder of the scan as scan=PATH.")
    if settings.target == "label":
        raise InputError("target=label needs a labelled case; choose predicted, normal, reduced or difference.")
    path = Path(settings.scan)
    scan = read_path(path, settings)
    name = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".dcm")
    volume, measures = Imaging.of(settings).process(scan, path)
    ((relevance, record),) = Explainer.of(settings, trained).explain(torch.from_numpy(volume.data)[None, None])
    found = predict_label(record["logits"])

    grid = volume.grid
    regions = make_regions(grid, load_atlas(settings.atlas.labels, settings.atlas.names))
    striatum = regions["striatum_left"] | regions["striatum_right"]
    means = [trained.mean_of(f"{group}_relevance") for group in ("TN", "TP")]
    likeness = {"consistent": None}
    if all(path.exists() for path in means):
        likeness = check_consistency(
            relevance, found["predicted"], *(load(path, blank=True).data for path in means), regions["brain"]
        )
    mirrored, judged = measures["mirrored"], measures["quality"]
    here = {
        "spect": unmirror(volume, mirrored),
        "relevance": unmirror(volume.after("explain", relevance, **record["method"]), mirrored),
    }
    peak = find_peak(here["relevance"].data, grid, striatum)
    centre = [0.0, 0.0, 0.0] if peak["x"] is None else [peak["x"], peak["y"], peak["z"]]
    own = resample(here["relevance"], scan.grid, np.linalg.inv(measures["transform"]), step="to_scan_space")

    place = trained.folder / "cases" / name
    for kind, made in here.items():
        save(made, place / f"{name}_space-MNI_{kind}.nii.gz")
    save(own, place / f"{name}_relevance.nii.gz", mni=False)
    result = {"scan": path.name, **found, **measures, **record, "peak": peak, **likeness}
    write_json(place / "prediction.json", result)
    index = np.rint(grid.mm_to_index(centre)).astype(int)
    frame = Frame(grid, outline_of(regions), regions["brain"])
    save_figure(plot_case(frame, here["spect"].data, here["relevance"].data, index, ("L", "R")), place / "case")
    write_case_report(
        place / "report.html",
        {
            "case_id": name,
            "created": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            "predicted": found["predicted"],
            "p_reduced": found["p_reduced"],
            "volumes": here,
            "outline": outline_of(regions),
            "figures": {"case": place / "case.png"},
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
            "quality": {**judged, "reference_value": measures["reference_value"], "mirrored": mirrored},
            "warnings": [judged["reason"]] if judged["verdict"] != "green" else [],
            "ledger": record["ledger"],
        },
    )
    log.info(
        "%s: %s (p = %.3f), SBR of the lower putamen %.2f\nReport: %s",
        path.name,
        ("normal", "reduced")[found["predicted"]],
        found["p_reduced"],
        min(measures["putamen_left"], measures["putamen_right"]),
        place / "report.html",
    )
