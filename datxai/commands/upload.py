"""Unpacking of scans dropped on the page of `datxai serve`.

Any file may be hostile: files are classified by content, their names are not used, and bytes are counted during
unpacking, whatever the archive claims.
"""

from __future__ import annotations

import errno
import mmap
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from datxai.errors import InputError
from datxai.forms import DICOM, GZIP, HEAD, NIFTI, PAIR, tell_form_of

CHUNK = 1 << 20
GZIP_CHUNK = 1 << 16  # smaller, since the rest of a chunk is copied after each gzip member


@dataclass(frozen=True)
class UploadLimits:
    """Size limits of one upload."""

    upload: int = 256 << 20  # bytes as sent
    unpacked: int = 1 << 30  # bytes of all files
    files: int = 2048  # number of files, of the upload or in its archive


def unpack(body: BinaryIO, sizes: Sequence[int], folder: Path, limits: UploadLimits) -> Path:
    """Store the scan of an upload under new names, and return its path for `Reader.read`.

    ``body`` holds concatenated files of these ``sizes`` (bytes): one NIfTI file, the DICOM files of a series, or a ZIP
    archive of either. Other files, such as the viewer on a CD, are left out. Raises `InputError` if there is not
    exactly one scan, or if the upload is damaged or too large.
    """
    nifti, series, unpacked = folder / "scan.nii", folder / "scan", 0
    series.mkdir()
    try:
        for number, packed in enumerate(_list_files(body, sizes, limits), start=1):
            head, chunks = _read_head(packed)
            path = _choose_path(tell_form_of(head), nifti, series / f"{number:04}.dcm")
            if path is None:
                continue
            with path.open("xb") as stream:
                for chunk in chain([head], chunks):
                    unpacked += stream.write(chunk)
                    if unpacked > limits.unpacked:
                        raise InputError(
                            f"The files unpack to more than {limits.unpacked >> 20} MiB, expected the size of one scan."
                        )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, InputError) or getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise InputError("The file is damaged: it cannot be unpacked; export the scan anew.") from error
    if nifti.exists() == any(series.iterdir()):
        content = "both NIfTI and DICOM files" if nifti.exists() else "neither a NIfTI nor a DICOM file"
        raise InputError(
            f"Found {content}, expected one NIfTI file or the DICOM files of one series; give those alone."
        )
    return nifti if nifti.exists() else series


def _read_head(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes of a file, enough to determine its form, and the rest in chunks; decompressed if gzipped."""
    head = b""
    while len(head) < HEAD and (chunk := next(chunks, b"")):
        head += chunk
    if head[:2] == GZIP:
        chunks = _gunzip(head, chunks)
        head = next(chunks, b"")
    return head, chunks


def _choose_path(form: str, nifti: Path, dicom: Path) -> Path | None:
    """Where to store a file of this form; None if it is no scan."""
    if form == PAIR:
        raise InputError(
            "There is a header whose image is a file of its own (.hdr and .img), expected NIfTI in one file "
            "(.nii, .nii.gz); convert it."
        )
    if form == NIFTI and nifti.exists():
        raise InputError("There are several NIfTI files, expected one scan; give one after the other.")
    return {NIFTI: nifti, DICOM: dicom}.get(form)


def _list_files(body: BinaryIO, sizes: Sequence[int], limits: UploadLimits) -> Iterator[Iterator[bytes]]:
    """The content of each file, or of each file in an archive, in chunks."""
    body.seek(0)
    if len(sizes) > 1 or body.read(4) != b"PK\x03\x04":
        body.seek(0)
        for size in sizes:
            end = body.tell() + size
            yield iter(lambda end=end: body.read(min(CHUNK, end - body.tell())), b"")
            body.seek(end)
        return
    _require_few_entries(body, limits)
    with zipfile.ZipFile(body) as archive:
        for entry in archive.infolist():
            if entry.flag_bits & 1:
                raise InputError("The archive is encrypted; give it without a password.")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # which unpack in chunks
                raise InputError("The archive is packed in an unusual way; pack it as ordinary ZIP (deflate).")
            with archive.open(entry) as stream:
                yield iter(lambda stream=stream: stream.read(CHUNK), b"")


def _require_few_entries(body: BinaryIO, limits: UploadLimits) -> None:
    """Count an archive's entries by their signature before all are loaded; the count at its end is not trusted."""
    with mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position, count = content.find(b"PK\x01\x02"), 0
        while position >= 0:
            count += 1
            if count > limits.files:
                raise InputError(f"The archive has more than {limits.files} files; pack the files of one scan.")
            position = content.find(b"PK\x01\x02", position + 4)


def _gunzip(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress a gzip file in chunks of bounded size, the first at least as long as a NIfTI header."""
    pieces = (chunk[i : i + GZIP_CHUNK] for chunk in chain([head], chunks) for i in range(0, len(chunk), GZIP_CHUNK))
    packed, unpacked = next(pieces, b""), b""
    while packed[:2] == GZIP:  # for each member; other bytes after the last one, such as zero padding, are ignored
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not unpack.eof:
            if not (packed := packed or next(pieces, b"")):
                raise EOFError
            unpacked += unpack.decompress(packed, CHUNK)
            packed = unpack.unconsumed_tail
            if len(unpacked) >= HEAD:
                yield unpacked
                unpacked = b""
        packed = unpack.unused_data
        while len(packed) < len(GZIP) and (piece := next(pieces, b"")):
            packed += piece
    if unpacked:
        yield unpacked
