"""A local page on which scans are dropped to be read: `datxai serve`.

Scans are patients' data, and any file may be hostile. Therefore the page is served to this machine only, loads nothing
from elsewhere, and refuses requests from other sites. File names are neither used nor logged, and
`datxai.commands.upload` unpacks uploads safely.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import SimpleQueue
from socketserver import ThreadingTCPServer
from typing import BinaryIO

from datxai.commands.upload import CHUNK, UploadLimits, unpack
from datxai.config import Config
from datxai.errors import InputError
from datxai.lock import NAME as LOCK
from datxai.lock import holding
from datxai.pages.report import render_upload_page
from datxai.reader import MAX_AGE, Reader
from datxai.run import Run

log = logging.getLogger("datxai")

_Request = socket.socket | tuple[bytes, socket.socket]  # as in socketserver
HOST = "127.0.0.1"
PREFIX = "datxai-serve-"  # of the folder with uploads and results
STARTUP_S = 60.0  # within which a starting server has locked its folder
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Limits(UploadLimits):
    """Limits of one upload, and of all of them together."""

    waiting: int = 8  # simultaneous uploads, including the one being read
    results: int = 20  # kept; then the oldest is deleted
    connections: int = 32
    headers: float = 5.0  # seconds for the headers of a request, and until ``rate`` applies
    rate: float = 1 << 20  # minimum speed of an upload, bytes per second
    seconds: float = 60.0  # for receiving a response


def run(settings: Config, trained: Run) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C or SIGTERM, then delete all uploads and results.

    Raises `InputError` if the run is not finished, the bundle is damaged, or the port is taken.
    """
    in_bundle = trained.folder.is_file()
    if not in_bundle:
        trained.entry("evaluate", "serve")
    _remove_left()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, holding(Path(folder), "datxai serve"):
        try:
            server = Server(Path(folder).resolve(), settings.port)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port={settings.port}: cannot be used ({error}); give another, such as port={Config.port + 1}, or "
                f"port=0 for any that is free."
            ) from error
        with server:
            for ending in (signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ())):
                signal.signal(ending, signal.default_int_handler)
            try:
                server.reader = Reader.of(settings, trained)
                server.made_from = server.reader.reference.identity
                if not in_bundle:  # a bundle is in memory, so that changes of its file do not matter
                    server.identify = lambda: trained.identity("evaluate", "serve")
                log.info("Drop scans on http://%s:%d/ (Ctrl-C ends it)", HOST, server.port)
                server.serve_forever()
            except KeyboardInterrupt:
                server.finish()
                log.info("Ended; uploads and results are deleted.")


def _remove_left() -> None:
    """Remove the uploads and results of servers that were killed, whose folders are no longer locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(InputError, OSError):
            status = folder.lstat()
            is_starting = not (folder / LOCK).exists() and time.time() - status.st_mtime < STARTUP_S
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not is_starting:
                with holding(folder, "datxai serve", patience=0):
                    shutil.rmtree(folder, ignore_errors=True)


class Server(ThreadingTCPServer):
    """Reads uploads one at a time, and serves their results at addresses that cannot be guessed.

    ``folder`` is an empty directory, the only one that is written to. ``port`` 0 chooses a free port.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path, port: int, reader: Reader | None = None, limits: Limits | None = None):
        self.folder, self.reader, self.limits = folder, reader, limits or Limits()
        self.made_from: str | None = None  # identity of the run when the reader was made
        self.identify: Callable[[], str | None] = lambda: self.made_from  # current identity of the run
        self.places = threading.BoundedSemaphore(self.limits.waiting)
        self.turn = threading.Lock()  # held while reading a scan and writing to the folder
        self.uploads: SimpleQueue[tuple[Future[str], tuple]] = SimpleQueue()
        threading.Thread(target=self._read_uploads, name="reader", daemon=True).start()
        self.ended = False
        self.results: list[str] = []
        self.deadlines: dict[socket.socket, float] = {}  # of every open connection
        super().__init__((HOST, port), _Handler)
        self.port = self.server_address[1]
        self.hosts = {f"{host}:{self.port}" for host in (HOST, "localhost")}

    def finish(self) -> None:
        """Wait for the current reading, and start no other."""
        with self.turn:
            self.ended = True

    @property
    def model(self) -> str:
        """The name of the run or bundle that reads the scans."""
        source = self.reader and self.reader.source
        return "" if source is None else source.folder.resolve().name

    def read(self, body: BinaryIO, sizes: Sequence[int], age: float | None) -> str:
        """Read the scan of an upload and return the address of its result. Raises `InputError` if it cannot be used."""
        address: Future[str] = Future()
        self.uploads.put((address, (body, sizes, age)))
        return address.result()

    def _read_uploads(self) -> None:
        """Read all scans in one thread: the C library and OpenMP keep memory for each thread that computes."""
        while True:
            address, upload = self.uploads.get()
            try:
                address.set_result(self._read(*upload))
            except Exception as error:
                address.set_exception(error)

    def _read(self, body: BinaryIO, sizes: Sequence[int], age: float | None) -> str:
        with self.turn:
            if self.ended:
                raise InputError("The server has been ended.")
            assert self.reader is not None, "set before the first request"
            if self.identify() != self.made_from:
                raise InputError("The run has been made again since it was read; restart `datxai serve`.")
            upload, name = self.folder / "upload", secrets.token_urlsafe(16)
            upload.mkdir()
            try:
                reading = self.reader.read(unpack(body, sizes, upload, self.limits), age)
                self.reader.write(reading, self.folder / name, home="/")
            except InputError as error:
                raise InputError(str(error).replace(f"{upload}{os.sep}", "")) from error
            finally:
                shutil.rmtree(upload)
            self.results.append(name)
            for old in self.results[: -self.limits.results]:
                shutil.rmtree(self.folder / old)
                self.results.remove(old)
            return f"/results/{name}/report.html"

    def verify_request(self, request: _Request, client_address: object) -> bool:
        """Whether one more connection is allowed; otherwise it is closed."""
        return len(self.deadlines) < self.limits.connections

    def service_actions(self) -> None:
        """Close connections that are past their deadline."""
        now = time.monotonic()
        for connection, deadline in list(self.deadlines.items()):
            if now > deadline:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: _Request, client_address: object) -> None:
        """Log a fault without patient data; a client that disconnected is no fault."""
        _log_fault()


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]  # always of this class
    server_version, sys_version = "datxai", ""

    def setup(self) -> None:
        super().setup()
        self._set_deadline(self.server.limits.headers)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.server.deadlines.pop(self.connection, None)

    def do_GET(self) -> None:
        result = re.fullmatch(r"/results/([\w-]+)/([^/]+)", self.path)
        if self.headers["Host"] not in self.server.hosts:
            self._refuse(403, f"Open this page as http://{HOST}:{self.server.port}/.")
        elif self.path == "/":
            page = render_upload_page(self.server.limits.upload, self.server.limits.files, self.server.model)
            self._answer(200, page.encode(), "text/html; charset=utf-8")
        elif self.path == "/favicon.ico":
            self._answer(204, b"", "image/x-icon")
        elif result and result[1] in self.server.results:
            self._send_file(self.server.folder / result[1], result[2])
        else:
            self._refuse(404, "There is no such page; results are deleted when many newer ones have been made.")

    def do_POST(self) -> None:
        limits, begin = self.server.limits, time.monotonic()
        length, sizes = self.headers.get("Content-Length", ""), self.headers.get("Datxai-Sizes", "")
        origin = self.headers.get("Origin")
        if self.headers["Host"] not in self.server.hosts or origin not in {None, f"http://{self.headers['Host']}"}:
            return self._refuse(403, f"Scans are taken from http://{HOST}:{self.server.port}/ alone.")
        if self.path != "/read":
            return self._refuse(404, "Scans go to /read.")
        if not re.fullmatch(r"\d{1,18}", length, re.ASCII) or "Transfer-Encoding" in self.headers:
            return self._refuse(411, "The length of the upload is missing (Content-Length).")
        if int(length) > limits.upload:
            return self._refuse(413, f"The upload exceeds {limits.upload >> 20} MiB; choose the files of one scan.")
        if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", sizes, re.ASCII):
            return self._refuse(400, "The sizes of the files are missing (header Datxai-Sizes: BYTES,BYTES,...).")
        sizes = [int(size) for size in sizes.split(",")]
        if len(sizes) > limits.files:
            return self._refuse(413, f"The upload has more than {limits.files} files; choose the files of one scan.")
        if sum(sizes) != int(length):
            return self._refuse(400, "The sizes of the files do not add up to the length of the upload.")
        try:
            age = _parse_age(self.headers.get("Datxai-Age"))
        except InputError as error:
            return self._refuse(422, str(error))
        if not self.server.places.acquire(blocking=False):
            return self._refuse(503, "Other scans are being read and wait to be read; try again in a minute.")
        try:
            with tempfile.TemporaryFile(dir=self.server.folder) as body:
                if self._receive(body, int(length)) < int(length):
                    return None  # the client has disconnected
                self._set_deadline(math.inf)
                status, answer = self._read(lambda: self.server.read(body, sizes, age))
        finally:
            self.server.places.release()
        log.info("%d bytes, %d files: %d, %.1f s", int(length), len(sizes), status, time.monotonic() - begin)
        return self._answer(status, json.dumps(answer).encode())

    def _read(self, read: Callable[[], str]) -> tuple[int, dict]:
        try:
            return 200, {"page": read()}
        except InputError as error:
            return 422, {"error": str(error)}
        except Exception:  # a file that triggers a bug must not stop the server
            _log_fault()
            return 500, {"error": "Reading this scan failed because of a bug in datxai; the log says where."}

    def _receive(self, target: BinaryIO, length: int) -> int:
        """Receive at most ``length`` bytes of the body and return their number."""
        received, start = 0, time.monotonic() + self.server.limits.headers
        while received < length and (chunk := self.rfile.read1(min(length - received, CHUNK))):
            received += target.write(chunk)
            self.server.deadlines[self.connection] = start + received / self.server.limits.rate
        target.flush()
        return received

    def _send_file(self, folder: Path, name: str) -> None:
        """Send a file of a result; its name is looked up in the folder, never used as a path."""
        with suppress(FileNotFoundError):  # deleted in the meantime
            path = next((path for path in folder.iterdir() if path.name == name), None)
            if path is not None:
                content_type = "text/html; charset=utf-8" if path.suffix == ".html" else "application/octet-stream"
                return self._answer(200, path.read_bytes(), content_type)
        return self._refuse(404, "There is no such file.")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer before the body has arrived; then discard the body, since many clients read only after sending."""
        self._answer(status, json.dumps({"error": sentence}).encode())
        if self.command != "POST":
            return
        self._set_deadline(2.0)
        received = 0
        while received < self.server.limits.upload and (chunk := self.rfile.read1(CHUNK)):
            received += len(chunk)

    def _answer(self, status: int, content: bytes, content_type: str = "application/json") -> None:
        self._set_deadline(self.server.limits.seconds)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if content_type == "application/octet-stream":
            self.send_header("Content-Disposition", "attachment")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _set_deadline(self, seconds: float) -> None:
        self.server.deadlines[self.connection] = time.monotonic() + seconds

    def log_message(self, format: str, *_: object) -> None:
        """Log no requests, since their addresses lead to results."""


def _parse_age(text: str | None) -> float | None:
    try:
        age = None if text is None else float(text)
    except ValueError:
        age = math.nan
    if age is not None and not 0 <= age <= MAX_AGE:
        raise InputError(f"The age cannot be used; expected years, from 0 to {MAX_AGE}.")
    return age


def _log_fault() -> None:
    """Log where in the code an error occurred, but not its message, which may quote a header."""
    error = sys.exc_info()[1]
    if error is not None and not isinstance(error, (ConnectionError, TimeoutError)):
        log.error("fault: %s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
