"""How long does it take to find and read an archive of DICOM files in nested folders, and is every file accounted for?

    python -m benchmarks.archive [--files 2000] [--n-jobs 2]

One file in twenty is odd: another modality, a screen capture, a report, a DICOMDIR, a picture, notes, or
empty. Targets: 2,000 files in at most 10 s on two cores, memory that does not grow with the number of scans, and each
odd file listed once, with the reason.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from datxai.cohort.sources import CohortScan, find_dicom
from datxai.config import Reconstruction
from datxai.files import write_table
from datxai.imaging.dicom.objects import write_object
from datxai.progress import parallel
from datxai.scan import Scan

SLICES, SHAPE, VOXEL_MM = 38, (64, 64), 4.0
ODD = 20  # one file in this many
NM, CT, CAPTURE, REPORT = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("20", "2", "7", "88.11"))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--n-jobs", type=int, default=2)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        odd = make_archive(root, given.files)
        begin = time.perf_counter()
        scans, listed = find_dicom(root)
        found_s = time.perf_counter() - begin
        tasks = ((scan,) for scan in scans)
        read = list(parallel(read_scan, tasks, len(scans), given.n_jobs, "scans read"))
        seconds = time.perf_counter() - begin
    reasons = [reason for _, reason in listed] + [reason for _, listed, _ in read for reason in listed]
    times = Counter(reason.partition(": ")[0] for reason in reasons)
    if times != Counter(map(str, odd)):
        wrong = [str(path) for path in odd if times[str(path)] != 1] or sorted(set(times) - set(map(str, odd)))
        raise SystemExit(f"these should be listed once and are not: {', '.join(wrong)}")
    shapes, peaks = {shape for shape, *_ in read}, [peak for *_, peak in read]
    assert shapes == {(*SHAPE, SLICES)}, shapes
    half = len(peaks) // 2
    print(f"{given.files} files, {len(scans)} scans, {given.n_jobs} processes")
    print(f"{seconds:.2f} s in all, {found_s:.2f} s of them to find the files")
    print(f"{len(odd)} odd files, each listed once")
    print(f"peak memory of a process, MiB: {statistics.median(peaks[:half]):.0f} in the first half of the scans, "
          f"{statistics.median(peaks[half:]):.0f} in the second")  # fmt: skip


def read_scan(scan: CohortScan) -> tuple[tuple[int, ...], list[str], float]:
    """The shape of a scan, the files beside it, and the peak memory of this process in MiB."""
    opened = Scan(scan.files, scan.format)
    volume = opened.read(Reconstruction())
    listed = [f"{path}: {reason}" for path, reason in opened.others]
    return volume.shape, listed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def make_archive(root: Path, files: int) -> list[Path]:
    """Write scans of one file per slice, in nested folders, with odd files among them; return the odd ones."""
    rng = np.random.default_rng(0)
    n_odd = files // ODD
    people = [f"{number:03d}" for number in range(max((files - n_odd) // SLICES, 2))]
    write_table(
        root / "participants.tsv",
        [{"participant_id": name, "label": number % 2} for number, name in enumerate(people)],
        ["participant_id", "label"],
    )
    for name in people:
        write_scan(root / name / "disc" / "2020" / "series", name, rng)
    makers = (write_ct, write_capture, write_report, write_dicomdir, write_picture, write_notes, write_nothing)
    odd = []
    for number in range(n_odd):
        place = root / people[number % len(people)] / "disc" / ("2020", "2020/series", "VIEWER/bin")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        odd.append(makers[number % len(makers)](place, number))
    return odd


def write_scan(folder: Path, patient: str, rng: np.random.Generator) -> None:
    series = generate_uid()
    for z in range(SLICES):
        write_object(folder / f"IM{z:04d}", NM, generate_uid(), {
            "Modality": "NM", "PatientID": patient, "SeriesInstanceUID": series, "StudyInstanceUID": series,
            "ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], "NumberOfSlices": SLICES,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, VOXEL_MM * z],
            "PixelSpacing": [VOXEL_MM, VOXEL_MM], "SliceThickness": VOXEL_MM, **_pixels(rng.poisson(100, SHAPE)),
        })  # fmt: skip


def _pixels(values: np.ndarray) -> dict:
    return {
        "Rows": values.shape[0], "Columns": values.shape[1], "SamplesPerPixel": 1, "PixelRepresentation": 0,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
        "PixelData": values.astype("<u2").tobytes(),
    }  # fmt: skip


def write_ct(folder: Path, number: int) -> Path:
    write_object(folder / f"CT{number}", CT, generate_uid(), {"Modality": "CT", **_pixels(np.ones(SHAPE))})
    return folder / f"CT{number}"


def write_capture(folder: Path, number: int) -> Path:
    write_object(folder / f"SC{number}", CAPTURE, generate_uid(), {"Modality": "NM", **_pixels(np.ones(SHAPE))})
    return folder / f"SC{number}"


def write_report(folder: Path, number: int) -> Path:
    write_object(folder / f"SR{number}", REPORT, generate_uid(), {"Modality": "SR"})
    return folder / f"SR{number}"


def write_dicomdir(folder: Path, number: int) -> Path:
    place = folder / f"{number}" / "DICOMDIR"
    place.parent.mkdir()
    place.write_bytes(bytes(128) + b"DICM" + bytes(400))
    return place


def write_picture(folder: Path, number: int) -> Path:
    (folder / f"{number}.png").write_bytes(b"\x89PNG" + bytes(400))
    return folder / f"{number}.png"


def write_notes(folder: Path, number: int) -> Path:
    (folder / f"{number}.txt").write_text("acquired twice\n")
    return folder / f"{number}.txt"


def write_nothing(folder: Path, number: int) -> Path:
    (folder / f"EMPTY{number}").touch()
    return folder / f"EMPTY{number}"


if __name__ == "__main__":
    main()
