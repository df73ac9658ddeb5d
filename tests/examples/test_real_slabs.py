"""Real slabs in one command, on slabs of the phantom: as the archive has them, with smoothed copies of some."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from forked import datxai
from PIL import Image
from scipy import ndimage

from datxai.cohort.dataset import open_store
from datxai.files import read_json, read_table

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCANS, COPIED = 30, 6
SHORT = [
    "network.channels=[8,8,8,8]", "network.dropout=0", "split.sizes=[0.5,0.15,0.35]", "training.max_epochs=14",
    "training.batch_size=4", "training.patience=null", "training.learning_rate=1e-3", "n_jobs=1",
]  # fmt: skip


def to_png(grey):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(grey, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Run of the phantom on the slab, and its slabs as pictures by their path in the archive: rows front to back, the
    patient's left on the right; every fifth scan is there smoothed by 8 mm too."""
    run = tmp_path_factory.mktemp("phantom") / "run"
    words = ["data.raw=false", f"data.n_subjects={SCANS}", "grid=slab_12mm", "preprocessing.mirror=false", "n_jobs=1"]
    for stage in ("simulate", "preprocess"):
        datxai(stage, *words, f"run={run}")
    store, pictures = open_store(run / "preprocessed" / "volumes.npy"), {}
    for number, row in enumerate(read_table(run / "participants.tsv")):
        uptake = store.volume(row["participant_id"])[:, :, 0]
        folder = f"slabs/{('HC', 'PD')[int(row['label'])]}"
        copies = {"": uptake}
        if number % (SCANS // COPIED) == 0:
            copies[" smooth"] = ndimage.gaussian_filter(uptake, 8 / 2.3548 / 2)
        for suffix, image in copies.items():
            grey = np.clip(np.rint(24 * image), 0, 255)[::-1, ::-1].T
            pictures[f"{folder}/{row['participant_id']}{suffix}.png"] = to_png(grey)
    return run, pictures


def write_zip(path, pictures):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in pictures.items():
            archive.writestr(name, content)
    return path


def write_folder(path, pictures):
    for name, content in pictures.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture(scope="module")
def made(cohort, tmp_path_factory):
    """What the command leaves of a zip, and what it said; a picture stands there twice, and macOS left its doubles."""
    folder = tmp_path_factory.mktemp("real")
    pictures = dict(cohort[1])
    first = next(name for name in pictures if "HC" in name)
    pictures |= {"again/HC/twice.png": pictures[first], "__MACOSX/slabs/HC/._x.png": b"", "slabs/README.txt": b"text"}
    words = ["--out", folder / "out", "--repeats=2", "--left-is=right", *SHORT]
    words = [EXAMPLES / "real_slabs.py", write_zip(folder / "slabs.zip", pictures), *words]
    command = [sys.executable, *map(str, words)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder / "out", answer.stdout


def read_page(out):
    """The rows of the page: part, first cell to the further cells."""
    rows, part = {}, None
    for line in (out / "real_slabs.md").read_text().splitlines():
        part = line[3:] if line.startswith("## ") else part
        if line.startswith("| ") and "---" not in line:
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[part, first] = cells
    return rows


def test_the_slabs_are_those_of_the_phantom(cohort, made):
    """In place, on the patient's own sides, in units of the reference region."""
    run, pictures = cohort
    table = read_table(made[0] / "slabs" / "participants.tsv")
    assert len(table) == len(pictures)
    store = open_store(run / "preprocessed" / "volumes.npy")
    labels = {row["participant_id"]: row["label"] for row in read_table(run / "participants.tsv")}
    for row in table:
        image = nib.load(made[0] / "slabs" / f"{row['participant_id']}.nii")
        assert image.shape == (91, 109, 1)
        np.testing.assert_array_equal(image.affine, [[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 12, 3], [0, 0, 0, 1]])
        scan = Path(row["source"]).stem
        assert row["label"] == labels[scan.removesuffix(" smooth")]
        if not scan.endswith(" smooth"):
            expected = np.clip(store.volume(scan), 0, 255 / 24)
            np.testing.assert_allclose(image.get_fdata(), expected, atol=0.5 / 24 + 1e-6)


def test_copies_are_one_subject_and_share_a_set(made):
    out, said = made
    table = read_table(out / "slabs" / "participants.tsv")
    scans = {}
    for row in table:
        scans.setdefault(Path(row["source"]).stem.removesuffix(" smooth"), set()).add(row["subject"])
    assert all(len(subjects) == 1 for subjects in scans.values()), "copies are found"
    assert len(set.union(*scans.values())) == SCANS, "and nobody else is taken for one"
    assert f"{SCANS + COPIED} slabs of {SCANS} scans" in said
    sets = {row["participant_id"]: row["set"] for row in read_table(out / "run" / "split.tsv")}
    subjects = {}
    for row in read_table(out / "run" / "participants.tsv"):
        subjects.setdefault(row["subject"], set()).add(sets[row["participant_id"]])
        assert row["age"] == row["sex"] == "n/a"
    assert all(len(found) == 1 for found in subjects.values())
    assert set(sets.values()) == {"train", "validation", "test"}


def test_binding_is_as_in_the_whole_head(cohort, made):
    """The lower side of the slab's putamen is that of the head, unless both are alike; ranks agree."""
    whole = {row["participant_id"]: row for row in read_table(cohort[0] / "sbr.tsv")}
    source = {row["participant_id"]: row["source"] for row in read_table(made[0] / "slabs" / "participants.tsv")}
    pairs = []
    for row in read_table(made[0] / "run" / "sbr.tsv"):
        name = Path(source[row["participant_id"]]).stem
        if not name.endswith(" smooth"):
            pairs.append([[float(of[f"putamen_{side}"]) for side in ("left", "right")] for of in (whole[name], row)])
            assert row["mirrored"] == ("true" if pairs[-1][1][1] < pairs[-1][1][0] else "false")
    head, slab = np.array(pairs).transpose(1, 0, 2)
    assert np.corrcoef(head.min(axis=1), slab.min(axis=1))[0, 1] > 0.97
    asymmetric = abs(np.log(head[:, 0] / head[:, 1])) > 0.1
    assert asymmetric.sum() > 5
    assert (head.argmin(axis=1) == slab.argmin(axis=1))[asymmetric].all()


def test_the_page_sets_the_findings_beside_the_papers(made):
    out, _ = made
    text, rows = (out / "real_slabs.md").read_text(), read_page(out)
    assert f"found by their content: {COPIED}, and 0 slabs" in text
    assert "the same as another: 1\n" in text
    assert "on the right of the pictures" in text
    assert rows["Findings", ""] == ["paper", "initialisation 1", "initialisation 2"]
    runs = [out / "run", out / "repeats" / "training.seed=1"]
    for number, run in enumerate(runs, start=1):
        metrics = json.loads((run / "metrics.json").read_text())
        accuracy = 100 * metrics["classifiers"]["cnn"]["accuracy"]
        assert rows["Findings", "CNN: Accuracy"][number].startswith(f"{accuracy:.1f} % (")
        said = rows["Findings", "correlation of the mean maps of TN and TP"][number].replace("−", "-")
        assert float(said) == pytest.approx(metrics["mean_map_correlation"], abs=0.005)
        cases = {row["participant_id"]: row for row in read_table(run / "predictions.tsv") if row["set"] == "test"}
        regional = read_table(run / "roi_relevance.tsv")
        right = [(float(row["putamen_ipsilateral"]) < 0) == (cases[row["participant_id"]]["label"] == "1")
                 for row in regional]  # fmt: skip
        shown = rows["Findings", "reversed, below zero: Accuracy"]
        assert shown[0].startswith("96.9 %")
        assert shown[number].startswith(f"{100 * np.mean(right):.1f} % (")
        counts = [[float(row["putamen_ipsilateral"]) > 0 for row in regional if row["group"] == group]
                  for group in ("TN", "TP")]  # fmt: skip
        expected = ", ".join(f"{sum(of)} of {len(of)} {group}" for of, group in zip(counts, ("TN", "TP")))
        assert rows["Findings", "ipsilateral putamen positive"][number] == expected
        near = rows["Findings", "at most 4 mm from the striatum"][number]
        assert near == f"{sum(float(row['peak_distance_mm']) <= 4 for row in regional)} of {len(regional)}"
        assert (out / "paper" / run.name / "fig3.png").is_file()
    assert f"(paper/{runs[0].name}/fig3.png)" in text
    for finding in (
        "reduced scans in which the ipsilateral putamen is most relevant", "striatum, by density of absolute relevance",
        "hottest region of the heat map (TP − TN)", "most relevant voxel in the striatum",
    ):  # fmt: skip
        assert len(rows["Findings", finding]) == 3
    assert ("Sign of the relevance", "predicted − other, logit") in rows


def test_report_and_the_page_of_a_case_are_made_of_slabs(made):
    out, _ = made
    assert (out / "run" / "report.html").stat().st_size > 10_000
    table = read_table(out / "run" / "table1.tsv")
    assert {row["sex"] for row in table} == {row["age_mean"] for row in table} == {"n/a"}
    quality = read_table(out / "run" / "qc.tsv")
    assert {row["drift_mm"] for row in quality} == {"n/a"}
    assert all(row["verdict"] == "green" for row in quality), [row["reason"] for row in quality]
    slab = sorted((out / "slabs").glob("*.nii"))[0]
    datxai("case", f"scan={slab}", f"run={out / 'run'}")
    found = read_json(out / "run" / "cases" / slab.stem / "prediction.json")
    kept = read_json(out / "run" / "preprocessed" / f"{slab.stem}_space-MNI_spect.json")["measures"]
    assert found["coverage"] == kept["coverage"]
    assert found["putamen_left"] == kept["putamen_left"]
    assert (out / "run" / "cases" / slab.stem / "report.html").is_file()


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import real_slabs

    return real_slabs


@pytest.fixture
def refused(example, monkeypatch, capfd):
    """Gives the command words and returns what it said on its way out."""

    def refused(*words):
        monkeypatch.setattr(sys, "argv", ["real_slabs.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            example.main()
        assert ended.value.code == 2
        return capfd.readouterr().err

    return refused


def test_copies_are_those_of_one_class_however_many(cohort, example):
    """Smoothed to three degrees, in any order; of the other class they are other scans."""
    plain = [(name, np.array(Image.open(io.BytesIO(content)))) for name, content in cohort[1].items()
             if "smooth" not in name]  # fmt: skip
    slabs, expected = [], []
    for number, (name, grey) in enumerate(plain):
        for fwhm in (14, 0, 6, 10) if number % 5 == 0 else (0,):
            sigma = fwhm / 2.3548 / 2
            image = np.rint(ndimage.gaussian_filter(grey.astype(float), sigma)).astype(np.uint8)
            slabs.append(example.Slab(name, "/PD/" in name, image))
            expected.append(number)
    slabs.append(slabs[0]._replace(label=not slabs[0].label))
    expected.append(len(plain))
    found = example.find_scans(slabs)
    same = np.equal.outer(expected, expected)
    np.testing.assert_array_equal(np.equal.outer(found, found), same)


def test_the_side_of_the_left(example):
    grey = np.zeros((109, 91), np.uint8)
    grey[:50, :40] = 48  # in front, on the left of the picture
    for left_is, sign in (("left", -1), ("right", 1)):
        volume = example.to_volume(example.Slab("slab.png", 0, grey), left_is)
        centre = volume.grid.index_to_mm(ndimage.center_of_mass(volume.data))
        np.testing.assert_allclose(centre, [sign * 51, 41, 3])
        assert volume.data.max() == 2


def with_paths(name):
    def make(folder, pictures):
        return write_zip(folder / "bad.zip", {**pictures, name: next(iter(pictures.values()))})

    return make


def replace_one(content, suffix="HC"):
    def make(folder, pictures):
        name = next(name for name in pictures if f"/{suffix}/" in name)
        return write_folder(folder / "bad", {**pictures, name: content(pictures[name])})

    return make


def edit(change):
    """Changes the picture of one slab."""
    return replace_one(lambda content: to_png(change(np.array(Image.open(io.BytesIO(content))))))


def in_colour(content):
    stream = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def turned(folder, pictures):
    flip = lambda content: to_png(np.array(Image.open(io.BytesIO(content)))[::-1])  # noqa: E731
    return write_folder(folder / "bad", {name: flip(content) for name, content in pictures.items()})


def linked(folder, pictures):
    (folder / "elsewhere.png").write_bytes(next(iter(pictures.values())))
    bad = write_folder(folder / "bad", pictures)
    os.symlink(folder / "elsewhere.png", bad / "slabs" / "HC" / "link.png")
    return bad


def in_both_classes(folder, pictures):
    content = next(content for name, content in pictures.items() if "/HC/" in name)
    return write_folder(folder / "bad", {**pictures, "slabs/PD/other.png": content})


def no_zip(folder, pictures):
    (folder / "bad.zip").write_bytes(b"PK\x03\x04 and no more")
    return folder / "bad.zip"


def one_class(folder, pictures):
    return write_folder(folder / "bad", {name: content for name, content in pictures.items() if "/HC/" in name})


def striatum_off(grey):
    grey[:60] = 0  # nothing in front of y = -30
    return grey


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (edit(lambda grey: grey[:, :90]), "is 90 pixels wide, 109 high and grey of 8 bits, expected 91 x 109"),
        (edit(lambda grey: np.ascontiguousarray(grey.T)), "is 109 pixels wide, 91 high"),
        (replace_one(in_colour), "of mode RGB, expected 91 x 109 pixels, grey of 8 bits"),
        (replace_one(lambda content: content[:300]), "cannot be read as PNG"),
        (one_class, "has no folder PD with PNG pictures"),
        (lambda folder, _: write_zip(folder / "bad.zip", {}), "holds no PNG picture"),
        (with_paths("../../HC/out.png"), "leads out of the archive"),
        (with_paths("/tmp/HC/out.png"), "leads out of the archive"),
        (with_paths("..\\HC\\out.png"), "leads out of the archive"),
        (linked, "is a link that leads out of"),
        (no_zip, "cannot be read as a zip"),
        (lambda folder, _: folder / "nowhere", "no such file or folder"),
        (turned, "the striata lie behind the middle of the pictures"),
        (in_both_classes, "is the same picture as"),
        (edit(striatum_off), "0% of the left putamen, 0% of the right putamen"),
    ],
    ids=["narrow", "lying", "colour", "cut off", "one class", "empty", "parent", "absolute", "backslash", "link",
         "no zip", "nowhere", "turned", "both classes", "no striatum"],
)  # fmt: skip
def test_what_cannot_be_used_is_one_sentence_and_leaves_nothing(cohort, make, words, tmp_path, refused):
    (tmp_path / "given").mkdir()
    answer = refused(make(tmp_path / "given", cohort[1]), "--out", tmp_path / "out", *SHORT)
    assert words in answer
    assert len([line for line in answer.splitlines() if line.startswith(("real_slabs: ", "datxai: "))]) == 1
    assert "Traceback" not in answer
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_a_folder_that_is_not_ours_is_not_replaced(cohort, tmp_path, refused):
    (tmp_path / "out" / "slabs").mkdir(parents=True)
    (tmp_path / "out" / "slabs" / "mine.txt").write_text("mine")
    assert "not ours to replace" in refused(write_folder(tmp_path / "given", cohort[1]), "--out", tmp_path / "out")
    assert (tmp_path / "out" / "slabs" / "mine.txt").read_text() == "mine"
