"""Every page of the gallery runs, on the small cohort, and shows its picture; the notebooks kept are those pages."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="pip install 'datxai[docs]'")
nbformat = pytest.importorskip("nbformat", reason="pip install 'datxai[docs]'")
pytest.importorskip("nbclient", reason="pip install 'datxai[docs]'")

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "examples" / "gallery.py"
NOTEBOOKS = ROOT / "examples" / "notebooks"
WITHOUT_PICTURE = ("two_readers",)


def load_gallery():
    spec = importlib.util.spec_from_file_location("gallery", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gallery = load_gallery()


def call(script, *words, cwd):
    """What the tool said; it runs as a user would run it, since a kernel has sockets and tasks of its own."""
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1500)


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    """Every page as a notebook with what it showed. The cohort that the first would make is the tests' own."""
    folder = tmp_path_factory.mktemp("gallery")
    shutil.copytree(finished[0], folder / "runs" / "cohort")
    answer = call(TOOL, "--folder", folder, "--out", folder / "made", cwd=folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr[-4000:]
    return {name: nbformat.read(folder / "made" / f"{name}.ipynb", as_version=4) for name in answer.stdout.split()}


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_enough_and_all_are_listed():
    listed = re.findall(r"\(\.\./examples/gallery/(\w+)\.py\)", (ROOT / "docs/gallery.md").read_text())
    assert len(listed) >= 24 and sorted(listed) == sorted(gallery.list_pages())


def test_every_page_runs_and_shows_its_picture(pages):
    assert list(pages) == gallery.list_pages()
    for name, notebook in pages.items():
        found = outputs_of(notebook)
        assert not [output for output in found if output.output_type == "error"], name
        said = [output.text for output in found if output.output_type == "stream" and output.name == "stderr"]
        assert said == [], (name, said)
        pictures = [output.data["image/png"] for output in found if "data" in output and "image/png" in output.data]
        assert pictures or name in WITHOUT_PICTURE, name
        assert all(len(picture) > 5_000 for picture in pictures), name
        nbformat.validate(notebook)


def test_a_page_is_short_and_begins_with_its_title():
    for name in gallery.list_pages():
        notebook = gallery.read_page(name)
        assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# "), name
        code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        assert len(code.splitlines()) <= 60, name


@pytest.mark.parametrize("name", gallery.KEPT)
def test_the_notebooks_kept_are_the_pages_with_their_outputs(name):
    kept, page = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4), gallery.read_page(name)
    assert [cell.source for cell in kept.cells] == [cell.source for cell in page.cells], "examples/gallery.py --keep"
    assert any("image/png" in output.get("data", {}) for output in outputs_of(kept))
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    assert str(Path.home()) not in text and "/tmp" not in text


def test_a_page_that_fails_is_not_passed_over(tmp_path):
    tool = shutil.copy(TOOL, tmp_path)
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery/broken.py").write_text("# %% [markdown]\n# # Broken\n\n# %%\n1 / 0\n")
    answer = call(tool, "broken", cwd=tmp_path)
    assert answer.returncode != 0 and "division by zero" in answer.stderr
    assert not (tmp_path / "build").exists()
