"""What every reader of DICOM needs: files, elements, pixels, and which kind of scan it is.

Messages name the file and what is wrong with it; no identity of the patient is kept or told.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datxai.errors import InputError

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PROJECTIONS = "TOMO"  # third value of Image Type, DICOM PS3.3 C.8.4.9
PLANAR = {"STATIC", "DYNAMIC", "WHOLE BODY"}
GATED = {"GATED", "GATED TOMO", "RECON GATED TOMO"}
TRANSMISSION = {"TRANSMISSION"}
SCANS = {"NM", "PT", "ST"}  # modalities that DAT scans come as
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
            modality = str(dataset.get("Modality") or "unknown")
            if modality not in SCANS:
                raise InputError(
                    f"{path}: is of modality {modality}, expected a SPECT or PET scan (NM, PT); remove it."
                )
            kinds[kind_of(dataset, path)] = path
    if len(kinds) > 1:
        raise InputError(
            f"{paths[0].parent}: holds projections ({kinds['projections'].name}) and a reconstructed volume "
            f"({kinds['volume'].name}), expected one of them; remove the other."
        )
    return next(iter(kinds))


def list_files(files: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """The paths; from a folder those that have DICOM's preamble."""
    single = isinstance(files, (str, os.PathLike))
    paths = [Path(files)] if single else sorted(map(Path, files))
    if single and paths[0].is_dir():
        folder = paths[0]
        paths = sorted(path for path in folder.iterdir() if path.name != "DICOMDIR" and _has_preamble(path))
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
            yield pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
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
            raise InputError(
                f"{path}: holds {name} images (Image Type {'/'.join(parts)}), expected projections (TOMO) or a "
                f"reconstructed volume (RECON TOMO); remove it."
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
            f"{getattr(syntax, 'name', syntax)}; export it uncompressed, or install pylibjpeg and pylibjpeg-libjpeg."
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
            f"{path}: {keyword} is {'missing' if value in (None, '') else value}, expected {count} "
            f"number{'s' * (count > 1)}; export the scan again with its geometry."
        )
    return found


def _has_preamble(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
