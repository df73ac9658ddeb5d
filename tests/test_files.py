import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from datxai.errors import InputError, escape
from datxai.files import (
    hash_code,
    hash_content,
    hash_file,
    hash_once,
    read_arrays,
    read_json,
    read_rows,
    read_table,
    replacing,
    write_arrays,
    write_json,
    write_table,
)
from datxai.forms import is_nifti, tell_form


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_gives_the_permissions_of_an_ordinary_file(tmp_path):
    ordinary, ours, weights = (tmp_path / name for name in ("ordinary", "ours", "weights"))
    ordinary.write_text("")
    with replacing(ours) as temporary:
        temporary.write_text("")
    with replacing(weights) as temporary:
        save_file({"a": np.zeros(2)}, temporary)
    assert ours.stat().st_mode == weights.stat().st_mode == ordinary.stat().st_mode


def test_replacing_by_a_link_leaves_what_it_leads_to(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    before = folder.stat().st_mode
    with replacing(link) as temporary:
        temporary.unlink()
        temporary.symlink_to(folder)
    assert link.is_symlink() and folder.stat().st_mode == before


def test_replacing_leaves_the_umask_of_the_process_alone(tmp_path, monkeypatch):
    """It is that of all threads: another would write a file that anyone may read and write."""
    monkeypatch.setattr("os.umask", lambda mask: pytest.fail("the umask was changed"))
    with replacing(tmp_path / "a") as temporary:
        assert temporary.stat().st_mode & 0o111 == 0


def test_json_takes_numpy_and_writes_undefined_as_null(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": np.float32(1.5), "b": np.arange(2), "c": float("nan"), "d": (True, None)})
    assert json.loads(path.read_text()) == {"a": 1.5, "b": [0, 1], "c": None, "d": [True, None]}


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"a\.json"):
        read_json(path)


def test_table_round_trip(tmp_path):
    path = tmp_path / "a.tsv"
    write_table(path, [{"x": 1, "y": True, "z": None}, {"x": 0.1, "y": False}], ["x", "y", "z"])
    assert read_table(path) == [
        {"x": "1", "y": "true", "z": "n/a"},
        {"x": "0.1", "y": "false", "z": "n/a"},
    ]


DIALECTS = [
    "a,b\n1,2\n", "a;b\n1;2\n", "a\tb\n1\t2\n", "\ufeffa,b\r\n1,2\r\n", '"a","b"\n"1","2"', "a;b;;\n1;2;;\n;;;\n\n",
    "# made by hand\n\na,b\n1,2\n", "sep=;\na;b\n1;2\n", "a,b\r1,2\r", "a , b\n 1,2 \n",
]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
@pytest.mark.parametrize("text", DIALECTS)
def test_dialects(tmp_path, text, suffix, encoding):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(text.removeprefix("\ufeff").encode(encoding))
    assert read_table(path) == [{"a": "1", "b": "2"}]


def test_rows_know_their_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('# note\na,b\n1,"two\nlines"\n,\n\n3,"4 ""x"""\n')
    assert read_rows(path) == [(3, {"a": "1", "b": "two\nlines"}), (7, {"a": "3", "b": '4 "x"'})]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"a\tb\n1\n", "line 2 has 1 cells"),
        (b"a\tb\n1\n1\t2\n\n1\t2\t3\n", "line 2 has 1 cells, line 5 has 3 cells, the header has 2"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a\tb\n1\t2\nJos\xe9\t2\n", "line 3 is not text in UTF-8"),
        (b"a\ta\n1\t2\n", "'a' occurs more"),
        (b'a\tb\n1\t"left > right\n2\tok\n', "line 2 cannot be read"),
        (b'a\tb\n1\t"left\n2\t"ok"\n3\tx\n', "line 2 cannot be read"),
        (b'a\tb\n1\t2\n3\t"left\n2\t5"\n3\tx\n', "line 3 cannot be read"),
        (b"x" * 200_000, "line 1 cannot be read"),
        (b"a\tb\n1\t\0\n", "zero bytes"),
    ],
)
def test_bad_tables_are_explained(tmp_path, content, word):
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word):
        read_table(path)


def test_hashes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert hash_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2


@given(st.dictionaries(st.text(), st.integers()))
def test_hash_ignores_the_order_of_keys(content):
    assert hash_content(content) == hash_content(dict(reversed(content.items())))


def test_hash_sees_every_change():
    assert hash_content({"a": 1}) != hash_content({"a": 2})


def test_hash_takes_a_path_by_what_its_file_holds(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_text("a")
    there.write_text("a")
    before = hash_content({"labels": [here]})
    assert before == hash_content({"labels": [there]}) != hash_content({"labels": [str(here)]})
    here.write_text("b")
    assert hash_content({"labels": [here]}) != before
    assert hash_content(tmp_path / "missing") == hash_content(str(tmp_path / "missing")), "for a stage to tell of"


def test_code_is_that_of_the_modules_and_of_what_they_import(tmp_path, monkeypatch):
    (tmp_path / "room").mkdir()
    texts = {
        "files.py": "", "room/__init__.py": "", "room/a.py": "from datxai.room.b import name\nimport numpy\n",
        "room/b.py": "def f():\n    from datxai.room import c\n", "room/c.py": "name = 1\n", "room/d.py": "name = 1\n",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("datxai.files.__file__", str(tmp_path / "files.py"))
    marks = []
    for changed in (None, "room/d.py", "room/c.py", "room/b.py", "room/a.py"):
        if changed:
            (tmp_path / changed).write_text(texts[changed] + "# other\n")
        hash_code.cache_clear()
        marks.append(hash_code("datxai.room.a"))
    hash_code.cache_clear()
    assert marks[0] == marks[1] and len(set(marks)) == 4
    with pytest.raises(AssertionError):
        hash_code("datxai.room.missing")


def test_a_file_is_hashed_again_when_it_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("a")
    first = hash_once(path)
    monkeypatch.setattr("datxai.files.hash_file", lambda path: "read again")
    assert hash_once(path) == first
    path.write_text("other")
    assert hash_once(path) == "read again"


def test_what_would_be_waited_for_is_refused(tmp_path):
    pipe = tmp_path / "pipe.nii.gz"
    os.mkfifo(pipe)
    for read in (hash_file, tell_form, is_nifti, read_table):
        with pytest.raises(InputError, match=r"pipe\.nii\.gz: is a named pipe"):
            read(pipe)


@given(st.text())
def test_text_on_a_screen_is_printable_and_tells_what_is_not(text):
    shown = escape(text)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown == text or any(not c.isprintable() for c in text)


def test_what_turns_the_direction_of_writing_is_escaped():
    assert escape("scan\u202egz.exe\x1b[2J\r\udc80 Müller 3 µm") == r"scan\u202egz.exe\x1b[2J\r\udc80 Müller 3 µm"


def test_arrays_come_back_with_what_they_are_about(tmp_path):
    path = tmp_path / "a" / "arrays.safetensors"
    arrays = {"x/one": np.arange(6.0, dtype=np.float32).reshape(2, 3), "y": np.array([7], np.int64)}
    write_arrays(path, arrays, {"n": 2, "words": ["a", "\u00e4"]})
    found, about = read_arrays(path)
    assert about == {"n": 2, "words": ["a", "\u00e4"]} and found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert [*tmp_path.iterdir()] == [path.parent] and [*path.parent.iterdir()] == [path]
    write_arrays(path, {})
    assert read_arrays(path) == ({}, None)


@pytest.mark.parametrize("content", [b"", b"no arrays", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"[:9], None])
def test_what_holds_no_arrays_is_refused(tmp_path, content):
    path = tmp_path / "arrays.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as arrays"):
        read_arrays(path)
