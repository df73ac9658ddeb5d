"""`datxai doctor`: what stands in a bug report."""

import importlib.metadata
import platform
from dataclasses import replace
from pathlib import Path

import forked
import torch
from packaging.requirements import Requirement

import datxai
import datxai.explain
from datxai.commands import doctor
from datxai.config import Config
from datxai.run import Run, git_revision


def test_ten_lines_at_most_and_nothing_is_left(tmp_path):
    lines = forked.datxai("doctor", cwd=tmp_path).stdout.splitlines()
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert len(lines) <= 10 and list(said) == list(doctor.LINES)
    assert said["datxai"].startswith(datxai.__version__)
    assert said["torch"].startswith(torch.__version__)
    for name in ("zennit", "numpy", "hydra-core"):
        assert f"{name} {importlib.metadata.version(name)}" in said["packages"]
    assert not any("fails" in line or "WRONG" in line for line in lines)
    text = "\n".join(lines)
    assert str(Path.home()) not in text and platform.node() not in text and str(tmp_path) not in text
    assert not [*tmp_path.iterdir()]


def test_extras_are_those_of_the_package():
    expected: dict[str, list[str]] = {}
    for text in importlib.metadata.requires("datxai"):
        requirement = Requirement(text)
        for extra in importlib.metadata.metadata("datxai").get_all("Provides-Extra"):
            if extra not in ("dev", "docs") and requirement.marker and requirement.marker.evaluate({"extra": extra}):
                try:
                    importlib.metadata.version(requirement.name)
                    lacking = []
                except importlib.metadata.PackageNotFoundError:
                    lacking = [requirement.name]
                expected.setdefault(extra, []).extend(lacking)
    assert doctor.find_extras() == expected


def test_what_does_not_work_is_a_line(monkeypatch, capsys):
    def fail():
        raise ImportError(f"{Path.home()}/lib/libtorch.so: cannot be opened\nand more")

    right = datxai.explain.attribute

    def scaled(*given, **named):
        found = right(*given, **named)
        return replace(found, relevance=2 * found.relevance)

    monkeypatch.setattr(datxai.explain, "attribute", scaled)
    monkeypatch.setitem(doctor.LINES, "torch", fail)
    doctor.run(Config(), Run("."))
    lines = capsys.readouterr().out.splitlines()
    assert "torch       fails: ImportError: ~/lib/libtorch.so: cannot be opened" in lines
    assert "WRONG" in lines[-1]


def test_the_version_has_the_revision(tmp_path):
    said = forked.datxai("--version", cwd=tmp_path).stdout.strip()
    revision = git_revision()
    assert said == (f"{datxai.__version__} (git {revision})" if revision else datxai.__version__)
