"""The house rules of docs/ARCHITECTURE.md, held by reading every import in the package."""

import ast
from pathlib import Path

import pytest

import datxai

PACKAGE = Path(datxai.__file__).parent
ROOMS = {"imaging", "phantom", "cohort", "model", "explain", "metrics", "analysis", "pages"}
FOUNDATION = {
    "volume", "photons", "nifti", "forms", "files", "schema", "errors", "mni", "memory", "device", "config", "run",
    "record", "progress", "integrity", "lock", "torchvision",
}  # fmt: skip
MIDDLE = (  # each imports those before it alone
    "anatomy", "scan", "data_source", "case", "explainer", "findings", "run_figures", "tested", "bundle",
    "reference", "reading", "reader", "applied", "case_folder",
)  # fmt: skip
COMMAND = {  # the command, and what each of its parts stands on beside settings and the record
    "cli": {"order", "plan", "compose", "job", "help", "run"},
    "job": {"plan", "order", "compose", "applying", "lock", "pipeline"},
    "plan": {"order", "compose", "applying", "bundle"},
    "applying": {"order", "bundle"},
    "compose": {"order"},
    "order": set(),
    "api": {"order", "plan", "compose", "job", "findings", "run"},
    "help": set(),
}
ONLY_IN = {
    "hydra": {"cli.py", "compose.py"},
    "omegaconf": {"cli.py", "job.py", "compose.py"},
    "zennit": {"explain"},
    "matplotlib": {"pages"},
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
    here = place(path).removesuffix(".py")
    if here in ROOMS:
        below = {"analysis"} if here == "pages" else set()  # what is drawn are its numbers
        assert not inside & (ROOMS - {here} - below), "rooms meet in the middle and in the stages only"
        assert not inside & {"pipeline", "run", "config", "stages", "commands", *MIDDLE, *COMMAND}, "rooms know no run"
    elif here in FOUNDATION:
        above = {*ROOMS, *MIDDLE, *COMMAND, "pipeline", "stages", "commands"}
        assert not inside & above, "the foundation stands on nothing above it"
    elif here in MIDDLE:
        later = {*MIDDLE[MIDDLE.index(here) + 1 :]} - ({"case_folder"} if here == "reader" else set())  # `Reader.write`
        assert not inside & {*later, *COMMAND, "pipeline", "stages", "commands"}
    elif here in {"stages", "commands"}:
        other = {"commands": "stages", "stages": "commands"}[here]
        assert not inside & {"pipeline", *COMMAND, other}
    elif here == "pipeline":
        assert not inside & {*ROOMS, *MIDDLE}, "stages talk to rooms, the pipeline to stages"
    elif here in COMMAND:
        assert inside <= {"config", "errors", "conf", "__version__", "record", *COMMAND[here]}


def test_stages_do_not_import_one_another():
    for path in (PACKAGE / "stages").glob("[!_]*.py"):  # the package itself only says that each is a `Stage`
        assert not {name for name in imports(path) if name.startswith("datxai.stages.")}, path


def test_examples_stand_on_findings_and_rooms():
    for path in (PACKAGE.parent / "examples").rglob("*.py"):
        assert not {name.split(".")[1] for name in imports(path) if name.startswith("datxai.")} & {
            "stages", "commands", "pipeline", "cli",
        }, path  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_each_library_has_one_home(path):
    for name in imports(path):
        homes = ONLY_IN.get(name.split(".")[0])
        relative = path.relative_to(PACKAGE).as_posix()
        assert homes is None or any(relative.startswith(home) for home in homes), f"{name} in {relative}"


def test_the_torch_free_rooms_are_torch_free():
    free = {"analysis", "pages", "volume", "files", "schema", "errors", "config", "run", "record", *COMMAND}
    for path in FILES:
        if place(path).removesuffix(".py") in free:
            assert not {name.split(".")[0] for name in imports(path)} & {"torch", "captum"}, path
