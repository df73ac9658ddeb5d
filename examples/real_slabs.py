"""The paper's findings on real scans, from an archive of grey PNG slabs, in one command.

    python examples/real_slabs.py ARCHIVE [--out DIR] [--repeats N] [KEY=VALUE ...]

ARCHIVE is a zip or a folder with pictures in class folders, .../HC/*.png and .../PD/*.png, as described in
docs/real.md: transaxial slabs of 12 mm in MNI space, 91 x 109 pixels of 2 mm, grey 24 where uptake equals that of the
reference region, rows from front to back. Copies of one scan, original and smoothed, are detected and kept together.
DIR contains the slabs as NIfTI, a run, its repeats with different initial weights, figures, and the page
real_slabs.md. KEY=VALUE are settings of datxai, such as training.max_epochs=20.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import classification
import figure3
import figure5
import numpy as np
import peaks
import regions
import sign_of_relevance
from nazari2021 import ROI_RELEVANCE, Row
from PIL import Image, UnidentifiedImageError
from reproduce import tabulate
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from datxai.analysis.classification import summarise
from datxai.anatomy import Anatomy
from datxai.errors import InputError
from datxai.files import write_table, write_text
from datxai.findings import Findings
from datxai.run import Run
from datxai.volume import Grid, Volume, save

SLAB = Grid.axis_aligned((91, 109, 1), (2, 2, 12), (-90, -126, 3), "slab_12mm")
WIDTH, HEIGHT, _ = SLAB.shape
GREY_OF_REFERENCE = 24
SETTINGS = ("registration=none", "grid=slab_12mm", "network=nazari2021", "training=nazari2021", "target=decision")
LARGEST = 1 << 20  # bytes of a picture
MOST = 20_000  # files in an archive
SMOOTHINGS_MM = range(0, 18, 2)  # maximum FWHM of the smoothing of a copy
# A copy correlates with the original so smoothed by 0.90 or more, even if it was smoothed before it became a slab;
# slabs of different heads by 0.69 at most (40 heads of the phantom, copies of 6, 10 and 14 mm).
COPY = 0.85
HEAD = """\
# The paper's findings on real slabs

Made by `python examples/real_slabs.py {archive}`; how to read it says docs/real.md.

{slabs} slabs of 12 mm ({normal} normal, {reduced} reduced) of {scans} scans; copies of one scan are in one set.

- pairs of copies of a scan, found by their content: {pairs}, and {more} slabs in groups of three or more
- pictures left out because they are the same as another: {same}
- for training {train} slabs, for validation {validation}, for testing {test}
- the patient's left: on the {left} of the pictures
- explained output: `{target}`; start: `{start}`

Percentages with 95 % intervals, which take copies of one scan for scans of their own.

![Mean image and mean map of the TN and TP cases, heat map](paper/{first}/fig3.png)
"""


class Slab(NamedTuple):
    """A picture of an archive: its path there, label, and grey values (rows from front to back, columns)."""

    name: str
    label: int
    grey: np.ndarray


def read_archive(archive: Path, classes: Sequence[str]) -> list[Slab]:
    """The slabs of a zip or folder whose pictures are in folders named after the two ``classes`` (normal, reduced).

    Nothing is unpacked. Raises `InputError` for other archives, and for a path that leads out of the archive.
    """
    if not archive.exists():
        raise InputError(f"{archive}: no such file or folder, expected an archive of PNG slabs.")
    slabs, seen = [], 0
    for path, content in (_list_folder if archive.is_dir() else _list_zip)(archive):
        seen += 1
        if len(path.parts) > 1 and path.parts[-2] in classes:
            grey = _read_picture(content, f"{archive}: {path}")
            slabs.append(Slab(str(path), classes.index(path.parts[-2]), grey))
    if not seen:
        raise InputError(f"{archive}: holds no PNG picture, expected slabs in folders {' and '.join(classes)}.")
    for label, name in enumerate(classes):
        if all(slab.label != label for slab in slabs):
            raise InputError(
                f"{archive}: has no folder {name} with PNG pictures, expected .../{classes[0]}/*.png and "
                f".../{classes[1]}/*.png; say by --normal and --reduced how the folders are called."
            )
    return slabs


def _list_zip(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Path and content of each PNG file."""
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            if len(entries) > MOST:
                raise InputError(f"{archive}: holds {len(entries)} files, expected {MOST} at most.")
            for entry in entries:
                path = PurePosixPath(entry.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                    raise InputError(
                        f"{archive}: the path {entry.filename!r} leads out of the archive, expected paths within it; "
                        f"it may be meant to do harm, get another copy."
                    )
                if not entry.is_dir() and _is_picture(path):
                    with opened.open(entry) as stream:
                        yield path, stream.read(LARGEST + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{archive}: cannot be read as a zip ({error}); give an intact zip without a password, or a folder."
        ) from error


def _list_folder(root: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    for path in sorted(root.rglob("*")):
        name = PurePosixPath(path.relative_to(root).as_posix())
        if not _is_picture(name):
            continue
        if not path.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{path}: is a link that leads out of {root}, expected files within it; copy the file.")
        if path.is_file():
            with path.open("rb") as stream:
                yield name, stream.read(LARGEST + 1)


def _is_picture(path: PurePosixPath) -> bool:
    """Whether the name ends in PNG; hidden files, such as the duplicates that macOS adds to a zip, do not count."""
    return path.suffix.lower() == ".png" and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _read_picture(content: bytes, name: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content[:LARGEST]), formats=["PNG"]) as image:
            if image.size != (WIDTH, HEIGHT) or image.mode != "L":
                kind = "grey of 8 bits" if image.mode == "L" else f"of mode {image.mode}"
                raise InputError(
                    f"{name}: is {image.width} pixels wide, {image.height} high and {kind}, expected {WIDTH} x "
                    f"{HEIGHT} pixels, grey of 8 bits; give the slabs as they were published."
                )
            return np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: cannot be read as PNG, the file is damaged; get another copy.") from error


def drop_doubles(slabs: Sequence[Slab]) -> list[Slab]:
    """The slabs without exact duplicates of an earlier one; `InputError` if the labels differ."""
    kept: dict[bytes, Slab] = {}
    for slab in slabs:
        first = kept.setdefault(slab.grey.tobytes(), slab)
        if first.label != slab.label:
            raise InputError(f"{slab.name}: is the same picture as {first.name} of the other class; keep one.")
    return list(kept.values())


def find_scans(slabs: Sequence[Slab]) -> np.ndarray:
    """The scan that each slab is of, counted from 0: copies of one scan, smoothed to different degrees, share it.

    A slab is paired with the most similar slab of its class, if one smoothed correlates with the other by `COPY`
    or more. The comparison uses differences from the mean of all slabs, sharp or smoothed, because heads look alike.
    """
    images = np.stack([slab.grey for slab in slabs]).astype(np.float32)
    labels = np.array([slab.label for slab in slabs])
    likeness = np.zeros((len(slabs), len(slabs)), np.float32)
    mean = images.mean(axis=0, keepdims=True)
    common = np.concatenate([_smooth(mean, fwhm) for fwhm in (0, 8, 16)] + [np.ones_like(mean)])
    common = np.linalg.qr(common.reshape(len(common), -1).T)[0]
    plain = _differ(images, common)
    for fwhm in SMOOTHINGS_MM:
        np.maximum(likeness, _differ(_smooth(images, fwhm), common) @ plain.T, out=likeness)
    likeness = np.maximum(likeness, likeness.T) * (labels[:, None] == labels)
    np.fill_diagonal(likeness, 0)
    best = likeness == likeness.max(axis=1, keepdims=True)
    return connected_components(best & (likeness >= COPY), directed=False)[1]


def _smooth(images: np.ndarray, fwhm_mm: float) -> np.ndarray:
    sigma = fwhm_mm / np.sqrt(8 * np.log(2)) / SLAB.spacing[0]
    return ndimage.gaussian_filter(images, (0, sigma, sigma))


def _differ(images: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Rows of unit length, orthogonal to the columns of ``common``; products of rows are correlations."""
    rows = images.reshape(len(images), -1)
    rows = rows - rows @ common @ common.T
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def to_volume(slab: Slab, left_is: str) -> Volume:
    """Uptake over that of the reference region, on `SLAB`."""
    columns = slab.grey if left_is == "left" else slab.grey[:, ::-1]
    data = columns[::-1].T[:, :, None] / GREY_OF_REFERENCE
    return Volume(data, SLAB.affine, ({"step": "read_png", "file": slab.name, "left_is": left_is},))


def require_front_first(slabs: Sequence[Slab], archive: Path) -> None:
    """Raise `InputError` if the striata of the mean normal slab are where reversed rows would put them."""
    mean = np.mean([to_volume(slab, "left").data for slab in slabs if slab.label == 0], axis=0)
    striata = Anatomy(SLAB).striatum
    front, back = mean[striata].mean(), mean[:, ::-1][striata].mean()
    if front <= back:
        raise InputError(
            f"{archive}: the striata lie behind the middle of the pictures (mean grey there "
            f"{GREY_OF_REFERENCE * back:.0f}, in front {GREY_OF_REFERENCE * front:.0f}), expected rows from the front "
            f"of the head to its back; turn the pictures upside down."
        )


def write_slabs(slabs: Sequence[Slab], scans: Sequence[int], left_is: str, folder: Path) -> None:
    """Write the folder for `data=folder`: a NIfTI file for each slab, and participants.tsv.

    The folder is made under a temporary name and then renamed, so that a failure leaves nothing behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        rows = []
        for number, (slab, scan) in enumerate(zip(slabs, scans, strict=True), start=1):
            stem = re.sub("[^0-9A-Za-z]+", "-", PurePosixPath(slab.name).stem)
            name = f"{number:04d}-{stem}"
            save(to_volume(slab, left_is), place / f"{name}.nii")
            source = {"subject": f"scan-{scan + 1:04d}", "label": slab.label, "source": slab.name}
            rows.append({"participant_id": name, **source})
        write_table(place / "participants.tsv", rows, list(rows[0]))
        if folder.exists():
            shutil.rmtree(folder)
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def datxai(*words: object) -> None:
    """Run the command; if it fails, it has printed the reason, and this script exits with its status."""
    status = subprocess.run([sys.executable, "-m", "datxai", *map(str, words)]).returncode
    if status:
        sys.exit(status)


def make_runs(out: Path, repeats: int, settings: Sequence[str]) -> list[Findings]:
    """The run of OUT/slabs and its repeats with different initial weights."""
    is_new, run = not (out / "run").exists(), Run(out / "run")
    try:
        datxai("data=folder", f"data.root={out / 'slabs'}", *SETTINGS, *settings, f"run={run.folder}")
    except SystemExit:
        if is_new and not run.holds("split"):  # the slabs could not be used
            for made in (out / "slabs", run.folder):
                shutil.rmtree(made, ignore_errors=True)
            with suppress(OSError):  # it contains something else
                out.rmdir()
        raise
    seeds = [str(seed) for seed in range(1, repeats)]
    if seeds:
        words = ["-m", f"base={run.folder}", f"run={out / 'repeats'}", f"training.seed={','.join(seeds)}"]
        datxai(*words)
    folders = [run.folder, *(out / "repeats" / f"training.seed={seed}" for seed in seeds)]
    return [Findings(Run(folder)) for folder in folders]


def make_sign(runs: Sequence[Findings], out: Path) -> list[Row]:
    """The sign of the relevance in the ipsilateral putamen: by class, as the paper's classifier, and reversed."""
    cases, shares = runs[0].tested, []
    for group in ("TN", "TP"):
        values = [case["putamen_ipsilateral"] > 0 for case in cases if case["group"] == group]
        shares.append(f"{sum(values)} of {len(values)} {group}")
    called = [int(case["putamen_ipsilateral"] < 0) for case in cases]
    figures = summarise([case["label"] for case in cases], called)
    return [
        Row("ipsilateral putamen positive", "few TN, most TP", ", ".join(shares)),
        *figure5.make(runs, out)[:2],
        *classification.compare("reversed, below zero", ROI_RELEVANCE, figures)[:2],
    ]


MAKERS = [*(item.make for item in (classification, figure3, regions, peaks)), make_sign]


def lay_side_by_side(runs: Sequence[Findings], out: Path) -> list[tuple[str, ...]]:
    """The lines of a table: a finding, the paper, then each initialisation; only findings present in all of them."""
    tables = []
    for run in runs:
        folder = out / run.run.folder.name
        tables.append({row.item: row for make in MAKERS for row in make([run], folder)})
    shared = [item for item in tables[0] if all(item in table for table in tables)]
    header = ("", "paper", *(f"initialisation {number}" for number in range(1, len(runs) + 1)))
    return [header, *((item, tables[0][item].paper, *(table[item].ours for table in tables)) for item in shared)]


def write_page(
    path: Path, runs: Sequence[Findings], slabs: Sequence[Slab], scans: np.ndarray, archive: Path, same: int, left: str
) -> None:
    out, first_run = path.parent / "paper", runs[0]
    sizes = np.bincount(scans)
    sets = [case["set"] for case in first_run.predictions]
    text = HEAD.format(
        archive=archive.name, slabs=len(slabs), scans=len(sizes), same=same, left=left,
        normal=sum(slab.label == 0 for slab in slabs), reduced=sum(slab.label == 1 for slab in slabs),
        pairs=(sizes == 2).sum(), more=sizes[sizes > 2].sum(), target=first_run.metrics["target"],
        start=first_run.metrics["attribution"]["start"], first=first_run.run.folder.name,
        **{name: sets.count(name) for name in ("train", "validation", "test")},
    )  # fmt: skip
    findings, signs = lay_side_by_side(runs, out), sign_of_relevance.make(runs, out)
    text += tabulate("Findings", findings, regions.NOTE)
    text += tabulate("Sign of the relevance", [signs[0].HEAD, *signs], sign_of_relevance.NOTE)
    write_text(path, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, metavar="ARCHIVE")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of datxai")
    parser.add_argument("--out", type=Path, default=Path("runs/real_slabs"), metavar="DIR")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="initialisations; default 3")
    parser.add_argument("--left-is", choices=("left", "right"), default="left",
                        help="side of the pictures on which the patient's left lies; default left")  # fmt: skip
    parser.add_argument("--normal", default="HC", metavar="NAME", help="folder of the normal slabs; default HC")
    parser.add_argument("--reduced", default="PD", metavar="NAME", help="folder of the reduced slabs; default PD")
    given = parser.parse_intermixed_args()
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats}: expected 1 or more")
    try:
        if (given.out / "slabs").exists() and not (given.out / "slabs" / "participants.tsv").is_file():
            raise InputError(f"{given.out / 'slabs'}: is there and not ours to replace; give another --out=DIR.")
        read = read_archive(given.archive, (given.normal, given.reduced))
        slabs = drop_doubles(read)
        require_front_first(slabs, given.archive)
    except InputError as error:
        print(f"real_slabs: {error}", file=sys.stderr)
        sys.exit(2)
    scans = find_scans(slabs)
    print(f"{len(slabs)} slabs of {scans.max() + 1} scans", flush=True)
    write_slabs(slabs, scans, given.left_is, given.out / "slabs")
    runs = make_runs(given.out, given.repeats, given.settings)
    page = given.out / "real_slabs.md"
    write_page(page, runs, slabs, scans, given.archive, len(read) - len(slabs), given.left_is)
    print(f"Page: {page}")


if __name__ == "__main__":
    main()
