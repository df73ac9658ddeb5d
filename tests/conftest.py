"""What tests of several rooms need: a finished run, and a real browser."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported: tests run side by side

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TINY = [
    "data.n_subjects=24", "grid=slab_12mm", "training.max_epochs=2", "network.channels=[4,4,4,4]",
    "split.sizes=[12,6,6]",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny():
    """Settings of a run that takes seconds: the phantom on the one-slice grid."""
    return TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run with these settings, and what was said; tests that change it take a copy.

    It is made once, by whichever of the processes of pytest-xdist comes first.
    """
    beside = "PYTEST_XDIST_WORKER" in os.environ
    place = tmp_path_factory.getbasetemp().parent if beside else tmp_path_factory.mktemp("runs")
    folder, said = place / "tiny", place / "said.txt"
    with FileLock(place / "lock"):
        if not said.exists():
            command = [sys.executable, "-m", "datxai", *TINY, f"run={folder}"]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=900)
            assert answer.returncode == 0, answer.stdout + answer.stderr
            said.write_text(answer.stdout)
    return folder, said.read_text()


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window; the tests that need it are skipped where it is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser) -> Callable:
    """Opens a file or an address in a tab of its own (a Playwright page); what goes wrong in it fails the test.

    Wrong is a message in the console, an exception, and any request that leaves the page's own place.
    """
    faults, contexts = [], []

    def open_page(address: str | Path, width: int = 1280, height: int = 900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        address = address.resolve().as_uri() if isinstance(address, Path) else address
        place = address.rsplit("/", 1)[0] if address.startswith("file:") else "/".join(address.split("/")[:3])
        own = (place, "data:", "blob:")
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: said.type in ("error", "warning") and faults.append(said.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(own) or faults.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
