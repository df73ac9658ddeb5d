"""Scans found in folders of NIfTI and DICOM files and in a PPMI download."""

import gzip
import unicodedata
from pathlib import Path

import pytest

from datxai.cohort.ppmi import find_ppmi
from datxai.cohort.sources import _find_owner, find_dicom, find_folder
from datxai.errors import InputError

TABLE = "participant_id\tage\tsex\tlabel\nsub-01\t60\tF\t0\nsub-02\t70\tM\t1\n"
HEADER = "Image Data ID,Subject,Group,Sex,Age,Visit,Modality,Description,Type,Acq Date,Format,Downloaded\n"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "participants.tsv").write_text(TABLE)
    return tmp_path


def test_flat_names_with_and_without_prefix(folder):
    touch(folder, "01.nii.gz", "sub-02.nii")
    scans, skipped = find_folder(folder)
    assert [(scan.case_id, scan.files[0].name, scan.format) for scan in scans] == [
        ("sub-01", "01.nii.gz", "nifti"),
        ("sub-02", "sub-02.nii", "nifti"),
    ]
    assert scans[1].participant.age == 70
    assert skipped == []


def test_bids_names_sessions_and_what_is_no_scan(folder):
    touch(
        folder,
        "sub-01/ses-01/spect/sub-01_ses-01_trc-123IFPCIT_rec-FBP_spect.nii.gz",
        "sub-01/ses-02/spect/sub-01_ses-02_trc-123IFPCIT_rec-FBP_spect.nii.gz",
        "sub-02/ses-01/pet/sub-02_ses-01_pet.nii.gz",
        "sub-02/ses-01/anat/sub-02_ses-01_T1w.nii.gz",
        "derivatives/sub-02_ses-01_spect.nii.gz",
        ".hidden/sub-02_spect.nii.gz",
    )
    scans, _ = find_folder(folder)
    assert [scan.case_id for scan in scans] == ["sub-01_ses-01", "sub-01_ses-02", "sub-02"]
    assert [scan.participant.participant_id for scan in scans] == ["sub-01", "sub-01", "sub-02"]
    assert scans[2].files[0].name.endswith("_pet.nii.gz")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{participant_id}/spect.nii.gz", ("01/spect.nii.gz", "sub-02/spect.nii.gz", "01/t1.nii.gz")),
        ("p{participant_id}_*.nii", ("p01_x.nii", "p02_.nii", "mask.nii")),
        ("{participant_id}/{participant_id}.nii", ("01/01.nii", "02/02.nii", "01/02.nii")),
        ("a.b/{participant_id}.nii", ("a.b/01.nii", "a.b/02.nii", "a-b/01.nii")),
    ],
)
def test_pattern(folder, pattern, names):
    touch(folder, *names)
    scans, _ = find_folder(folder, pattern=pattern)
    assert [scan.files[0].relative_to(folder).as_posix() for scan in scans] == list(names[:2])


def test_an_identity_may_hold_what_follows_it_in_a_pattern(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tlabel\nMUC_001\t0\nMUC_001_2\t1\n")
    touch(tmp_path, "MUC_001_DaTSCAN.nii.gz", "MUC_001_2_DaTSCAN.nii.gz")
    scans, _ = find_folder(tmp_path, pattern="{participant_id}_*.nii.gz")
    assert {scan.case_id: scan.files[0].name for scan in scans} == {
        "MUC_001": "MUC_001_DaTSCAN.nii.gz", "MUC_001_2": "MUC_001_2_DaTSCAN.nii.gz",
    }  # fmt: skip


@pytest.mark.parametrize("pattern", [None, "{participant_id}.nii.gz"])
def test_accents_apart_from_their_letters_as_macos_writes_them(tmp_path, pattern):
    together, apart = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    assert together != apart
    (tmp_path / "participants.tsv").write_text(f"participant_id\tlabel\n{together}\t0\n2\t1\n", encoding="utf-8")
    touch(tmp_path, f"{apart}.nii.gz", "2.nii.gz")
    scans, _ = find_folder(tmp_path, pattern=pattern)
    assert [scan.case_id for scan in scans] == ["2", together]


def test_pattern_with_session(folder):
    touch(folder, "01/a/x.nii", "01/b/x.nii", "02/a/x.nii")
    scans, _ = find_folder(folder, pattern="{participant_id}/{session}/x.nii")
    assert [scan.case_id for scan in scans] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02"]


def test_linked_folders_are_followed_once(folder, tmp_path_factory):
    archive = tmp_path_factory.mktemp("archive")
    touch(archive, "sub-01_spect.nii.gz", "sub-02_spect.nii.gz")
    (folder / "link").symlink_to(archive)
    (archive / "loop").symlink_to(folder)
    assert [scan.case_id for scan in find_folder(folder)[0]] == ["sub-01", "sub-02"]


@pytest.mark.parametrize(
    ("names", "message", "left", "named"),
    [
        (("sub-01.nii",), "no scan of participant 'sub-02' among 1", ["sub-01"], ["sub-02"]),
        (("01.nii", "02.nii", "03.nii"), "has no participant '03'", ["sub-01", "sub-02"], ["03.nii"]),
        (("01.nii", "02.nii", "02.nii.gz"), "sub-02: 2 scans of one session", ["sub-01"], ["sub-02"]),
    ],
)
def test_mismatch_is_refused_or_skipped(folder, names, message, left, named):
    touch(folder, *names)
    with pytest.raises(InputError, match=message):
        find_folder(folder)
    scans, skipped = find_folder(folder, skip=True)
    assert [scan.case_id for scan in scans] == left
    assert [name for name, _ in skipped] == named


def test_a_skipped_row_does_not_make_its_scan_a_stranger(folder):
    (folder / "participants.tsv").write_text(TABLE + "sub-03\t50\tF\t5\n")
    touch(folder, "01.nii", "02.nii", "03.nii")
    scans, skipped = find_folder(folder, skip=True)
    assert [scan.case_id for scan in scans] == ["sub-01", "sub-02"]
    assert [name for name, _ in skipped] == ["sub-03"]


def test_missing_folder_table_and_field(folder):
    with pytest.raises(InputError, match=r"nowhere: no such folder; set data\.root"):
        find_folder(folder / "nowhere")
    with pytest.raises(InputError, match=r"list\.csv: no such file, expected a table of participants"):
        find_folder(folder, "list.csv")
    with pytest.raises(InputError, match=r"has no \{participant_id\}"):
        find_folder(folder, pattern="*.nii")
    with pytest.raises(InputError, match=r"unknown field \{uid\}"):
        find_folder(folder, pattern="{uid}.nii")


def test_dicom_folders_and_names(folder):
    touch(folder, "sub-01/a/b/2.dcm", "sub-01/a/b/1.DCM", "sub-01/notes.txt", "02_tomo.dcm", "DICOMDIR")
    (folder / "sub-01/a/IM0001").write_bytes(b"\0" * 128 + b"DICM")
    scans, skipped = find_dicom(folder)
    assert [(scan.case_id, [file.name for file in scan.files], scan.format) for scan in scans] == [
        ("sub-01", ["IM0001", "1.DCM", "2.dcm"], "dicom"),
        ("sub-02", ["02_tomo.dcm"], "dicom"),
    ]
    assert scans[1].participant.age == 70
    assert [name for name, _ in skipped] == ["sub-01/notes.txt"]


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir"])
def test_dicom_is_told_by_content(folder, name):
    explicit = b"\x08\0\x05\0CS\x0a\0ISO_IR 100"
    touch(folder, "readme.txt", "01/IM1", "01/photo.jpg", "01/empty")
    (folder / "01/IM1").write_bytes(explicit)  # without preamble
    (folder / "01/IM2.dcm.gz").write_bytes(gzip.compress(bytes(128) + b"DICM"))
    (folder / "01/photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "01/scan.dcm").write_bytes(gzip.compress(explicit))
    (folder / "02").mkdir()
    (folder / "02/IM1").write_bytes(b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100")  # implicit VR
    for place in (folder / name, folder / "02" / name):
        place.write_bytes(bytes(128) + b"DICM")
    scans, skipped = find_dicom(folder)
    assert [file.name for file in scans[0].files] == ["IM1", "IM2.dcm.gz", "scan.dcm"]
    assert [file.name for file in scans[1].files] == ["IM1"]
    assert dict(skipped) == {
        "01/empty": f"{folder / '01/empty'}: is not DICOM, passed over",
        "01/photo.jpg": f"{folder / '01/photo.jpg'}: is a picture, passed over",
        f"02/{name}": f"{folder / '02' / name}: lists the files of a medium, passed over",
    }


def test_dicom_sessions(folder):
    touch(folder, "01/ses-a/x.dcm", "01/ses-b/x.dcm", "sub-02_ses-a.dcm")
    scans, _ = find_dicom(folder)
    assert [scan.case_id for scan in scans] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02"]


def test_sessions_that_are_dates_are_not_merged(folder):
    touch(folder, "01/ses-2020-01-15/x.dcm", "01/ses-2020-07-02/x.dcm")
    touch(folder, "sub-02_ses-a-b_spect.dcm", "sub-02_ses-a-c.dcm")
    scans, _ = find_dicom(folder)
    assert [scan.case_id for scan in scans] == [
        "sub-01_ses-2020-01-15", "sub-01_ses-2020-07-02", "sub-02_ses-a-b", "sub-02_ses-a-c",
    ]  # fmt: skip


def test_sessions_of_nifti_files_in_their_folder_or_name(folder):
    touch(folder, "sub-01/ses-2020-01-15/sub-01_spect.nii.gz", "sub-01/ses-2020-07-02/sub-01_spect.nii.gz")
    touch(folder, "sub-02_ses-2020-01-15_run-1_spect.nii", "sub-02_ses-2020-07-02_run-1_spect.nii")
    scans, _ = find_folder(folder)
    assert [scan.case_id for scan in scans] == [
        "sub-01_ses-2020-01-15", "sub-01_ses-2020-07-02", "sub-02_ses-2020-01-15", "sub-02_ses-2020-07-02",
    ]  # fmt: skip


def test_dicom_names_are_not_mistaken_for_longer_ones(folder):
    (folder / "participants.tsv").write_text(TABLE.replace("sub-02", "sub-01_2"))
    touch(folder, "01.dcm", "01_2.dcm")
    scans, _ = find_dicom(folder)
    assert [(scan.case_id, scan.files[0].name) for scan in scans] == [("sub-01", "01.dcm"), ("sub-01_2", "01_2.dcm")]


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("a1.dcm", "a1"), ("a1", "a1"), ("sub-a1_x.dcm", "a1"), ("a12.dcm", None), ("a1_2.dcm", "a1_2"),
        ("a1_23.dcm", "a1"), ("a1é.dcm", "a1"), ("a.1+.dcm", "a.1+"), ("A1.dcm", None), ("", None),
    ],
)  # fmt: skip
def test_whose_file_it_is(name, owner):
    assert _find_owner(name, {"a1", "a1_2", "a.1+"}, is_file=True) == owner


def test_files_are_matched_without_a_look_at_every_participant():
    class Asked(set):
        def __iter__(self):
            pytest.fail("a cohort of 1296 files took 48 s")

    assert _find_owner("sub-0777_spect.dcm", Asked(["0777", "07"]), is_file=True) == "0777"


@pytest.mark.parametrize(
    ("files", "message", "name"),
    [
        (("01/x.dcm", "02.dcm", "03/x.dcm", "03/y.dcm"), "03: participants.tsv has no participant for these", "03"),
        (("01/x.dcm", "02.dcm", "011.dcm"), "no participant for these DICOM files", "011.dcm"),
        (("01/x.dcm",), "no scan of participant 'sub-02' among the DICOM files", "sub-02"),
    ],
)
def test_dicom_mismatch_is_refused_or_skipped(folder, files, message, name):
    touch(folder, *files)
    with pytest.raises(InputError, match=message):
        find_dicom(folder)
    scans, skipped = find_dicom(folder, skip=True)
    assert [where for where, _ in skipped] == [name]
    assert len(scans) == (1 if name == "sub-02" else 2)


def test_dicom_of_a_refused_row_is_passed_over(folder):
    (folder / "participants.tsv").write_text(TABLE + "sub-03\t60\tF\t7\n")
    touch(folder, "01.dcm", "02.dcm", "03.dcm")
    scans, skipped = find_dicom(folder, skip=True)
    assert len(scans) == 2
    assert [where for where, _ in skipped] == ["sub-03"]


def test_dicom_needs_a_folder_and_a_table(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_dicom(tmp_path / "absent")
    with pytest.raises(InputError, match="expected a table of participants"):
        find_dicom(tmp_path)


def ppmi(root: Path, rows: list[str], folders: list[str]) -> Path:
    """A download: ``rows`` of the collection; in each of ``folders`` two files of a series."""
    for folder in folders:
        touch(root / "PPMI", f"{folder}/b.dcm", f"{folder}/a.dcm")
    (root / "collection.csv").write_text(HEADER + "\n".join(rows) + "\n")
    (root / "other.csv").write_text("a,b\n1,2\n")
    return root


def row(image, subject, group, visit="SC", date="3/24/2011", description="Reconstructed DaTSCAN"):
    cells = (image, subject, group, "F", 65, visit, "SPECT", description, "Original", date, "DCM", "x")
    return ",".join(f'"{cell}"' for cell in cells)


def place(subject, image, date="2011-03-24_15_46_59.0", description="Reconstructed_DaTSCAN"):
    return f"{subject}/{description}/{date}/{image}"


CONTROL, PATIENT = row("I1", 3001, "Control"), row("I2", 3002, "PD")
FOLDERS = [place(3001, "I1"), place(3002, "I2")]


@pytest.mark.parametrize("root", ["", "PPMI"])
def test_ppmi_tree(tmp_path, root):
    ppmi(tmp_path, [CONTROL, PATIENT, row("I9", 3001, "Control", description="MPRAGE")], FOLDERS)
    touch(tmp_path, "PPMI/3001/MPRAGE/2011-03-24/I9/a.dcm")
    scans, skipped = find_ppmi(tmp_path / root)
    assert [(s.case_id, s.participant.label, s.participant.sex, s.participant.age) for s in scans] == [
        ("3001", 0, "F", 65.0),
        ("3002", 1, "F", 65.0),
    ]
    assert [file.name for file in scans[0].files] == ["a.dcm", "b.dcm"]
    assert scans[0].format == "dicom"
    assert skipped == []


def test_ppmi_visits_are_sessions_and_other_groups_are_counted(tmp_path):
    rows = [CONTROL, PATIENT, row("I3", 3002, "PD", "Month 12", "4/1/2012"), row("I4", 3003, "SWEDD")]
    folders = [*FOLDERS, place(3002, "I3", "2012-04-01_10_00_00.0"), place(3003, "I4")]
    scans, skipped = find_ppmi(ppmi(tmp_path, rows, folders))
    assert [scan.case_id for scan in scans] == ["3001", "3002_ses-Month12", "3002_ses-SC"]
    assert {scan.participant.participant_id for scan in scans} == {"3001", "3002"}
    assert skipped == [("I4", "group 'SWEDD' is not included")]


def test_ppmi_series_folders_are_found_by_file_name_or_date(tmp_path):
    root = ppmi(tmp_path, [CONTROL, PATIENT], [place(3002, "S77")])
    touch(root / "PPMI", place(3001, "S76") + "/PPMI_3001_NM_1_S76_I1.dcm")
    scans, _ = find_ppmi(root)
    assert [scan.files[0].parent.name for scan in scans] == ["S76", "S77"]


@pytest.mark.parametrize(
    ("rows", "folders", "message", "left"),
    [
        ([CONTROL, PATIENT, row("I5", 3005, "PD")], FOLDERS, "scan I5 of subject 3005 is listed", 2),
        ([CONTROL, PATIENT], [*FOLDERS, place(3005, "I5")], "has no row for this scan", 2),
        (
            [CONTROL, PATIENT, row("I5", 3002, "PD")],
            [*FOLDERS, place(3002, "I5")],
            "3002: 2 scans of one",
            None,
        ),
        ([CONTROL, PATIENT], [*FOLDERS, place(3002, "I2", "copy")], "lies in 2 folders", None),
    ],
)
def test_ppmi_mismatch_is_refused_or_skipped(tmp_path, rows, folders, message, left):
    root = ppmi(tmp_path, rows, folders)
    with pytest.raises(InputError, match=message):
        find_ppmi(root)
    if left is None:  # the only patient is lost
        with pytest.raises(InputError, match=r"no participant with label 1"):
            find_ppmi(root, skip=True)
    else:
        scans, skipped = find_ppmi(root, skip=True)
        assert len(scans) == left
        assert len(skipped) == 1


@pytest.mark.parametrize("separator", [";", "\t"])
def test_ppmi_collections_as_people_save_them_beside_other_tables(tmp_path, separator):
    root = ppmi(tmp_path, [], FOLDERS)
    plain = "\n".join([HEADER.strip(), *(row.replace('"', "") for row in (CONTROL, PATIENT)), ",,,"])
    (root / "collection.csv").write_text("\ufeff" + plain.replace(",", separator))
    (root / "export.csv").write_text("x" * 200_000 + "\n")
    (root / "picture.csv").write_bytes(bytes(range(256)))
    scans, _ = find_ppmi(root)
    assert [scan.case_id for scan in scans] == ["3001", "3002"]


def test_ppmi_series_and_columns_of_other_names(tmp_path):
    other = row("I3", 3003, "PD", description="DaTSCAN recon")
    root = ppmi(tmp_path, [CONTROL, PATIENT, other], [*FOLDERS, place(3003, "I3", description="DaTSCAN_recon")])
    text = (root / "collection.csv").read_text()
    (root / "collection.csv").write_text(text.replace("Subject", "PATNO"))
    with pytest.raises(InputError, match=r"0 collection tables .* set data\.collection, or data\.columns"):
        find_ppmi(root)
    scans, _ = find_ppmi(root, columns={"Subject": "PATNO"}, descriptions=["Reconstructed DaTSCAN", "DaTSCAN recon"])
    assert [scan.case_id for scan in scans] == ["3001", "3002", "3003"]
    with pytest.raises(InputError, match=r"no series is called 'SPECT', found 'Reconstructed DaTSCAN' \(2\), 'DaTSCAN"):
        find_ppmi(root, columns={"Subject": "PATNO"}, descriptions=["SPECT"])
    with pytest.raises(InputError, match=r"data\.columns: unknown column 'PATNO'"):
        find_ppmi(root, columns={"PATNO": "Subject"})


def test_ppmi_converted_to_nifti(tmp_path):
    root = ppmi(tmp_path, [CONTROL, PATIENT], [place(3001, "I1")])
    touch(root / "PPMI", place(3002, "I2") + "/PPMI_3002_NM_I2.nii.gz", place(3002, "I2") + "/PPMI_3002_NM_I2.json")
    touch(root / "PPMI", place(3001, "I1") + "/beside.nii.gz")
    scans, _ = find_ppmi(root)
    assert [(scan.case_id, scan.format, scan.files[0].name) for scan in scans] == [
        ("3001", "dicom", "a.dcm"), ("3002", "nifti", "PPMI_3002_NM_I2.nii.gz"),
    ]  # fmt: skip


def test_ppmi_unknown_group_lists_what_there_is(tmp_path):
    root = ppmi(tmp_path, [CONTROL, PATIENT, row("I4", 3003, "SWEDD")], FOLDERS)
    with pytest.raises(InputError, match=r"group 'HC', groups found: Control \(1\), PD \(1\), SWEDD \(1\)"):
        find_ppmi(root, groups={"HC": 0, "PD": 1})


def test_ppmi_needs_a_collection_and_the_tree(tmp_path):
    root = ppmi(tmp_path, [CONTROL, PATIENT], [])
    with pytest.raises(InputError, match="no DICOM files in the tree"):
        find_ppmi(root)
    (root / "collection.csv").rename(root / "second.csv")
    (root / "third.csv").write_text((root / "second.csv").read_text())
    with pytest.raises(InputError, match="2 collection tables"):
        find_ppmi(root)
    with pytest.raises(InputError, match=r"other\.csv: has no column 'Image Data ID'"):
        find_ppmi(root, "other.csv")


def test_where_no_label_is_needed_a_folder_needs_no_table(tmp_path):
    touch(tmp_path, "a.nii.gz", "deep/sub-b_ses-1_spect.nii.gz", "deep/sub-b_ses-2_spect.nii.gz", "sub-b_T1w.nii.gz")
    scans, skipped = find_folder(tmp_path, require_label=False)
    assert [scan.case_id for scan in scans] == ["a", "b_ses-1", "b_ses-2"]
    assert {scan.participant.label for scan in scans} == {None}
    assert scans[1].participant is scans[2].participant and skipped == []
    scans, _ = find_folder(tmp_path, pattern="deep/sub-{participant_id}_ses-{session}_*.nii.gz", require_label=False)
    assert [scan.case_id for scan in scans] == ["b_ses-1", "b_ses-2"]
    with pytest.raises(InputError, match=r"other\.tsv: no such file"):  # one that is named has to be there
        find_folder(tmp_path, "other.tsv", require_label=False)
    with pytest.raises(InputError, match=r"no scan among 4 NIfTI files, and no participants\.tsv"):
        find_folder(tmp_path, pattern="{participant_id}.img", require_label=False)
    touch(tmp_path, "other/a.nii")
    with pytest.raises(InputError, match="2 scans of one session"):
        find_folder(tmp_path, require_label=False)
    scans, skipped = find_folder(tmp_path, require_label=False, skip=True)
    assert [scan.case_id for scan in scans] == ["b_ses-1", "b_ses-2"] and [name for name, _ in skipped] == ["a"]


def test_a_file_that_can_name_nobody_is_refused_or_skipped(tmp_path):
    touch(tmp_path, "a.nii", "none.nii")
    with pytest.raises(InputError, match="participant_id 'none' cannot name files"):
        find_folder(tmp_path, require_label=False)
    scans, skipped = find_folder(tmp_path, require_label=False, skip=True)
    assert [scan.case_id for scan in scans] == ["a"] and [name for name, _ in skipped] == ["none.nii"]


def test_without_a_table_dicom_belongs_to_the_first_folder_or_the_file(tmp_path):
    touch(tmp_path, "P1/study/1.dcm", "P1/study/2.dcm", "P2/ses-1/1.dcm", "P2/ses-2/1.dcm", "x_y.dcm", "P1/note.txt")
    (tmp_path / "P1" / "note.txt").write_text("read me")
    scans, skipped = find_dicom(tmp_path, require_label=False)
    found = {scan.case_id: len(scan.files) for scan in scans}
    assert found == {"P1": 2, "P2_ses-1": 1, "P2_ses-2": 1, "x_y": 1}
    assert [name for name, _ in skipped] == ["P1/note.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no DICOM file, and no participants\.tsv"):
        find_dicom(tmp_path / "empty", require_label=False)


def test_a_table_without_labels_where_none_is_needed(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tsite\na\tX\nb\tn/a\n")
    touch(tmp_path, "a.nii", "b.nii")
    scans, _ = find_folder(tmp_path, require_label=False)
    assert [scan.participant.extra["site"] for scan in scans] == ["X", "n/a"]
    touch(tmp_path, "c.nii")
    with pytest.raises(InputError, match=r"participants\.tsv has no participant 'c'"):
        find_folder(tmp_path, require_label=False)


def test_ppmi_groups_without_a_label_where_none_is_needed(tmp_path):
    rows, folders = [PATIENT, row("I4", 3003, "SWEDD")], [FOLDERS[1], place(3003, "I4")]
    scans, skipped = find_ppmi(ppmi(tmp_path, rows, folders), require_label=False)
    assert [(scan.case_id, scan.participant.label) for scan in scans] == [("3002", 1), ("3003", None)]
    assert scans[1].participant.extra["group"] == "SWEDD" and skipped == []
