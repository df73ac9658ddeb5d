"""What users install: the wheel, built from the sdist, in a fresh environment, away from the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_runs_the_journey_in_a_fresh_environment(tmp_path):
    def run(*command, cwd=tmp_path):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        answer = subprocess.run(
            [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1500
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    source = shutil.copytree(CHECKOUT, tmp_path / "source", ignore=ignored)
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", source)  # the sdist, and the wheel from it
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "constraints.txt", "docs/index.md", "examples/gallery.py", "tests/conftest.py"} <= there
    venv.create(tmp_path / "venv", with_pip=True)
    (there,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for package in map(distribution, ("torch", "torchvision")):  # gigabytes that are here already; not what they need
        for name in {file.parts[0] for file in package.files} - {".."}:
            (there / name).symlink_to(package.locate_file(name))
    python, command = (tmp_path / "venv" / "bin" / name for name in ("python", "datxai"))
    run(python, "-m", "pip", "install", "-q", "--no-compile", "-c", CHECKOUT / "constraints.txt", wheel)
    assert run(python, "-c", "import datxai; print(datxai.__file__)").startswith(str(tmp_path))
    assert "composite" in run(command, "--help")
    folder = tmp_path / "run"
    options = ["data.raw=false", "data.n_subjects=8", "grid=slab_12mm", "training.max_epochs=1", "split.sizes=[4,2,2]"]
    said = run(command, *options, "network.channels=[4,4,4,4]", f"run={folder}")
    assert str(folder / "report.html") in said
    assert (folder / "report.html").stat().st_size > 100_000
