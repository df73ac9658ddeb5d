"""Shared by all DICOM readers: files, elements, pixels, and the kind of scan.

Messages name the file and its fault; the patient's identity is neither kept nor shown. Files are not trusted: what a
header claims is checked before memory is allocated, and its text is shortened and escaped before it is shown.
"""

from __future__ import annotations

import gzip
import io
import logging
import mmap
import os
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datxai.errors import InputError
from datxai.forms import (
    DICOM,
    DICOMDIR,
    GZIP,
    HEAD,
    PREFIX,
    tell_form,
    tell_form_of,
    tell_form_of_part,
    walk,
)  # fmt: skip
from datxai.nifti import SPACING_RANGE_MM

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PROJECTIONS = "TOMO"  # third value of Image Type, DICOM PS3.3 C.8.4.9
PLANAR = {"STATIC", "DYNAMIC", "WHOLE BODY"}
GATED = {"GATED", "GATED TOMO", "RECON GATED TOMO"}
TRANSMISSION = {"TRANSMISSION"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
IMAGE_CLASSES = {f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("20", "128", "128.1", "130", "5")}  # of SPECT and PET
SCANS = {"NM", "PT", "ST"}  # modalities of DAT scans
PHOTOPEAK_KEV = 159.0  # of I-123
LARGEST_PIXELS = 2**26  # of one file: 512 x 512 x 256
LARGEST_UNPACKED = 8 * LARGEST_PIXELS  # bytes of a deflated file
LONGEST_TEXT = 64  # characters, as in the value representation Long String
CHUNK = 2**20
PREAMBLE = 128  # bytes before the prefix
BULK = {"OB", "OW", "UN"}  # value representations that can hide pixels


Files = str | os.PathLike | Iterable[str | os.PathLike]


@dataclass(frozen=True, eq=False)
class Header:
    """The header of a file; ``kind`` is 'projections' or 'volume', ``other`` why it cannot belong to a scan."""

    path: Path
    elements: Any  # a pydicom dataset without pixels
    modality: str
    is_image: bool
    is_capture: bool
    kind: str
    other: str

    @contextmanager
    def open(self) -> Iterator:
        """The dataset without pixels. Any failure while it is in use is blamed on the file, as an `InputError`."""
        with _blaming(self.path):
            yield self.elements


@dataclass(frozen=True, eq=False)
class Series:
    """The DICOM files of one scan; each header is read once.

    Every function here that takes files also takes a series, and then reads no header again.
    """

    paths: tuple[Path, ...]
    others: tuple[tuple[Path, str], ...] = ()  # skipped files beside the scan, and why
    headers: dict[Path, Header] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Files | Series) -> Series:
        """The files of a scan without the unrelated ones beside it; see `survey`."""
        if isinstance(files, Series):
            return files
        paths, others, forms = _list_files(files)
        everything = cls(tuple(paths), tuple(sorted(others)))
        if len(paths) == 1:
            return everything
        scans = []
        for path in paths:
            reason = everything.why_no_scan(path, forms.get(path) or tell_form_of_part(path))
            others.append((path, reason)) if reason else scans.append(path)
        return cls(tuple(scans), tuple(sorted(others)), everything.headers) if scans else everything

    def header(self, path: Path) -> Header:
        """The header of one of the files."""
        if path not in self.headers:
            self.headers[path] = _read_header(path)
        return self.headers[path]

    def why_no_scan(self, path: Path, form: str) -> str:
        """Why a file of this form does not belong to a scan; empty if it may."""
        if form != DICOM:
            return "is not DICOM"
        header = self.header(path)
        if not (header.modality or header.is_image):
            raise InputError(
                f"{path}: ends before its modality and may belong to the scan; it is truncated or damaged, export it "
                f"again or remove it."
            )
        if header.modality not in SCANS:
            return f"is of modality {header.modality or 'unknown'}"
        return "is a capture of the screen" if header.is_capture else header.other


def identify(files: Files | Series) -> str:
    """The kind of data in the files of one scan, from their headers: 'projections' or 'volume'.

    Raises `InputError` if they hold both, if they hold planar, gated or transmission images, or if their modality is
    neither NM nor PET.
    """
    series = files if isinstance(files, Series) else Series(tuple(list_files(files)))
    kinds = {}
    for path in series.paths:
        header = series.header(path)
        if header.modality not in SCANS:
            raise InputError(
                f"{path}: is of modality {header.modality or 'unknown'}, expected a SPECT or PET scan (NM, PT); remove "
                f"it."
            )
        if header.other:
            raise InputError(f"{path}: {header.other}; remove it.")
        kinds[header.kind] = path
    if len(kinds) > 1:
        raise InputError(
            f"{kinds['projections']}: holds projections, and {kinds['volume']} of the same participant and session a "
            f"reconstructed volume, expected one of them; remove the other."
        )
    return next(iter(kinds))


def part_series(files: Files, damaged: list[tuple[Path, str]] | None = None) -> list[Series]:
    """The scans among files or in a folder, one `Series` per patient and series.

    If ``damaged`` is given, files whose header cannot be read are added to it with the reason, instead of raising
    `InputError`.
    """
    paths, others, forms = _list_files(files)
    everything, scans = Series(tuple(paths)), defaultdict(list)
    for path in paths:
        try:
            reason = everything.why_no_scan(path, forms.get(path) or tell_form_of_part(path))
            if reason:
                others.append((path, reason))
                continue
            with everything.header(path).open() as dataset:
                scans[str(dataset.get("PatientID", "")), str(dataset.get("SeriesInstanceUID", ""))].append(path)
        except InputError as error:
            if damaged is None:
                raise
            damaged.append((path, str(error)))
    if not scans and not damaged:  # the error is raised when they are read
        return [Series.of(files)]
    beside = [tuple(sorted(others)), *[()] * len(scans)]  # listed with the first scan only
    return [Series(tuple(parts), listed, everything.headers) for parts, listed in zip(scans.values(), beside)]


def keep_scans(files: Files) -> list[Path]:
    """The paths without the unrelated files beside a scan (see `survey`)."""
    return survey(files)[0]


def survey(files: Files) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files of a scan, and the unrelated files beside it with the reason for skipping each.

    Unrelated are other modalities, such as the CT of a SPECT/CT, screen captures, planar, gated and transmission
    images, objects that are not images, and files that are not DICOM. If nothing else is there, all are kept, and the
    error is raised when they are read. A damaged DICOM file may belong to the scan: an `InputError`.
    """
    series = Series.of(files)
    return list(series.paths), list(series.others)


def list_files(files: Files | Series) -> list[Path]:
    """The paths; of a folder, all files at any depth that are DICOM or named so. A DICOMDIR stands for its folder."""
    return list(files.paths) if isinstance(files, Series) else _list_files(files)[0]


def _list_files(files: Files) -> tuple[list[Path], list[tuple[Path, str]], dict[Path, str]]:
    """The paths of `list_files`, the other files of a folder with the reason for skipping each, and the forms of the
    files examined so far."""
    others, forms = [], {}
    single = isinstance(files, (str, os.PathLike))
    paths = [Path(files)] if single else sorted(map(Path, files))
    if single and paths[0].is_file() and tell_form(paths[0]) == DICOMDIR:
        paths = [paths[0].parent]
    if single and paths[0].is_dir():
        folder, forms = paths[0], {path: tell_form_of_part(path) for path in walk(paths[0])}
        paths = [path for path, form in forms.items() if form == DICOM or (not form and _is_named_dicom(path))]
        others = [(path, f"is {forms[path] or 'not DICOM'}") for path in forms.keys() - {*paths}]
        if DICOM not in forms.values():
            raise InputError(
                f"{folder}: holds no DICOM file among {len(forms)} files, expected the files of one series; give the "
                f"folder that holds them, or a NIfTI file itself."
            )
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file, expected a DICOM file.")
    assert paths, "no files given"
    return paths, others, forms


def _is_named_dicom(path: Path) -> bool:
    return path.name.lower().endswith((".dcm", ".dcm.gz", ".ima"))


def _read_header(path: Path) -> Header:
    with reading(path, stop_before_pixels=True) as dataset:
        sop_class = str(dataset.get("SOPClassUID") or "")
        kind = other = ""
        try:
            kind = kind_of(dataset, path)
        except InputError as error:
            other = str(error).removeprefix(f"{path}: ").removesuffix("; remove it.")
        if sop_class and sop_class not in IMAGE_CLASSES and not dataset.get("Rows"):
            other = f"is not an image (SOP Class {printable(sop_class)})"
        is_capture = sop_class.startswith(SECONDARY_CAPTURE)
        is_image = bool(dataset.get("Rows"))
        modality = printable(dataset.get("Modality") or "")
        return Header(path, dataset, modality, is_image, is_capture, kind, other)


@contextmanager
def reading(path: Path, stop_before_pixels: bool = False) -> Iterator:
    """The dataset of a file. Any failure while it is in use is blamed on the file, as an `InputError`."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # damaged files are reported once, below
    with _blaming(path), _open(path) as content:
        head = content.read(HEAD)
        bare = head[PREAMBLE:][: len(PREFIX)] != PREFIX and tell_form_of(head) == DICOM
        _require_bounded(content, 0 if bare else PREAMBLE + len(PREFIX), path)
        dataset = pydicom.dcmread(content, stop_before_pixels=stop_before_pixels, force=bare)
        _complete_syntax(dataset, path)
        yield dataset


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Blame any failure in the block on the file, as an `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but readable values are common
            yield
    except InputError:
        raise
    except Exception as error:  # elements are parsed lazily, and a damaged one may raise anything
        raise InputError(
            f"{path}: cannot be read as DICOM; it is damaged or of another format, export it again."
        ) from error


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, memory-mapped, so that a false length takes no memory; unpacked if gzipped."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:2] != GZIP:
            whole = _add_preamble(content)
            yield whole if whole is content else io.BytesIO(whole)  # pyright: ignore[reportReturnType]  # is read like a file
            return
        with gzip.GzipFile(fileobj=content) as packed:
            while packed.read(CHUNK):
                _require_unpacked(packed.tell(), path)
            packed.seek(0)
            yield io.BytesIO(_add_preamble(packed.read()))


def _add_preamble(content):
    """The content of a file; a preamble is added if it begins with the prefix that should follow one."""
    return bytes(PREAMBLE) + content[:] if content[: len(PREFIX)] == PREFIX else content


def _complete_syntax(dataset, path: Path) -> None:
    """If the transfer syntax is missing, set the uncompressed one in which the elements were found to be written."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise InputError(
            f"{path}: does not say how its pixels are compressed, Transfer Syntax UID (0002,0010) is missing; export "
            f"it again."
        )
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def kind_of(dataset, path: Path) -> str:
    """'projections' or 'volume', from Image Type (0008,0008); `InputError` for other images."""
    value = dataset.get("ImageType") or ()
    parts = [str(part).upper() for part in ((value,) if isinstance(value, str) else value)]
    for name, values in (("planar", PLANAR), ("gated", GATED), ("transmission", TRANSMISSION)):
        if values & {*parts}:
            shown = printable("/".join(parts))
            raise InputError(
                f"{path}: holds {name} images (Image Type {shown}), expected projections (TOMO) or a reconstructed "
                f"volume (RECON TOMO); remove it."
            )
    return "projections" if PROJECTIONS in parts else "volume"


def require_pixels(dataset, path: Path) -> None:
    """Raise `InputError` unless there are pixels of one value each in a standard element."""
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        private = any(element.tag.is_private and element.VR in BULK for element in dataset)
        detail = "only private elements of the manufacturer" if private else "it is truncated or no image"
        raise InputError(
            f"{path}: holds no pixel data ({detail}), expected Pixel Data (7FE0,0010); export it again as "
            f"standard DICOM or remove it."
        )
    declared = [int(dataset.get(keyword) or 1) for keyword in ("Rows", "Columns", "NumberOfFrames")]
    if np.prod(declared, dtype=object) > LARGEST_PIXELS:
        raise InputError(
            f"{path}: declares {' x '.join(map(str, declared))} pixels, expected at most {LARGEST_PIXELS:,} in all; "
            f"the header is damaged or this is no scan of a head, export it again."
        )
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise InputError(f"{path}: is a colour picture, expected one value per pixel; give the original series.")


def decode(dataset, path: Path) -> np.ndarray:
    """Stored pixels as (frames, rows, columns)."""
    from pydicom.pixels import get_decoder  # pyright: ignore[reportPrivateImportUsage]  # documented there

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise InputError(
            f"{path}: the pixel data cannot be decoded, no decoder is installed for transfer syntax "
            f"{printable(getattr(syntax, 'name', syntax))}; export it uncompressed, or install pylibjpeg and "
            f"pylibjpeg-libjpeg."
        )
    try:
        pixels = dataset.pixel_array
        fits = _fits_stored_bits(dataset, pixels)
    except Exception as error:  # decoders may raise anything
        raise InputError(
            f"{path}: the pixel data cannot be decoded, there is less or other data than the header promises; the "
            f"file is truncated or damaged, export it again."
        ) from error
    if not fits:
        raise InputError(
            f"{path}: Bits Stored (0028,0101) is {dataset.BitsStored}, but the pixels use more of the "
            f"{dataset.BitsAllocated} that are there (0028,0100), expected them to agree; export it again."
        )
    return pixels.reshape(-1, *pixels.shape[-2:])


def _fits_stored_bits(dataset, pixels: np.ndarray) -> bool:
    """Whether the bits of uncompressed pixels beyond Bits Stored are unused."""
    allocated = dataset.get("BitsAllocated")
    if "PixelData" not in dataset or allocated == dataset.get("BitsStored") or allocated not in (8, 16, 32):
        return True
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        return True
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    dtype = np.dtype(f"{order}{'ui'[dataset.PixelRepresentation]}{allocated // 8}")
    return bool((np.frombuffer(dataset.PixelData, dtype, pixels.size) == pixels.ravel()).all())


def rescale(pixels: np.ndarray, dataset, path: Path) -> np.ndarray:
    """Stored values times Rescale Slope plus Rescale Intercept, if present; float32."""
    slope, intercept = (
        0.0 if dataset.get(keyword) in (None, "") else float(numbers(dataset, keyword, 1, path)[0])
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if slope <= 0 and dataset.get("RescaleSlope") not in (None, ""):
        fault = "makes all values alike" if slope == 0 else "turns uptake into its reverse"
        raise InputError(
            f"{path}: Rescale Slope (0028,1053) is {slope:g}, which {fault}, expected what a stored value "
            f"stands for; export it again, or with the slope removed."
        )
    return np.multiply(pixels, slope or 1.0, dtype=np.float32) + np.float32(intercept)


def numbers(dataset, keyword: str, count: int, path: Path) -> np.ndarray:
    """Values of an element as floats, shape (count,)."""
    value = dataset.get(keyword)
    try:
        values = np.atleast_1d(np.array(value, dtype=float))
    except (TypeError, ValueError):
        values = np.array([])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InputError(
            f"{path}: {keyword} is {'missing' if value in (None, '') else printable(value)}, expected {count} "
            f"number{'s' * (count > 1)}; export the scan again with its geometry."
        )
    return values


def window_limits(item) -> list[float] | None:
    """Lowest and highest limit in keV of a window, which may consist of several ranges."""
    keywords = ("EnergyWindowLowerLimit", "EnergyWindowUpperLimit")
    bounds = [
        [float(part[keyword].value) for keyword in keywords]
        for part in item.get("EnergyWindowRangeSequence") or ()
        if all(part.get(keyword) for keyword in keywords)
    ]
    return [min(low for low, _ in bounds), max(high for _, high in bounds)] if bounds else None


def pixel_spacing(dataset, path: Path) -> np.ndarray:
    """Distance between rows and between columns in mm, shape (2,)."""
    spacing = numbers(dataset, "PixelSpacing", 2, path)
    if not is_spacing(spacing).all():
        raise InputError(
            f"{path}: PixelSpacing is {spacing.tolist()}, expected lengths of {SPACING_RANGE_MM[0]:g} to "
            f"{SPACING_RANGE_MM[1]:g} mm; export the scan again."
        )
    return spacing


def is_spacing(length_mm: np.ndarray) -> np.ndarray:
    """Whether a length is a plausible voxel spacing in a scan of the head; bool of the same shape."""
    low, high = SPACING_RANGE_MM
    return (low <= length_mm) & (length_mm <= high)


def printable(value: object) -> str:
    """Header text for a message: shortened, unprintable characters escaped."""
    text = str(value)
    text = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _require_bounded(content: BinaryIO, start: int, path: Path) -> None:
    """Raise `InputError` if a file of the deflated transfer syntax unpacks to more than any scan holds."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    content.seek(start)  # the meta information, after preamble and prefix
    meta = read_dataset(content, False, True, stop_when=lambda tag, *_: tag.group != 2)
    unpack, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        while piece := unpack.unconsumed_tail or content.read(CHUNK):
            size += len(unpack.decompress(piece, CHUNK))
            _require_unpacked(size, path)
    content.seek(0)


def _require_unpacked(size: int, path: Path) -> None:
    if size > LARGEST_UNPACKED:
        raise InputError(
            f"{path}: unpacks to more than {LARGEST_UNPACKED >> 20} MiB, expected the size of a scan; the file "
            f"is damaged or made to fill the memory, export it uncompressed."
        )
