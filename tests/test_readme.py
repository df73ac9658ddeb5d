"""What the README says: its numbers are those of the reproduction, its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest

from datxai import compose
from datxai.config import COMMANDS, STAGES
from datxai.order import key_of, read_order

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS_SHOWN = [
    line.partition("  #")[0].partition(" #")[0].strip()
    for name in ("README.md", "docs/tutorial.md", "docs/installation.md")
    for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.startswith("datxai")
]


def test_the_numbers_are_those_of_the_reproduction():
    rows = re.findall(r"^\| (.+?) \| ([\d.]+ % \([\d.]+ to [\d.]+\)) \|$", README, re.MULTILINE)
    assert len(rows) == 3
    reproduction = (ROOT / "docs/reproduction.md").read_text()
    for found, place in zip(
        (value for _, value in rows),
        (
            "CNN: Accuracy",
            "relevance in the ipsilateral putamen above zero: Accuracy",
            "the same, correctly classified",
        ),
    ):
        line = next(line for line in reproduction.splitlines() if line.startswith(f"| {place}"))
        assert found in line, (found, line)
    assert "n = 288 and 53" in reproduction and "53 test cases" in README


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS_SHOWN))
def test_a_command_is_one(line):
    """It is read, its task is there, and its settings compose; folders that are yours are left open."""
    words = shlex.split(line)[1:]
    order = read_order(words)
    assert order.task in (*STAGES, *COMMANDS, "all", "help", "version")
    own = {"composite": "mine", "search": None}
    settings = [word for word in order.words if own.get(key_of(word)) != word.partition("=")[2]]
    plain = [word for word in settings if not order.sweeps or key_of(word) not in ("training.seed",)]
    compose.compose([*plain, *([] if any(key_of(word) == "run" for word in plain) else ["run=."])])


def test_the_makefile_has_the_commands():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^`?make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
