"""The result folder of a new scan: page, PDF, numbers, NIfTI volumes, and DICOM on request."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datxai import __version__
from datxai.anatomy import Anatomy
from datxai.case import tabulate_measures
from datxai.files import UNFINISHED, write_json
from datxai.pages.content import CasePage, MapBeside, PriorScan
from datxai.reading import Reading, timed
from datxai.reference import Reference
from datxai.volume import RELEVANCE, UPTAKE, Volume, save

CHART_DPI = 250  # of a chart, which is shown at half this resolution
SCREEN_DPI = 200  # of the picture of a case, shown at half this resolution if the page's viewer cannot run
AMONG_NORMALS = {  # measures drawn among those of normal cases
    "putamen_left": "left putamen",
    "caudate_left": "left caudate",
    "caudate_putamen_ratio_left": "caudate / putamen, left",
    "putamen_right": "right putamen",
    "caudate_right": "right caudate",
    "caudate_putamen_ratio_right": "caudate / putamen, right",
}


class Saved(NamedTuple):
    """A volume of the folder: its description, its file, and whether it is in MNI space."""

    title: str
    file: str
    volume: Volume
    mni: bool
    shows: str = RELEVANCE


def write_reading(
    reading: Reading, folder: Path, anatomy: Anatomy, reference: Reference, home: str | None = None
) -> Path:
    """Write a reading to ``folder``: report.html and .pdf, prediction.json, NIfTI volumes, DICOM on request.

    Everything is written beside the folder and then moved into it, so a failure leaves nothing behind. Files of an
    earlier reading are replaced, except for DICOM, whose names are new each time. prediction.json holds the ``result``
    of the reading, with the time taken by writing. ``home`` is the address for the next scan. Returns the folder.
    """
    from datxai.pages.document import write_case_pdf
    from datxai.pages.report import write_case_report

    timings = dict(reading.result["timings"])
    with _replacing_files(folder) as staging:
        downloads = {"PDF": "report.pdf", "numbers (JSON)": "prediction.json"}
        volumes = _list_volumes(reading)
        downloads |= {f"{saved.title} (NIfTI)": saved.file for saved in volumes}
        if reading.source is not None:
            with timed(timings, "dicom"):
                for path in _write_dicom(reading, staging):
                    kind = "map" if path.name.startswith("relevance-map") else "colour pictures"
                    downloads[f"relevance {kind} (DICOM)"] = path.name
        page = replace(
            describe_reading(reading, anatomy, reference), downloads=downloads, picture=staging / "case.png", home=home
        )
        with timed(timings, "write"), ThreadPoolExecutor(1) as other_thread:
            saving = [other_thread.submit(save, v.volume, staging / v.file, mni=v.mni, shows=v.shows) for v in volumes]
            _draw(reading, anatomy, staging / "case")
            page = replace(page, beside=_draw_beside(reading, page.beside, anatomy, staging))
            if _draw_among_normals(reading, reference, staging / "normals"):
                page = replace(page, among_normals=staging / "normals.png")
            write_case_pdf(staging / "report.pdf", replace(page, timings=timings))
            for task in saving:
                task.result()
        with timed(timings, "page"):
            write_case_report(staging / "report.html", replace(page, timings=timings))
        write_json(staging / "prediction.json", reading.result | {"timings": timings})
    return folder


@contextmanager
def _replacing_files(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into ``folder`` if, and only if, all of them could be written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    try:
        yield temporary
        folder.mkdir(exist_ok=True)
        for path in temporary.iterdir():
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _list_volumes(reading: Reading) -> list[Saved]:
    name = reading.name
    return [
        Saved("relevance in the scan's own space", f"{name}_relevance.nii.gz", reading.own_relevance, False),
        Saved("relevance in MNI space", f"{name}_space-MNI_relevance.nii.gz", reading.relevance, True),
        Saved("scan in MNI space", f"{name}_space-MNI_spect.nii.gz", reading.spect, True, UPTAKE),
        *(
            Saved(f"{other}: {title}", f"{name}_{other}{ending}_relevance.nii.gz", volume, mni)
            for other, map_ in reading.beside.items()
            for title, ending, volume, mni in (
                ("relevance in the scan's own space", "", map_.own_relevance, False),
                ("relevance in MNI space", "_space-MNI", map_.relevance, True),
            )
        ),
    ]


def _draw(reading: Reading, anatomy: Anatomy, path: Path) -> None:
    """The picture of the slices through the most relevant voxel."""
    from datxai.pages.figures import plot_case
    from datxai.pages.style import save_figure

    index = _find_peak(reading.relevance, reading.result["peak"])
    prior = reading.prior and (reading.prior.spect.data, reading.prior.relevance.data)
    figure = plot_case(anatomy.frame, reading.spect.data, reading.relevance.data, index, ("L", "R"), prior)
    save_figure(figure, path, ("png",), SCREEN_DPI)


def _draw_beside(
    reading: Reading, beside: Mapping[str, MapBeside], anatomy: Anatomy, folder: Path
) -> dict[str, MapBeside]:
    """The maps of other explanations with a picture of each, through its own most relevant voxel."""
    from datxai.pages.figures import plot_case
    from datxai.pages.style import save_figure

    for name, map_ in reading.beside.items():
        index = _find_peak(map_.relevance, map_.result["peak"])
        figure = plot_case(anatomy.frame, reading.spect.data, map_.relevance.data, index, ("L", "R"))
        save_figure(figure, folder / f"case_{name}", ("png",), SCREEN_DPI)
    return {name: replace(map_, picture=folder / f"case_{name}.png") for name, map_ in beside.items()}


def _find_peak(relevance: Volume, peak: Mapping) -> np.ndarray:
    """The voxel of a peak, or of the world's origin if there is none."""
    position = [0.0, 0.0, 0.0] if peak["x"] is None else [peak["x"], peak["y"], peak["z"]]
    return np.rint(relevance.grid.mm_to_index(position)).astype(int)


def _draw_among_normals(reading: Reading, reference: Reference, path: Path) -> bool:
    """Draw the binding ratios among those of the run's normal cases, if they have a range by age; returns whether."""
    from datxai.pages.charts import plot_among_normals
    from datxai.pages.style import save_figure

    result, panels = reading.result, {}
    age, sex = result["age"], result["sex"]
    for name, title in AMONG_NORMALS.items():
        normal_range = reference.ranges.get(name)
        expected = normal_range and normal_range.trace(age, sex)
        if expected:
            cases = [case for case in reference.normals if None not in (case["age"], case.get(name))]
            columns = ([case["age"] for case in cases], [case[name] for case in cases])
            same_sex = [expected["sex"] is None or case["sex"] == expected["sex"] for case in cases]
            panels[title] = {"value": result[name], "curve": expected, "cloud": (*columns, same_sex)}
    if panels:
        save_figure(plot_among_normals(panels, age), path, ("png",), CHART_DPI)
    return bool(panels)


def describe_reading(reading: Reading, anatomy: Anatomy, reference: Reference) -> CasePage:
    """The content of the page of a new scan."""
    from datxai.analysis.normal_range import describe_range
    from datxai.pages.tables import format_number

    result = reading.result
    return CasePage(
        case_id=reading.name,
        created=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        predicted=result["predicted"],
        p_reduced=result["p_reduced"],
        probability=result["probability"],
        volumes={"spect": reading.spect, "relevance": reading.relevance},
        own_volumes={
            "spect": replace(reading.scan, data=reading.scan.data / np.float32(result["reference_value"])),
            "relevance": reading.own_relevance,
        },
        outline=anatomy.outline,
        brain=anatomy.brain,
        radiological=anatomy.radiological,
        sbr=tabulate_measures(result),
        normal_range=result["normal_range"],
        normal_range_source=describe_range(reference.ranges, result["normal_range"], result["age"], result["sex"]),
        prior=_describe_prior(reading),
        subject={"age": result["age"], "sex": result["sex"], "date of the scan": result.get("scan_date")},
        relevance={
            "ipsilateral side": "right" if result["mirrored"] else "left",
            **result["roi_relevance"],
            "likeness_to_mean_TN": result.get("r_normal"),
            "likeness_to_mean_TP": result.get("r_reduced"),
            "consistent": result["consistent"],
        },
        explanation={
            "name": result["explanation"],
            **result["method"],
            "seed (normal, reduced)": ", ".join(map(format_number, result["seed"])),
            "sum": result["sum"],
        },
        quality=result["quality"] | {key: result[key] for key in ("reference_value", "mirrored")},
        shift=result["shift"],
        provenance={"datxai": __version__, **{key: result["made_by"].get(key) for key in ("folder", "network")}}
        | {key: reference.evaluated[key] for key in ("finished", "fingerprint")},
        warnings=result["warnings"],
        ledger=result["ledger"],
        beside=_describe_beside(reading),
    )


def _describe_beside(reading: Reading) -> dict[str, MapBeside]:
    return {
        name: MapBeside(
            relevance=map_.relevance,
            own_relevance=map_.own_relevance,
            explanation={**map_.result["method"], "sum": map_.result["sum"]},
            measures={**map_.result["roi_relevance"], "consistent": map_.result["consistent"]},
        )
        for name, map_ in reading.beside.items()
    }


def _describe_prior(reading: Reading) -> PriorScan | None:
    from datxai.analysis.change import SOURCE

    if reading.prior is None:
        return None
    prior = reading.result["prior"]
    interval = "an unknown time" if prior["years"] is None else f"{prior['years']:g} years"
    return PriorScan(
        title=f"{prior['scan']}, {interval} before",
        volumes={"spect": reading.prior.spect, "relevance": reading.prior.relevance},
        change=prior["change"],
        source=SOURCE,
    )


def _write_dicom(reading: Reading, folder: Path) -> list[Path]:
    from datxai.imaging.dicom import write_dicom_results
    from datxai.pages.viewer import relevance_colours

    assert reading.source is not None
    method: Mapping = reading.result["method"]
    description = f"Relevance ({', '.join(str(method[key]) for key in ('attribution', 'composite') if key in method)})"
    return write_dicom_results(
        folder, reading.source, reading.own_relevance, reading.scan, relevance_colours(), description[:64]
    )
