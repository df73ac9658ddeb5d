"""The form of a file, recognised by its content, since names and suffixes are not reliable."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from datxai.errors import InputError
from datxai.files import require_file

NIFTI, PAIR, DICOM, DICOMDIR = "NIfTI", "the header of a NIfTI or Analyze pair", "DICOM", "DICOMDIR"
READ = "NIfTI (.nii, .nii.gz, .hdr with .img) and DICOM are read"
GZIP = b"\x1f\x8b"
PREFIX = b"DICM"  # of DICOM, after 128 bytes of a preamble that some programs leave out
HEAD = 544  # bytes needed to recognise a form: a NIfTI-2 header and a little more
MEDIA_DIRECTORY = b"1.2.840.10008.1.3.10"  # the class of a DICOMDIR, which lists files and holds no scan
REPRESENTATIONS = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"OB", b"OW", b"PN", b"SH",
    b"SL", b"SQ", b"SS", b"ST", b"TM", b"UC", b"UI", b"UL", b"UN", b"UR", b"US", b"UT",
}  # fmt: skip
OTHERS = {  # first bytes of forms that are not read
    b"PK\3\4": "a ZIP archive",
    b"NRRD": "NRRD",
    b"ObjectType": "MetaImage",
    b"NDims": "MetaImage",
    b"!INTERFILE": "Interfile",
    b"CDF\1": "MINC",
    b"\x89HDF": "HDF5 or MINC",
    b"\0\0\0\1\0\0\1": "MGH",
    b"MATLAB": "a MATLAB file",
    b"MATRIX7": "ECAT 7",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF document",
}


def is_nifti(path: Path) -> bool:
    """Whether a file is to be read as NIfTI or Analyze, or else as DICOM; `InputError` for forms that are not read.

    A file without a magic number is classified by its suffix; errors are raised when it is read.
    """
    try:
        form = tell_form(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the link and your rights.") from error
    if form and form not in (NIFTI, PAIR, DICOM, DICOMDIR):
        raise InputError(f"{path}: is {form}, which is not read; {READ}: export the scan as one of these.")
    named = path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img"))
    return form in (NIFTI, PAIR) or (not form and named)


def walk(root: Path, leave_out: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files below ``root`` in order, without hidden ones and folders to ``leave_out``; linked folders once."""
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        names[:] = [] if real in seen else sorted(n for n in names if n[0] != "." and n not in leave_out)
        if real not in seen:
            yield from (Path(folder, name) for name in sorted(files) if name[0] != ".")
        seen.add(real)


def tell_form_of_part(path: Path) -> str:
    """`tell_form` of a file that may belong to a scan; raises `InputError` if it cannot be read."""
    try:
        return tell_form(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), and may be a part of the scan; check the link and your "
            f"rights, or remove it."
        ) from error


def tell_form(path: str | os.PathLike) -> str:
    """The form of a file: one of the names above, or empty if unknown. A gzip file has the form of its content.

    The image of a pair, which has no magic number, is recognised by the header beside it. Raises `OSError` if the file
    cannot be read.
    """
    path = Path(path)
    require_file(path)
    with path.open("rb") as stream:
        head = stream.read(2 * HEAD)
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEAD)
        except zlib.error:
            return ""
    form = tell_form_of(head)
    if not form and (header := header_of(path)) != path and header.is_file():
        return PAIR if tell_form(header) == PAIR else ""
    return form


def tell_form_of(head: bytes) -> str:
    """The form of a file from its first `HEAD` bytes, or all of them if it is shorter."""
    if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return NIFTI
    if PREFIX in (head[:4], head[128:132]):
        return DICOMDIR if MEDIA_DIRECTORY in head[:HEAD] else DICOM
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        return PAIR
    if len(head) >= 348 and head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c"):  # 348, the size of an Analyze header
        return PAIR
    if _begins_with_element(head):
        return DICOM
    return next((name for magic, name in OTHERS.items() if head.startswith(magic)), "")


def header_of(path: Path) -> Path:
    """The header file of the image of a pair; any other file itself."""
    name = path.name
    for image, header in ((".img", ".hdr"), (".IMG", ".HDR"), (".img.gz", ".hdr.gz"), (".img.gz", ".hdr")):
        if name.endswith(image) and (candidate := path.with_name(name.removesuffix(image) + header)).is_file():
            return candidate
    return path


def _begins_with_element(head: bytes) -> bool:
    """Whether a file without DICOM's preamble begins with an element of group 2 or 8, in either byte order."""
    for order in ("little", "big"):
        group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
        if len(head) < 16 or group not in (2, 8) or element > 0x2000:
            continue
        if head[4:6] in REPRESENTATIONS or (order == "little" and int.from_bytes(head[4:8], order) <= 1024):
            return True
    return False
