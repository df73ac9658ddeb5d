"""What every reader of DICOM needs: files, elements, pixels, and which kind of scan it is.

Messages name the file and what is wrong with it; no identity of the patient is kept or told. Files come from anywhere:
what a header claims is checked before memory is taken for it, and its text is shortened and escaped before it is told.
"""

from __future__ import annotations

import logging
import mmap
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datxai.errors import InputError
from datxai.files import has_preamble

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PROJECTIONS = "TOMO"  # third value of Image Type, DICOM PS3.3 C.8.4.9
PLANAR = {"STATIC", "DYNAMIC", "WHOLE BODY"}
GATED = {"GATED", "GATED TOMO", "RECON GATED TOMO"}
TRANSMISSION = {"TRANSMISSION"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SCANS = {"NM", "PT", "ST"}  # modalities that DAT scans come as
PHOTOPEAK_KEV = 159.0  # of I-123
LARGEST_PIXELS = 2**27  # of one file: 512 x 512 x 512
LARGEST_UNPACKED = 4 * LARGEST_PIXELS  # bytes of a deflated file
SPACING_RANGE_MM = (0.1, 50.0)  # of pixels and slices
LONGEST_TEXT = 64  # characters, as Long String has them
CHUNK = 2**20
BULK = {"OB", "OW", "UN"}  # value representations that can hide pixels


def identify(files: str | os.PathLike | Iterable[str | os.PathLike]) -> str:
    """What files of one scan hold, from their headers: 'projections' or 'volume'.

    Raises `InputError` if they hold both, planar, gated or transmission images, or are of another modality than NM
    and PET.
    """
    paths = list_files(files)
    kinds = {}
    for path in paths:
        with reading(path, stop_before_pixels=True) as dataset:
            modality = printable(dataset.get("Modality") or "unknown")
            if modality not in SCANS:
                raise InputError(
                    f"{path}: is of modality {modality}, expected a SPECT or PET scan (NM, PT); remove it."
                )
            kinds[kind_of(dataset, path)] = path
    if len(kinds) > 1:
        raise InputError(
            f"{kinds['projections']}: holds projections, and {kinds['volume']} of the same participant and session a "
            f"reconstructed volume, expected one of them; remove the other."
        )
    return next(iter(kinds))


def keep_scans(files: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """The paths without what an archive files beside a scan: other modalities, as the CT of a SPECT/CT, and captures
    of the screen. All of them, if nothing else is there."""
    paths = list_files(files)
    if len(paths) == 1:
        return paths
    scans = []
    for path in paths:
        with reading(path, stop_before_pixels=True) as dataset:
            is_capture = str(dataset.get("SOPClassUID") or "").startswith(SECONDARY_CAPTURE)
            if dataset.get("Modality") in SCANS and not is_capture:
                scans.append(path)
    return scans or paths


def list_files(files: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """The paths; from a folder those that have DICOM's preamble."""
    single = isinstance(files, (str, os.PathLike))
    paths = [Path(files)] if single else sorted(map(Path, files))
    if single and paths[0].is_dir():
        folder = paths[0]
        inside = (path for path in folder.iterdir() if path.name != "DICOMDIR" and path.is_file())
        paths = sorted(filter(has_preamble, inside))
        if not paths:
            raise InputError(f"{folder}: holds no DICOM file, expected the files of one series.")
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file, expected a DICOM file.")
    assert paths, "no files given"
    return paths


@contextmanager
def reading(path: Path, stop_before_pixels: bool = False) -> Iterator:
    """The dataset of a file. Whatever goes wrong while it is in use is the file's fault: an `InputError`."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it says of damaged files is said once, below
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but readable values are common
            # mapped, so that a length the file does not have takes no memory
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _require_bounded(content, path)
                yield pydicom.dcmread(content, stop_before_pixels=stop_before_pixels)
    except InputError:
        raise
    except Exception as error:  # elements are parsed when asked for, and a damaged one raises anything
        raise InputError(
            f"{path}: cannot be read as DICOM; it is damaged or of another format, export it again."
        ) from error


def kind_of(dataset, path: Path) -> str:
    """'projections' or 'volume', by Image Type (0008,0008); other images are an `InputError`."""
    value = dataset.get("ImageType") or ()
    parts = [str(part).upper() for part in ((value,) if isinstance(value, str) else value)]
    for name, values in (("planar", PLANAR), ("gated", GATED), ("transmission", TRANSMISSION)):
        if values & {*parts}:
            told = printable("/".join(parts))
            raise InputError(
                f"{path}: holds {name} images (Image Type {told}), expected projections (TOMO) or a reconstructed "
                f"volume (RECON TOMO); remove it."
            )
    return "projections" if PROJECTIONS in parts else "volume"


def require_pixels(dataset, path: Path) -> None:
    """Raise `InputError` unless there are pixels of one value each, where the standard puts them."""
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        private = any(element.tag.is_private and element.VR in BULK for element in dataset)
        where = "only private elements of the manufacturer" if private else "it is truncated or no image"
        raise InputError(
            f"{path}: holds no pixel data ({where}), expected Pixel Data (7FE0,0010); export it again as "
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
    from pydicom.pixels import get_decoder

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
    except Exception as error:  # decoders raise what they like
        raise InputError(
            f"{path}: the pixel data cannot be decoded, there is less or other data than the header promises; the "
            f"file is truncated or damaged, export it again."
        ) from error
    return pixels.reshape(-1, *pixels.shape[-2:])


def rescale(pixels: np.ndarray, dataset) -> np.ndarray:
    """Stored values times Rescale Slope plus Rescale Intercept, where there are any; float32."""
    slope, intercept = (dataset.get(keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    slope = 1.0 if slope is None else float(slope)
    return (pixels * slope + (0.0 if intercept is None else float(intercept))).astype(np.float32)


def numbers(dataset, keyword: str, count: int, path: Path) -> np.ndarray:
    """Values of an element as floats, shape (count,)."""
    value = dataset.get(keyword)
    try:
        found = np.atleast_1d(np.array(value, dtype=float))
    except (TypeError, ValueError):
        found = np.array([])
    if found.shape != (count,) or not np.isfinite(found).all():
        raise InputError(
            f"{path}: {keyword} is {'missing' if value in (None, '') else printable(value)}, expected {count} "
            f"number{'s' * (count > 1)}; export the scan again with its geometry."
        )
    return found


def window_limits(item) -> list[float] | None:
    """Lowest and highest limit in keV of a window, which may be made of several ranges."""
    keywords = ("EnergyWindowLowerLimit", "EnergyWindowUpperLimit")
    bounds = [
        [float(part[keyword].value) for keyword in keywords]
        for part in item.get("EnergyWindowRangeSequence") or ()
        if all(part.get(keyword) for keyword in keywords)
    ]
    return [min(low for low, _ in bounds), max(high for _, high in bounds)] if bounds else None


def pixel_spacing(dataset, path: Path) -> np.ndarray:
    """Distance between rows and between columns in mm, shape (2,)."""
    found = numbers(dataset, "PixelSpacing", 2, path)
    if not is_spacing(found).all():
        raise InputError(
            f"{path}: PixelSpacing is {found.tolist()}, expected lengths of {SPACING_RANGE_MM[0]:g} to "
            f"{SPACING_RANGE_MM[1]:g} mm; export the scan again."
        )
    return found


def is_spacing(length_mm: np.ndarray) -> np.ndarray:
    """Whether voxels of a scan of the head can be so far apart; bool of the same shape."""
    low, high = SPACING_RANGE_MM
    return (low <= length_mm) & (length_mm <= high)


def printable(value: object) -> str:
    """Text of a header for a message: shortened, and what is no printable character escaped."""
    text = str(value)
    text = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _require_bounded(content: mmap.mmap, path: Path) -> None:
    """Raise `InputError` if a file of the deflated transfer syntax unpacks to more than any scan holds."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    content.seek(132)  # behind preamble and prefix
    meta = read_dataset(content, False, True, stop_when=lambda tag, *_: tag.group != 2)
    unpack, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        while piece := unpack.unconsumed_tail or content.read(CHUNK):
            size += len(unpack.decompress(piece, CHUNK))
            if size > LARGEST_UNPACKED:
                raise InputError(
                    f"{path}: unpacks to more than {LARGEST_UNPACKED >> 20} MiB, expected the size of a scan; the file "
                    f"is damaged or made to fill the memory, export it uncompressed."
                )
    content.seek(0)
