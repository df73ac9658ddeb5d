"""Run the pages of examples/gallery, in one kernel and one folder, and write each as a notebook with its outputs.

    python examples/gallery.py [--out build/gallery] [--keep examples/notebooks] [NAME ...]

A page is a script of text and code (percent format: `# %%`). The first, `first_run`, makes the runs that the others
read. With --keep, the notebooks stored in the project are written too. Needs `pip install 'datxai[docs]'`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

PAGES = Path(__file__).resolve().parent / "gallery"
FIRST = "first_run"
KEPT = (FIRST, "own_composite", "is_it_right")  # stored as notebooks with their outputs
QUIET = """%reset -f
%matplotlib inline
%config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "dpi": 140}
import os
os.environ["TQDM_DISABLE"] = "1"
"""
SECONDS = 600  # limit for a cell


def list_pages() -> list[str]:
    """Names of the pages, starting with the one that makes the runs."""
    return [FIRST, *sorted(path.stem for path in PAGES.glob("*.py") if path.stem != FIRST)]


def read_page(name: str):
    """A page as a notebook without outputs."""
    import jupytext

    notebook = jupytext.read(PAGES / f"{name}.py")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def run_pages(names: Iterable[str], folder: Path) -> Iterator[tuple[str, object]]:
    """Each page as a notebook with outputs; one kernel runs all in ``folder`` and is reset in between.

    Raises nbclient's error for a page that fails.
    """
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    with TemporaryDirectory() as sockets:  # specific to this machine and user
        manager = KernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        manager.start_kernel(cwd=str(folder))
        try:
            for name in names:
                notebook = read_page(name)
                prepared = new_notebook(cells=[new_code_cell(QUIET), *notebook.cells])
                client = NotebookClient(prepared, km=manager, timeout=SECONDS, startup_timeout=SECONDS)
                client.execute()
                client.kc.stop_channels()
                _tidy(notebook)
                yield name, notebook
        finally:
            manager.shutdown_kernel(now=True)


def _tidy(notebook) -> None:
    """Number the cells of this page only; remove return values of matplotlib calls beside the figure."""
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count, cell.metadata = number, {}
        draws = any("image/png" in output.get("data", {}) for output in cell.outputs)
        cell.outputs = [
            output for output in cell.outputs if not (draws and {*output.get("data", {})} == {"text/plain"})
        ]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number


def main() -> None:
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pages; all of them by default")
    parser.add_argument("--out", type=Path, default=Path("build/gallery"))
    parser.add_argument("--folder", type=Path, help="where the pages run; a temporary folder by default")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")  # of small networks
    with TemporaryDirectory() as temporary:
        for name, notebook in run_pages(given.names or list_pages(), given.folder or Path(temporary)):
            print(name, flush=True)
            for folder in (given.out, given.keep if name in KEPT else None):
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    nbformat.write(notebook, folder / f"{name}.ipynb")


if __name__ == "__main__":
    main()
