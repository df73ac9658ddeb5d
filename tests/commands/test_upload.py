"""What is dropped on the page of `datxai serve`, unpacked; files may be anything."""

import gzip
import io
import re
import struct
import zipfile

import nibabel as nib
import numpy as np
import pytest

from datxai.commands.upload import UploadLimits, unpack
from datxai.errors import InputError
from datxai.forms import MEDIA_DIRECTORY

LIMITS = UploadLimits(unpacked=1 << 18, files=8)


def make_nifti() -> bytes:
    return nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)).to_bytes()


def make_dicom(text: bytes = b"") -> bytes:
    return bytes(128) + b"DICM" + text


def make_zip(entries: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def unpack_all(tmp_path):
    """Unpacks files sent one behind the other: the name of the path, and the content of each file there."""

    def unpack_all(*files: bytes) -> tuple[str, dict[str, bytes]]:
        folder = tmp_path / "outer" / "upload"
        folder.mkdir(parents=True)
        with (tmp_path / "body").open("w+b") as body:
            body.write(b"".join(files))
            body.flush()
            path = unpack(body, [len(file) for file in files], folder, LIMITS)
        assert path.parent == folder
        made = {file for file in tmp_path.rglob("*") if file.is_file()} - {tmp_path / "body"}
        assert made == ({path} if path.is_file() else set(path.iterdir())), "nothing lies elsewhere"
        return path.name, {file.name: file.read_bytes() for file in made}

    return unpack_all


@pytest.mark.parametrize("form", ["plain", "gzip", "archive"])
def test_files_are_told_apart_by_content(unpack_all, form):
    scan = make_nifti()
    packed = {"plain": scan, "gzip": gzip.compress(scan), "archive": make_zip({"x.bin": gzip.compress(scan)})}[form]
    assert unpack_all(packed) == ("scan.nii", {"scan.nii": scan})


def test_a_gzip_file_may_have_several_members(unpack_all):
    """As bgzip writes them, with an empty one at the end; zeros that fill up a block are no content."""
    scan = make_nifti() + np.random.default_rng(0).bytes(200_000)  # more than is unpacked in one go
    parts = [scan[at : at + 60_000] for at in range(0, len(scan), 60_000)]
    packed = b"".join(map(gzip.compress, [parts[0][:100], parts[0][100:], *parts[1:], b""]))
    assert unpack_all(packed + bytes(512)) == ("scan.nii", {"scan.nii": scan})


def test_names_in_an_archive_are_never_paths(unpack_all):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    entries = {"../../evil.dcm": make_dicom(b"a"), "/etc/evil": make_dicom(b"b"), "C:\\evil.dcm": make_dicom(b"c")}
    stream = io.BytesIO(make_zip({**entries, "autorun.inf": b"[autorun]" * 99}))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("DICOMDIR", make_dicom(b"\2\0\2\0UI\x14\0" + MEDIA_DIRECTORY))
    name, files = unpack_all(stream.getvalue())
    assert name == "scan"
    assert files == {f"{number:04}.dcm": make_dicom(text) for number, text in ((1, b"a"), (2, b"b"), (3, b"c"))}


def test_several_files_are_one_series_without_what_is_no_scan(unpack_all):
    name, files = unpack_all(make_dicom(b"one"), b"", make_dicom(b"three"), gzip.compress(b"notes"))
    assert name == "scan"
    assert files == {"0001.dcm": make_dicom(b"one"), "0003.dcm": make_dicom(b"three")}


def lie_about_sizes(archive: bytes) -> bytes:
    """The archive with all sizes of unpacked content said to be one byte."""
    archive = bytearray(archive)
    for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        position = archive.find(mark)
        struct.pack_into("<I", archive, position + offset, 1)
    return bytes(archive)


BOMB = make_nifti() + bytes(1 << 22)
BAD = {
    "text": ([b"hello"], "neither a NIfTI nor a DICOM"),
    "empty": ([b""], "neither"),
    "both": ([make_nifti(), make_dicom()], "both NIfTI and DICOM"),
    "two scans": ([make_nifti(), make_nifti()], "several NIfTI"),
    "gzip bomb": ([gzip.compress(BOMB)], "unpack to more"),
    "archive bomb": ([make_zip({"a": BOMB})], "unpack to more"),
    "bomb of small files": ([make_zip({str(i): make_dicom(bytes(60_000)) for i in range(6)})], "unpack to more"),
    "gzip in archive": ([make_zip({"a": gzip.compress(BOMB)})], "unpack to more"),
    "lying archive": ([lie_about_sizes(make_zip({"a": BOMB}))], "damaged|neither|unpack"),
    "many entries": ([make_zip({str(i): b"" for i in range(9)})], "more than 8 files"),
    "cut archive": ([make_zip({"a": make_nifti()})[:-30]], "damaged"),
    "cut gzip": ([gzip.compress(make_nifti() + np.random.default_rng(0).bytes(5000))[:-900]], "damaged"),
    "bomb in two members": ([gzip.compress(BOMB[:150_000]) + gzip.compress(bytes(150_000))], "unpack to more"),
    "cut second member": ([gzip.compress(make_nifti()) + gzip.compress(bytes(900))[:-9]], "damaged"),
    "no gzip": ([b"\x1f\x8b" + bytes(600)], "damaged"),
    "bzip2": ([make_zip({"a": make_nifti()}, zipfile.ZIP_BZIP2)], "unusual way"),
    "archive in archive": ([make_zip({"a": make_zip({"b": make_nifti()})})], "neither"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_sentence(unpack_all, case):
    files, sentence = BAD[case]
    with pytest.raises(InputError, match=sentence) as refused:
        unpack_all(*files)
    assert re.fullmatch(r"[A-Z][^\n]*\.", str(refused.value))


def test_an_encrypted_archive_is_refused(unpack_all):
    archive = bytearray(make_zip({"a": make_nifti()}))
    archive[6] |= 1
    archive[archive.find(b"PK\1\2") + 8] |= 1
    with pytest.raises(InputError, match="encrypted"):
        unpack_all(bytes(archive))
