"""The planted marker is found, in a cohort small enough for a test; in a clean one there is less to find."""

import json
import subprocess
import sys
from pathlib import Path

from datxai.analysis.spectral import LEVEL

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "clever_hans.py"


def test_the_marker_is_found(tmp_path):
    small = ["--train", "160", "--test", "140", "--epochs", "12"]
    command = [sys.executable, str(EXAMPLE), "--out", str(tmp_path), *small]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr
    found = json.loads((tmp_path / "clever_hans.json").read_text())
    clean, marked = found["clean"], found["marked"]
    assert clean["accuracy"] == clean["accuracy_without_marker"]
    assert marked["accuracy"] > marked["accuracy_without_marker"]
    assert clean["outside_head"] < 0.02 < marked["outside_head"]
    assert len(marked["groups"]) > 1
    assert marked["p"] <= LEVEL
    shares = sorted(group["marked"] for group in marked["groups"])
    assert shares[0] < 0.1 and shares[-1] > 0.9, "one group carries the marker and another does not"
    names = {path.name for path in tmp_path.iterdir()}
    assert {"clean.png", "clean.pdf", "marked.png", "marked.pdf"} <= names
