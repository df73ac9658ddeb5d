"""The page of `datxai serve` under load: how long scans take, whether memory grows, and what is left behind.

    python -m benchmarks.serve RUN [--scans 500] [--clients 1 8]

Uploads scans of the run's own cohort, ``--scans`` of them for each number of clients at a time. Memory is the largest
resident set of the server so far, after the first tenth of the scans and after the last. Targets: none refused, memory
flat within 5 %, the 95th percentile of the time at most three times the median, and no file left once the server has
ended.
"""

import argparse
import http.client
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datxai.findings import Findings
from datxai.run import Run

COHORT = 8  # different scans, uploaded in turn
COLUMNS = "clients  scans  refused  median s  95 % s  ratio  peak memory MiB: after a tenth, at the end, growth"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scans", type=int, default=500)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args(words)
    run = Run(arguments.run)
    names = [case["participant_id"] for case in Findings(run).cohort[:COHORT]]
    paths = [path for name in names for path in run.simulated.glob(f"{name}_spect.*") if path.suffix != ".json"]
    scans = [path.read_bytes() for path in paths or [run.scan_of(name) for name in names]]
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "datxai", "serve", f"run={run.folder}", "port=0"]
        log = Path(place, "log")
        with log.open("w") as stream:
            server = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": place}
            )
        try:
            port = _wait_for_port(server, log)
            print(COLUMNS, flush=True)
            for clients in arguments.clients:
                _load(server.pid, port, scans, arguments.scans, clients)
            print(f"{_count_files(place)} files while it serves: the last results, of which the oldest are deleted")
        finally:
            server.terminate()
            server.wait(60)
        print(f"{_count_files(place) - 1} files left after it has ended")  # less the log


def _wait_for_port(server: subprocess.Popen, log: Path) -> int:
    while server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text()):
            return int(found[1])
        time.sleep(0.1)
    sys.exit(log.read_text())


def _load(pid: int, port: int, scans: list[bytes], n: int, clients: int) -> None:
    """Upload ``n`` scans from ``clients`` threads; prints a row."""
    warm_up, rest = n // 10, n - n // 10
    with ThreadPoolExecutor(clients) as pool:
        turns = itertools.cycle(scans)
        outcomes = [*pool.map(lambda scan: _upload(port, scan), itertools.islice(turns, warm_up))]
        before = _peak_mib(pid)
        outcomes += pool.map(lambda scan: _upload(port, scan), itertools.islice(turns, rest))
    after, seconds = _peak_mib(pid), [seconds for seconds, _ in outcomes]
    median, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    refusals = [answer for _, answer in outcomes if "page" not in answer]
    print(
        f"{clients:7}  {n:5}  {len(refusals):7}  {median:8.2f}  {p95:6.2f}  {p95 / median:5.2f}  "
        f"{before:.0f}, {after:.0f}, {100 * (after / before - 1):+.1f} %",
        flush=True,
    )
    if refusals:
        print(f"refused: {refusals[0]['error']}")


def _upload(port: int, scan: bytes) -> tuple[float, dict]:
    begin, connection = time.perf_counter(), http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/read", scan, {"Datxai-Sizes": str(len(scan))})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return time.perf_counter() - begin, answer


def _peak_mib(pid: int) -> float:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def _count_files(place: str) -> int:
    return sum(path.is_file() for path in Path(place).rglob("*"))


if __name__ == "__main__":
    main()
