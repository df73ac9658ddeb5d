"""Participants from TSV and CSV, and one sentence for each thing that can be wrong with them."""

import pytest

from datxai.cohort.table import read_participants
from datxai.errors import InputError

TSV = "participant_id\tage\tsex\tlabel\tsite\nsub-01\t61.5\tF\t0\tA\nsub-02\tn/a\tmale\t1\tB\n"


def write(tmp_path, text, name="participants.tsv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_bids_table(tmp_path):
    first, second = read_participants(write(tmp_path, TSV))
    assert (first.participant_id, first.age, first.sex, first.label) == ("sub-01", 61.5, "F", 0)
    assert (second.participant_id, second.age, second.sex, second.label) == ("sub-02", None, "M", 1)
    assert first.extra == {"site": "A"}


def test_csv_with_other_columns_and_labels(tmp_path):
    text = "uid;Alter;group\na1;70,5;HC\nb2;66;PD\nc3;;PD\n"
    columns = {"participant_id": "uid", "age": "Alter", "sex": None, "label": "group"}
    people = read_participants(write(tmp_path, text, "list.csv"), columns, {"HC": 0, "PD": 1})
    assert [(p.participant_id, p.age, p.sex, p.label) for p in people] == [
        ("a1", 70.5, None, 0),
        ("b2", 66.0, None, 1),
        ("c3", None, None, 1),
    ]
    assert people[0].extra == {}


def test_age_and_sex_may_be_absent(tmp_path):
    people = read_participants(write(tmp_path, "participant_id\tlabel\n1\tnormal\n2\t1.0\n"))
    assert [(p.age, p.sex, p.label) for p in people] == [(None, None, 0), (None, None, 1)]


@pytest.mark.parametrize(
    ("text", "sex"), [("F", "F"), ("female", "F"), ("m", "M"), ("Male", "M"), ("O", None)]
)
def test_spellings_of_sex(tmp_path, text, sex):
    rows = f"participant_id\tsex\tlabel\n1\t{text}\t0\n2\tn/a\t1\n"
    assert read_participants(write(tmp_path, rows))[0].sex == sex


@pytest.mark.parametrize(
    ("text", "age", "told"),
    [
        ("66", 66, None), ("66.5", 66.5, None), ("66,5", 66.5, None), ("90+", 90, "90+"), (">89", 89, ">89"),
        ("89 or older", 89, "89 or older"), ("71 y", 71, "71 y"), ("n/a", None, None), ("", None, None),
        ("old", None, "old"), ("60-65", None, "60-65"), ("-3", None, "-3"), ("999", None, "999"), ("0", None, "0"),
        ("000Y", None, "000Y"),
    ],
)  # fmt: skip
def test_an_age_never_loses_a_subject(tmp_path, text, age, told):
    rows = f"participant_id\tage\tlabel\n1\t{text}\t0\n2\tn/a\t1\n"
    person = read_participants(write(tmp_path, rows))[0]
    assert (person.age, person.extra.get("age_as_told")) == (age, told)


def test_unlabelled_where_allowed(tmp_path):
    path = write(tmp_path, "participant_id\tage\n1\t60\n")
    assert read_participants(path, require_label=False)[0].label is None
    with pytest.raises(InputError, match=r"participants\.tsv: has no column 'label' for label, found"):
        read_participants(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age\tlabel\n60\t1\n", "no column 'participant_id'"),
        ("participant_id\tlabel\n", "has a header but no rows"),
        ("participant_id\tlabel\nsub-1\t0\n1\t1\n", "'sub-1' occurs in 2 rows"),
        ("participant_id\tlabel\n1\t0\n2\t2\n", "'2': label is '2'"),
        ("participant_id\tlabel\n1\t0\n2\tn/a\n", "'2': label is 'n/a'"),
        ("participant_id\tlabel\n1\t0\n2\t0\n", r"no participant with label 1 \(reduced\) among 2"),
        ("participant_id\tlabel\tsex\n1\t0\t1\n2\t1\t0\n", "sex is '1', expected F, M"),
        ("participant_id\tlabel\n\n1\tx\n2\t1\n3\ty\n", r"line 3: participant '1': .*line 5: participant '3'"),
        ("participant_id\tlabel\n../1\t0\n2\t1\n", "cannot name files"),
        ("participant_id\tlabel\nn/a\t0\n2\t1\n", "cannot name files"),
    ],
)
def test_one_sentence_for_each_mistake(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_participants(write(tmp_path, text))


def test_unusable_rows_are_listed_where_asked(tmp_path):
    path = write(tmp_path, "participant_id\tlabel\n1\t0\n2\t7\n3\t1\n4\t1\n4\t0\n")
    skipped = []
    people = read_participants(path, skipped=skipped)
    assert [p.participant_id for p in people] == ["1", "3"]
    assert [name for name, _ in skipped] == ["2", "4", "4"]


def test_why_no_row_can_be_used_is_told(tmp_path):
    path = write(tmp_path, "participant_id\tlabel\n1\to.B.\n2\tPD\n")
    with pytest.raises(InputError, match=r"2 rows are left out, the first because: .*label is 'o\.B\.'"):
        read_participants(path, skipped=[])


def test_renamed_column_must_exist(tmp_path):
    path = write(tmp_path, TSV)
    with pytest.raises(InputError, match="no column 'Alter' for age"):
        read_participants(path, {"age": "Alter"})
    with pytest.raises(InputError, match="unknown field 'name'"):
        read_participants(path, {"name": "x"})
    with pytest.raises(InputError, match="means 3, expected 0"):
        read_participants(path, label_values={"0": 3, "1": 1})
