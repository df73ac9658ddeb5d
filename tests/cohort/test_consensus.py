"""Consensus of readers and Cohen's kappa, against scikit-learn, the delta method and the paper."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datxai.cohort.consensus import RecordedRead, measure_kappa, reach_consensus, read_reads
from datxai.errors import InputError

DELTA_TOLERANCE = 1e-5  # relative, of numerical derivatives


def expand(table):
    """Two raters' categories from a contingency table."""
    pairs = [(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)]
    return np.array(pairs).T


def kappa_of(p):
    expected = p.sum(axis=1) @ p.sum(axis=0)
    return (np.trace(p) - expected) / (1 - expected)


def delta_error(p, n, step=1e-6):
    """Standard error of kappa of a multinomial table by numerical derivatives."""
    gradient = np.empty(p.shape)
    for cell in np.ndindex(p.shape):
        change = np.zeros(p.shape)
        change[cell] = step
        gradient[cell] = (kappa_of(p + change) - kappa_of(p - change)) / (2 * step)
    return math.sqrt(((p * gradient**2).sum() - (p * gradient).sum() ** 2) / n)


TABLES = [
    [[75, 1, 4], [5, 4, 1], [0, 0, 10]],
    [[660, 12], [19, 615]],
    [[20, 30], [25, 25]],
    [[1, 3], [2, 40]],
]


@pytest.mark.parametrize("table", TABLES)
def test_kappa(table):
    from sklearn.metrics import cohen_kappa_score

    first, second = expand(table)
    result = measure_kappa(first, second)
    p = np.array(table) / np.sum(table)
    assert result.n == np.sum(table)
    assert result.agreement == pytest.approx(np.trace(p))
    assert result.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert result.standard_error == pytest.approx(delta_error(p, result.n), rel=DELTA_TOLERANCE)
    null = delta_error(np.outer(p.sum(axis=1), p.sum(axis=0)), result.n)
    assert result.p_value == pytest.approx(math.erfc(abs(result.kappa) / null / math.sqrt(2)), rel=1e-3)


@pytest.mark.parametrize("normal_by_one", [0, 15, 31])
@pytest.mark.parametrize("normal_by_both", [645, 666, 686])
def test_kappa_of_the_paper(normal_by_both, normal_by_one):
    """1275 of 1306 scans agree: kappa 0.952, standard error 0.008, p < 0.0005 (Nazari et al. 2022).

    The paper gives no margins, but 676 final normal labels and 10 excluded scans leave 645 to 686 for both normal,
    and kappa hardly depends on where in that range it was, or on who of the two called more scans normal.
    """
    n = 1306
    table = [[normal_by_both, normal_by_one], [31 - normal_by_one, n - 31 - normal_by_both]]
    result = measure_kappa(*expand(table))
    assert result.kappa == pytest.approx(0.952, abs=6e-4)
    assert round(result.standard_error, 3) == 0.008
    assert result.p_value < 0.0005
    # second way: both normal or reduced by chance, from the counts
    first, second = normal_by_both + normal_by_one, normal_by_both + 31 - normal_by_one
    chance = (first * second + (n - first) * (n - second)) / n**2
    assert result.kappa == pytest.approx(1 - (31 / n) / (1 - chance), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40))
def test_kappa_is_symmetric_and_at_most_one(pairs):
    first, second = np.array(pairs).T
    one, other = measure_kappa(first, second), measure_kappa(second, first)
    if len({*first, *second}) < 2:
        assert math.isnan(one.kappa)
        return
    assert one.kappa == pytest.approx(other.kappa)
    assert one.standard_error == pytest.approx(other.standard_error, abs=1e-9)
    assert one.kappa <= 1 + 1e-12
    assert (one.kappa == pytest.approx(1)) == (first == second).all()


def reads(**given):
    """Reads of a participant from ``A='01'``: session 1 read 0, session 2 read 1; '-' is not read yet."""
    return [
        RecordedRead("p", reader, session, None if read == "x" else int(read))
        for reader, letters in given.items()
        for session, read in enumerate(letters, start=1)
        if read != "-"
    ]


@pytest.mark.parametrize(
    ("given_reads", "label", "status", "to_read"),
    [
        (reads(A="00", B="00"), 0, "agreed", ""),
        (reads(A="011", B="11"), 1, "agreed", ""),
        (reads(A="00", B="11"), None, "to read", "consensus"),
        (reads(A="00", B="11", consensus="1"), 1, "consensus", ""),
        (reads(A="00", B="11", consensus="x"), None, "excluded", ""),
        (reads(A="01", B="11"), None, "to read", "A session 3"),
        (reads(A="01", B="1"), None, "to read", "A session 3, B session 2"),
        (reads(A="-0", B="11"), None, "to read", "A session 1"),
        (reads(A="--1", B="11"), None, "to read", "A session 1, A session 2"),
        (reads(A="010", B="101"), None, "to read", "consensus"),
    ],
)
def test_consensus_of_one_participant(given_reads, label, status, to_read):
    (row,) = reach_consensus(given_reads).rows
    assert (row["label"], row["status"], row["to_read"]) == (label, status, to_read)


def test_a_participant_one_reader_has_not_seen():
    cohort = [RecordedRead("q", "B", 1, 0), RecordedRead("q", "B", 2, 0), *reads(A="00", B="00")]
    result = reach_consensus(cohort)
    assert result.rows[0]["to_read"] == "A session 1, A session 2"
    assert result.labels == {"p": 0}
    assert result.kappa.n == 1


def test_consensus_of_a_cohort_from_a_table(tmp_path):
    lines = ["participant_id\treader\tsession\tread"]
    truth = {"a": "0000", "b": "1111", "c": "0011", "d": "1111", "e": "0000", "f": "1100"}
    for name, letters in truth.items():
        sessions = ("A\t1", "A\t2", "B\t1", "B\t2")
        lines += [f"{name}\t{session}\t{read}" for session, read in zip(sessions, letters)]
    lines += ["c\tconsensus\tn/a\treduced", "f\tconsensus\t1\texcluded"]
    path = tmp_path / "reads.tsv"
    path.write_text("\n".join(lines))
    result = reach_consensus(read_reads(path))
    assert result.readers == ("A", "B")
    assert result.labels == {"a": 0, "b": 1, "c": 1, "d": 1, "e": 0}
    assert [row["status"] for row in result.rows] == ["agreed"] * 2 + ["consensus"] + ["agreed"] * 2 + ["excluded"]
    assert result.kappa == measure_kappa([0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0])


def test_intra_reader_disagreement_counts_scans_read_twice():
    people = {"p": ("011", "00"), "q": ("00", "10"), "r": ("1", "11"), "s": ("100", "01")}
    cohort = [
        RecordedRead(name, reader, session, int(read))
        for name, letters in people.items()
        for reader, own in zip("AB", letters)
        for session, read in enumerate(own, start=1)
    ]
    result = reach_consensus(cohort)
    assert result.intra_reader == {"A": {"n": 3, "disagreed": 2}, "B": {"n": 4, "disagreed": 2}}
    summary = result.summarise()
    assert summary["to_read"] == {"A session 2": ["r"], "B session 3": ["q", "s"], "consensus": ["p"]}
    assert summary["inter_reader"]["n"] == summary["inter_reader"]["disagreed"] == 1  # of p alone both are complete


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p\tA\t1\t2", "participant 'p', reader 'A': read is '2', expected 0 or normal"),
        ("p\tA\t1\tn/a", "read is 'n/a', .* remove the row if the scan is still to be read"),
        ("p\tA\t1\texcluded", "read is 'excluded'"),
        ("p\tA\t4\t1", "session is '4'"),
        ("p\tA\t1\t1\np\tA\t1\t0", "read twice by 'A' in session 1"),
        ("p\tA\t1\t1", r"has 1 readers \(A\), expected two"),
        ("p\tA\t1\t1\np\tB\t1\t1\np\tC\t1\t1", r"has 3 readers \(A, B, C\), expected two"),
        ("p\tconsensus\t1\t1", r"has 0 readers \(none\), expected two"),
        ("n/a\tA\t1\t1", "participant or reader is missing"),
        ("p\tA\t1", "line 2 has 3 cells, the header has 4"),
        ("", "has a header but no rows"),
    ],
)
def test_mistakes_in_a_table_name_the_file(tmp_path, row, message):
    path = tmp_path / "my_reads.tsv"
    path.write_text(f"participant_id\treader\tsession\tread\n{row}\n")
    with pytest.raises(InputError, match=rf"my_reads\.tsv: .*{message}"):
        reach_consensus(read_reads(path), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("participant_id\treader\tread\n1\tA\t0\n", r"my_reads\.tsv: has no column 'session'"),
        ("", r"my_reads\.tsv: the table is empty"),
        (None, r"my_reads\.tsv: no such table"),
    ],
)
def test_no_table_of_reads(tmp_path, text, message):
    path = tmp_path / "my_reads.tsv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_reads(path)
