"""The command `datxai reads`: what it prints, what it writes, and that its labels are a table of participants."""

import pytest

from datxai.cohort.consensus import measure_kappa
from datxai.cohort.table import read_participants
from datxai.commands import reads
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json, read_table
from datxai.run import Run

READS = {  # session 1, 2, (3) of two readers, and their common read
    "a": ("00", "00", None),
    "b": ("11", "11", None),
    "c": ("010", "11", "reduced"),
    "d": ("11", "00", None),
    "e": ("0", "00", None),
    "f": ("00", "11", "excluded"),
}


@pytest.fixture
def path(tmp_path):
    lines = ["participant_id\treader\tsession\tread"]
    for name, (first, second, common) in READS.items():
        for reader, own in (("Ann", first), ("Bob", second)):
            lines += [f"{name}\t{reader}\t{session}\t{read}" for session, read in enumerate(own, start=1)]
        lines += [f"{name}\tconsensus\tn/a\t{common}"] * (common is not None)
    (tmp_path / "reads.tsv").write_text("\n".join(lines))
    return tmp_path / "reads.tsv"


def test_it_prints_and_writes(path, tmp_path, capsys):
    reads.run(Config(file=str(path), out=str(tmp_path / "out")), Run(tmp_path))
    expected = measure_kappa([0, 1, 0, 1, 0], [0, 1, 1, 0, 1])
    assert capsys.readouterr().out.splitlines() == [
        "6 cases: 1 normal, 2 reduced",
        "Intra-reader disagreement of Ann: 1 of 5 (20.0%)",
        "Intra-reader disagreement of Bob: 0 of 6 (0.0%)",
        "Inter-reader disagreement: 3 of 5 (60.0%)",
        f"Cohen's kappa {expected.kappa:.3f} (SE {expected.standard_error:.3f}, p = {expected.p_value:.3g})",
        "To be read by Ann session 2: 1 (e)",
        "To be read by consensus: 1 (d)",
        "Excluded: 1 (f)",
    ]
    rows = {row["participant_id"]: row for row in read_table(tmp_path / "out" / "consensus.tsv")}
    assert rows["c"] == {
        "participant_id": "c",
        "read_Ann": "0",
        "read_Bob": "1",
        "label": "1",
        "status": "consensus",
        "to_read": "n/a",
    }
    assert [row["label"] for row in rows.values()] == ["0", "1", "1", "n/a", "n/a", "n/a"]
    assert rows["e"]["to_read"] == "Ann session 2"
    written = read_json(tmp_path / "out" / "agreement.json")
    assert written["inter_reader"]["kappa"] == expected.kappa
    assert written["to_read"] == {"Ann session 2": ["e"], "consensus": ["d"]}
    assert written["excluded"] == ["f"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"consensus.tsv", "agreement.json"}


def test_labels_are_a_table_of_participants(path, tmp_path):
    reads.run(Config(file=str(path), out=str(tmp_path)), Run(tmp_path))
    skipped = []
    people = read_participants(tmp_path / "consensus.tsv", skipped=skipped)
    assert {person.participant_id: person.label for person in people} == {"a": 0, "b": 1, "c": 1}
    assert [name for name, _ in skipped] == ["d", "e", "f"]


def test_nothing_is_written_unless_asked_or_refused(path, tmp_path, capsys):
    reads.run(Config(file=str(path)), Run(tmp_path))
    path.write_text(path.read_text() + "\ng\tAnn\t1\tperhaps")
    with pytest.raises(InputError, match=r"reads\.tsv: participant 'g', reader 'Ann': read is 'perhaps'"):
        reads.run(Config(file=str(path), out=str(tmp_path / "out")), Run(tmp_path))
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match=r"file has no value; give the table of reads as file=READS\.tsv"):
        reads.run(Config(), Run(tmp_path))


def test_kappa_that_is_not_defined(tmp_path, capsys):
    lines = [f"{name}\t{reader}\t{session}\t0" for name in "pq" for reader in "AB" for session in (1, 2)]
    (tmp_path / "reads.tsv").write_text("\n".join(["participant_id\treader\tsession\tread", *lines]))
    reads.run(Config(file=str(tmp_path / "reads.tsv"), out=str(tmp_path)), Run(tmp_path))
    assert "Cohen's kappa is not defined: one category only" in capsys.readouterr().out
    assert read_json(tmp_path / "agreement.json")["inter_reader"]["kappa"] is None
