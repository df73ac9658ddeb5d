"""The house rules of docs/ARCHITECTURE.md, held by reading every import in the package."""

import ast
from pathlib import Path

import pytest

import datxai

PACKAGE = Path(datxai.__file__).parent
ROOMS = {"imaging", "phantom", "cohort", "model", "explain", "metrics", "analysis"}
FOUNDATION = {"volume", "files", "errors", "mni", "memory", "config", "run", "results", "progress"}
ONLY_IN = {
    "hydra": {"cli.py"},
    "omegaconf": {"cli.py"},
    "zennit": {"explain"},
    "matplotlib": {"analysis"},
    "pydicom": {"imaging/dicom/"},
    "pickle": set(),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every absolute module name imported anywhere in a file, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def place(path: Path) -> str:
    """The first part of a file's place: a room's name, or the file's name at the top."""
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_import_direction(path):
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("datxai.")}
    here = place(path)
    if here in ROOMS:
        assert not inside & (ROOMS - {here}), "rooms meet in the stages only"
        assert not inside & {"pipeline", "cli", "run", "config"}, "rooms know nothing of the run"
        assert not inside & {"stages", "commands", "case", "results"}
    elif here.removesuffix(".py") in FOUNDATION:
        above = ROOMS | {"pipeline", "cli", "stages", "commands", "case", "anatomy", "reader"}
        assert not inside & above, "the foundation stands on nothing above it"
    elif here in {"stages", "commands", "case.py", "anatomy.py", "reader.py"}:
        assert not inside & {"pipeline", "cli"}
    elif here == "pipeline.py":
        assert not inside & ROOMS, "stages talk to rooms, the pipeline to stages"
    elif here == "cli.py":
        assert inside <= {"config", "pipeline", "errors", "conf", "__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_each_library_has_one_home(path):
    for name in imports(path):
        homes = ONLY_IN.get(name.split(".")[0])
        relative = path.relative_to(PACKAGE).as_posix()
        assert homes is None or any(relative.startswith(home) for home in homes), f"{name} in {relative}"


def test_the_torch_free_rooms_are_torch_free():
    for path in FILES:
        if place(path) in {"analysis", "volume.py", "files.py", "errors.py", "config.py", "cli.py", "run.py"}:
            assert not {name.split(".")[0] for name in imports(path)} & {"torch", "captum"}, path
