"""What a release is picked up with: the recipe, the image, the pins. None of them is built here; each has to agree."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from jinja2 import Template
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import datxai
from datxai import compose

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = {"pytorch": "torch", "matplotlib-base": "matplotlib"}  # names that differ


def instructions():
    """Instruction and rest of each line of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_recipe_has_the_requirements_of_the_package():
    recipe = yaml.safe_load(Template((ROOT / "packaging" / "meta.yaml").read_text()).render(PYTHON="python"))
    wanted = {one.name: one.specifier for one in map(Requirement, PROJECT["dependencies"])}
    asked = dict(line.split(maxsplit=1) for line in recipe["requirements"]["run"])
    assert SpecifierSet(asked.pop("python")) == SpecifierSet(PROJECT["requires-python"])
    assert {CONDA.get(name, name): SpecifierSet(version) for name, version in asked.items()} == wanted
    assert recipe["package"]["version"] == datxai.__version__
    assert recipe["build"]["entry_points"] == [f"{k} = {v}" for k, v in PROJECT["scripts"].items()]


def test_the_image_is_made_of_what_is_there():
    lines = instructions()
    assert lines[0][0] == "FROM"
    assert re.search(r"python:(\d\.\d+)", lines[0][1])[1] in SpecifierSet(PROJECT["requires-python"])
    copied = {word for kind, rest in lines if kind == "COPY" for word in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept, "what is copied is sent to the builder"
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "conf", "datxai"}
    assert needed <= copied


def test_the_image_shows_a_report():
    kind, rest = instructions()[-1]
    assert kind == "CMD"
    shell, option, line = json.loads(rest)
    assert (shell, option) == ("sh", "-c")
    first, second = line.split(" && ")
    program, *words = shlex.split(first)
    cfg = compose.compose(words)
    assert program == "datxai" and cfg.run in shlex.split(second) and cfg.data.n_subjects == sum(cfg.split.sizes)
    assert "8765" in shlex.split(second) and ["EXPOSE", "8765"] in instructions()


@pytest.mark.parametrize("line", (ROOT / "constraints.txt").read_text().splitlines())
def test_every_pin_lies_in_the_range_of_the_package(line):
    if line.startswith("#"):
        return
    pinned = Requirement(line)
    (version,) = pinned.specifier
    for text in [
        *PROJECT["dependencies"],
        *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
    ]:
        wanted = Requirement(text)
        assert wanted.name.lower() != pinned.name.lower() or version.version in wanted.specifier
