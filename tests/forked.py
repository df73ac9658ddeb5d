"""The command `datxai` in a process of its own, forked from one in which all that it imports is there already.

Hydra, logging, signals and the exit are those of a command from a shell; the seconds of importing are saved.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import datxai as package

TIMEOUT = 900  # seconds
LATE = (  # what is imported only where it is needed
    "hydra.main", "joblib", "jinja2", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "pandas",
    "scipy.stats", "sklearn.tree", "torch._dynamo",
)  # fmt: skip


def datxai(*arguments, status: int | None = 0, cwd=None) -> subprocess.CompletedProcess:
    """What the command said; it has to end with ``status``, unless that is None."""
    words, parent = [str(word) for word in arguments], _parent()
    with tempfile.TemporaryDirectory() as folder:
        said = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        order = {"words": words, "cwd": str(cwd or os.getcwd()), "environment": dict(os.environ), "said": said}
        print(json.dumps(order), file=parent.stdin, flush=True)
        ended = int(parent.stdout.readline())
        answer = subprocess.CompletedProcess(words, ended, *(Path(path).read_text() for path in said))
    assert status in (None, ended), answer.stdout + answer.stderr
    return answer


@functools.cache
def _parent() -> subprocess.Popen:
    # A process whose OpenMP has threads must not fork.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    atexit.register(process.communicate)
    return process


def _wait_for_order() -> dict:
    """Returns in a child, once for each line; the parent ends with its standard input."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


if __name__ == "__main__":
    for module in pkgutil.walk_packages(package.__path__, "datxai."):
        if module.name != "datxai.__main__":
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    package.phantom.anatomy.average_head()
    atlas = package.imaging.atlas.load_atlas(None, None)  # as a run with the default settings asks for it
    package.imaging.template.make_template_bases(atlas, None)
    gc.freeze()  # a child's collection leaves the parent's pages alone

    order = _wait_for_order()
    signal.alarm(TIMEOUT)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for number, path in enumerate([os.devnull, *order["said"]]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.argv = ["datxai", *order["words"]]
    package.cli.main()
