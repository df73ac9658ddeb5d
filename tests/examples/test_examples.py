"""Every example is run by a test; those that need no more than a small run are run here."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from forked import datxai

from datxai.files import read_json

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN_BY = {  # files of the folder, and the module of the tests that runs them
    "test_examples": {"explain_any_network.py", "read_a_run.py", "my_conf/composite/gamma_everywhere.yaml"},
    "test_clever_hans": {"clever_hans.py"},
    "test_real_slabs": {"real_slabs.py"},
    "test_reproduce": {
        "classification.py", "comparison.py", "errors.py", "figure3.py", "figure4.py", "figure5.py", "nazari2021.py",
        "peaks.py", "regions.py", "repeats.py", "reproduce.py", "sign_of_relevance.py", "supplement1.py", "table1.py",
    },
}  # fmt: skip
GALLERY = ("gallery.py", "gallery/*.py", "notebooks/*.ipynb")  # test_gallery runs whatever is there
LIBRARY = {"nazari2021.py"}  # what the scripts of the paper share


def test_no_example_is_left_out():
    of_gallery = {path for pattern in GALLERY for path in EXAMPLES.glob(pattern)}
    there = (path for path in {*EXAMPLES.rglob("*")} - of_gallery if path.is_file() and path.suffix != ".pyc")
    assert {path.relative_to(EXAMPLES).as_posix() for path in there} == set().union(*RUN_BY.values())
    for module, names in RUN_BY.items():
        text = (Path(__file__).parent / f"{module}.py").read_text()
        for name in names - LIBRARY:
            assert Path(name).stem in text, (module, name)


def test_every_script_says_how_it_is_run():
    for path in EXAMPLES.glob("*.py"):
        assert path.name in LIBRARY or f"python examples/{path.name}" in path.read_text(), path


def call(name, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_any_network_is_explained(monkeypatch, capsys):
    call("explain_any_network.py", monkeypatch)
    first, *layers = capsys.readouterr().out.splitlines()
    assert first.startswith("relevance (4, 1, 24, 24, 24) starts with [")
    assert len(layers) >= 3 and all("got" in line and "handed on" in line for line in layers)


def test_a_run_is_read(finished, monkeypatch, capsys):
    pytest.importorskip("pandas")
    call("read_a_run.py", monkeypatch, finished[0])
    said = capsys.readouterr().out
    assert said.startswith("24 cases, 6 in the test set, ")
    assert "putamen_ipsilateral" in said and "least certain: sub-" in said


def test_a_composite_of_ones_own_explains_a_run(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    given = yaml.safe_load((EXAMPLES / "my_conf/composite/gamma_everywhere.yaml").read_text())
    command = ["explain", f"run={folder}", "--config-dir", str(EXAMPLES / "my_conf"), "composite=gamma_everywhere"]
    datxai(*command)
    used = read_json(folder / "manifest.json")["explain"]["config"]["composite"]
    assert (used["name"], used["layers"][0]["rule"]) == (given["name"], "gamma")
