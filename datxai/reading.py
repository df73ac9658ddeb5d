"""The results of a run for one scan, and doubts about them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from datxai.case import HALVES, SBR
from datxai.volume import Volume

if TYPE_CHECKING:
    from datxai.imaging.dicom import Source


@dataclass(frozen=True, eq=False)
class MapOf:
    """The map of a scan by one explanation, in MNI space and in the scan's own space, and its measures."""

    relevance: Volume
    own_relevance: Volume
    result: dict


@dataclass(frozen=True, eq=False)
class Reading:
    """The results of a run for one scan. Left and right are the patient's own.

    Attributes
    ----------
    name : of the scan's file or folder, without suffix
    scan, own_relevance : Volume in the scan's own space, with axes in RAS+ order
    spect, relevance : Volume in MNI space on the network's grid; scaled uptake, and relevance
    result : the content of ``prediction.json``: ``predicted``, ``p_reduced``, ``probability``, binding ratios with
        their ``normal_range``, ``quality``, ``shift`` (see `datxai.analysis.shift.Shift.judge`; None: not judged),
        ``consistent``, ``warnings``, ``peak``, ``ledger``, ``timings`` in seconds
    source : of the DICOM results, if requested
    beside : the maps of the same decision by other requested explanations of the run
    prior : the reading of an earlier scan of the same person, see `compare`
    """

    name: str
    scan: Volume
    spect: Volume
    relevance: Volume
    own_relevance: Volume
    result: dict
    source: Source | None = None
    beside: Mapping[str, MapOf] = field(default_factory=dict)
    prior: Reading | None = None


def compare(reading: Reading, prior: Reading, years: float | None = None) -> Reading:
    """A reading with that of an earlier scan of the same person, ``years`` before (None if unknown).

    Its ``result`` has ``prior``: the ``scan``, ``years``, and the ``change`` of each binding ratio, see
    `datxai.analysis.change.measure_change`. Of the earlier scan only the name is given, not the date.
    """
    from datxai.analysis.change import measure_change

    names = (*SBR, *HALVES)
    now, before = ({name: each.result[name] for name in names} for each in (reading, prior))
    comparison = {"scan": prior.result["scan"], "years": years, "change": measure_change(now, before, years)}
    return replace(reading, prior=prior, result=reading.result | {"prior": comparison})


def find_doubts(result: Mapping) -> list[str]:
    """Reasons to doubt a reading, one sentence each."""
    doubts, judged = [], result["quality"]
    if judged["verdict"] != "green":
        doubts.append(f"The scan or its registration is doubtful: {judged['reason']}.")
    if result["shift"] and result["shift"]["marked"]:
        beyond = [name for name, row in result["shift"]["measures"].items() if row["marked"]]
        doubts.append(
            f"The scan is unlike the training scans of the run ({', '.join(beyond)}): what was found on the test cases "
            f"may not hold for it."
        )
    if result["tracer"]:
        from datxai.imaging.dicom import is_dat_tracer

        if not is_dat_tracer(result["tracer"]):
            doubts.append(
                f"The header names the tracer {result['tracer']}; the network was trained on scans of the dopamine "
                f"transporter only, and calls any other scan normal or reduced as well."
            )
    if result["uncertain"]:
        doubts.append("The probability is close to one half: the network is uncertain.")
    if result["consistent"] is False:
        doubts.append("The map is more like those of the other class: the decision may be wrong.")
    return doubts


def deidentify_subject(subject: Mapping) -> dict:
    """The subject of a header without age, sex and free text."""
    from datxai.imaging.dicom import is_dat_tracer

    other = subject["tracer"] is not None and not is_dat_tracer(subject["tracer"])
    return {"age": None, "sex": None, "tracer": "(left out)" if other else None, "doubt": None}


def forget_files(reading: Reading, name: str) -> Reading:
    """The reading under another name, without the names and the hash of the scan's files."""
    fields = ("scan", "spect", "relevance", "own_relevance")
    beside = {
        other: MapOf(_forget_file(map_.relevance), _forget_file(map_.own_relevance), map_.result)
        for other, map_ in reading.beside.items()
    }
    result = {key: value for key, value in reading.result.items() if key != "scan_hash"} | {"scan": name}
    anonymous = {field: _forget_file(getattr(reading, field)) for field in fields}
    return replace(reading, name=name, result=result, beside=beside, **anonymous)


def _forget_file(volume: Volume) -> Volume:
    """The volume without file names in its history."""
    steps = ({key: value for key, value in step.items() if key != "file"} for step in volume.history)
    return replace(volume, history=tuple(steps))


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the duration of the block in seconds to ``timings``."""
    begin = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - begin, 3)
