"""Whatever departs from what was written is named by file, line and column."""

import pytest

from datxai.errors import InputError
from datxai.schema import FLAG, LABEL, NUMBER, TEXT, WHOLE, ByCase, one_of, read_columns, read_document

COLUMNS = {"participant_id": TEXT, "label": LABEL, "age": NUMBER.or_unknown(), "consistent": FLAG}
TABLE = "participant_id\tlabel\tage\tconsistent\tmore\na\t0\t61.5\ttrue\t7\nb\t1\tn/a\tfalse\t8\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text(TABLE)
    return path


def test_cells_come_back_with_their_types(table):
    assert read_columns(table, COLUMNS) == [
        {"participant_id": "a", "label": 0, "age": 61.5, "consistent": True},
        {"participant_id": "b", "label": 1, "age": None, "consistent": False},
    ]
    assert [row["more"] for row in read_columns(table, COLUMNS, others=WHOLE)] == [7, 8]
    assert [row["more"] for row in read_columns(table, COLUMNS, optional={"more": NUMBER, "less": TEXT})] == [7.0, 8.0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\tlabel\t", "\tklass\t", r"table\.tsv: line 1 has no column 'label', expected participant_id, label, age"),
        ("61.5", "old", r"table\.tsv: line 2, column 'age' holds 'old', expected a number, or n/a; run the stage"),
        ("61.5", "nan", r"line 2, column 'age' holds 'nan'"),
        ("b\t1", "b\t2", r"line 3, column 'label' holds '2', expected 0 \(normal\) or 1 \(reduced\)"),
        ("true", "yes", r"line 2, column 'consistent' holds 'yes', expected true or false"),
        ("\tfalse\t8\n", "\tfal", r"table\.tsv: line 3 has 4 cells, the header has 5"),
        (TABLE, "", r"table\.tsv: the table is empty"),
        (TABLE[TABLE.index("a\t0") :], "", r"table\.tsv: holds a header and no rows, expected at least one row"),
    ],
)
def test_departures_are_named(table, old, new, words):
    assert old in TABLE
    table.write_text(TABLE.replace(old, new, 1))
    with pytest.raises(InputError, match=words):
        read_columns(table, COLUMNS)


def test_a_missing_table_is_named_and_an_empty_one_may_be_right(tmp_path, table):
    with pytest.raises(InputError, match=r"gone\.tsv: no such table"):
        read_columns(tmp_path / "gone.tsv", COLUMNS)
    table.write_text("participant_id\treason\n")
    assert read_columns(table, {"reason": TEXT}, may_be_empty=True) == []


def test_rows_by_case(table):
    rows = ByCase(table, read_columns(table, COLUMNS))
    assert rows["b"]["label"] == 1
    assert rows.get("c") is None
    with pytest.raises(InputError, match=r"table\.tsv: has no line for c"):
        rows["c"]


def test_one_of_a_few_words(table):
    table.write_text("set\ntest\n")
    assert read_columns(table, {"set": one_of("train", "test")}) == [{"set": "test"}]
    with pytest.raises(InputError, match="column 'set' holds 'test', expected train or validation"):
        read_columns(table, {"set": one_of("train", "validation")})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "a is missing, expected a mapping"),
        ('{"a": 1}', "a is 1, expected a mapping"),
        ('{"a": {"t": "x", "on": true}}', r"a\.t is 'x', expected a number"),
        ('{"a": {"t": true, "on": true}}', r"a\.t is True, expected a number"),
        ('{"a": {"t": 1, "on": 1}}', r"a\.on is 1, expected true or false"),
        ("[]", "holds no JSON object"),
        ('{"a": {"t"', "not readable as JSON"),
    ],
)
def test_departures_of_documents_are_named(tmp_path, text, words):
    path = tmp_path / "document.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"document.json: {words}"):
        read_document(path, {"a": {"t": float, "on": bool}})


def test_a_document_as_it_should_be(tmp_path):
    path = tmp_path / "document.json"
    path.write_text('{"a": {"t": 1, "on": false}, "more": null}')
    assert read_document(path, {"a": {"t": float, "on": bool}}) == {"a": {"t": 1, "on": False}, "more": None}
    with pytest.raises(InputError, match=r"gone\.json: no such file"):
        read_document(tmp_path / "gone.json", {})
