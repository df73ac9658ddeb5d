"""The page where scans are dropped in, over real HTTP; most tests with a reader that only looks at what it is given."""

import gzip
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from datxai.commands import serve
from datxai.commands.serve import HEADERS, Limits, Server
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json
from datxai.lock import holding

SECRET = "doe_john_1948"


def make_nifti() -> bytes:
    return nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)).to_bytes()


def make_dicom(text: bytes = b"") -> bytes:
    return bytes(128) + b"DICM" + text


def make_zip(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


class FakeReader:
    """Reads what it is given: result.json tells the files and their bytes; a file that holds BAD is refused."""

    def __init__(self):
        self.seen, self.hold, self.under_way = [], threading.Event(), threading.Event()
        self.hold.set()

    def read(self, path, age=None):
        self.under_way.set()
        assert self.hold.wait(10)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        content = {file.name: file.read_bytes() for file in files}
        self.seen.append((path.name, content, age))
        if any(b"BAD" in each for each in content.values()):
            raise InputError(f"{files[0]}: holds no voxel, expected a scan.")
        if any(b"FAULT" in each for each in content.values()):
            raise KeyError(SECRET)
        return content

    source = None

    def write(self, reading, folder, home):
        folder.mkdir()
        (folder / "report.html").write_text(f"<title>Result</title><p>{len(reading)} files</p>")
        (folder / "scan_relevance.nii.gz").write_bytes(b"\x1f\x8b1234")


@contextmanager
def serving(folder, **limits):
    folder.mkdir(exist_ok=True)
    with Server(folder, 0, FakeReader(), Limits(**limits)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.reader.hold.set()
            server.shutdown()
            thread.join()
            server.finish()


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path / "served", upload=1 << 16, unpacked=1 << 18, files=8, results=2, waiting=2) as server:
        yield server


def ask(server, method="GET", path="/", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    return answer, content


def post(server, *files, **headers):
    sizes = ",".join(str(len(file)) for file in files)
    answer, content = ask(server, "POST", "/read", b"".join(files), **{"Datxai_Sizes": sizes} | headers)
    return answer.status, json.loads(content)


def talk(server, sent: bytes) -> bytes:
    """What comes back for these very bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
            if received.endswith(b"}"):
                break
    return received


def test_a_scan_is_read_and_its_result_handed_out(server):
    status, found = post(server, make_nifti(), Datxai_Age="67.5")
    assert status == 200
    assert server.reader.seen == [("scan.nii", {"scan.nii": make_nifti()}, 67.5)]
    answer, page = ask(server, path=found["page"])
    assert answer.headers["Content-Type"].startswith("text/html") and b"1 files" in page
    answer, content = ask(server, path=found["page"].replace("report.html", "scan_relevance.nii.gz"))
    assert content == b"\x1f\x8b1234"
    assert answer.headers["Content-Disposition"] == "attachment"
    assert not (server.folder / "upload").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (make_nifti() + b"BAD", r"^scan\.nii: holds no voxel"),
        (b"hello", "neither a NIfTI nor a DICOM"),
        (make_zip({str(number): make_dicom(bytes(60_000)) for number in range(6)}), "unpack to more"),
        (make_zip({str(number): b"" for number in range(9)}), "more than 8 files"),
    ],
)
def test_a_bad_file_gets_one_sentence_and_the_next_is_read(server, content, sentence):
    status, found = post(server, content)
    assert status == 422, found
    assert re.search(sentence, found["error"]), found
    assert str(server.folder) not in found["error"]
    assert list(server.folder.iterdir()) == []
    assert post(server, make_nifti())[0] == 200


def test_a_fault_does_not_end_the_server_and_tells_no_identity(server, caplog):
    caplog.set_level("INFO", "datxai")
    assert post(server, make_nifti() + b"FAULT")[0] == 500
    status, _ = post(server, make_zip({f"{SECRET}.dcm": make_dicom(SECRET.encode())}))
    assert status == 200
    assert "KeyError" in caplog.text and " 1 files: 200" in caplog.text
    assert SECRET not in caplog.text
    assert server.results[0] not in caplog.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Datxai_Sizes": ""}, 400),
        ({"Datxai_Sizes": "1,2"}, 400),
        ({"Datxai_Sizes": ",".join("0" * 9)}, 413),
        ({"Datxai_Age": "old"}, 422),
        ({"Datxai_Age": "nan"}, 422),
        ({"Datxai_Age": "-1"}, 422),
        ({"Content_Length": "65537"}, 413),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "9" * 40}, 411),
        ({"Transfer_Encoding": "chunked"}, 411),
    ],
)  # fmt: skip
def test_a_request_of_another_site_or_form_is_refused(server, headers, status):
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    assert post(server, make_nifti(), **headers)[0] == status
    assert len(server.reader.seen) == (status == 200)


def test_a_page_of_another_site_does_not_get_in_by_its_name(server):
    """DNS rebinding: a name of someone else that points to this machine."""
    assert ask(server, Host=f"evil.example:{server.port}")[0].status == 403
    assert ask(server, Host=f"localhost:{server.port}")[0].status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/results/../x", "/results/{id}/", "/results/{id}/../../secret", "/results/{id}/..%2f..%2fsecret",
        "//etc/passwd", "/results//report.html", "/results/x/report.html", "/results/{id}/report.html%00",
    ],
)  # fmt: skip
def test_only_files_of_results_are_handed_out(server, path):
    (server.folder.parent / "secret").write_text("secret")
    post(server, make_nifti())
    assert ask(server, path=path.format(id=server.results[0]))[0].status == 404


def test_the_oldest_result_is_deleted(server):
    pages = [post(server, make_nifti())[1]["page"] for _ in range(3)]
    assert len(set(pages)) == 3
    assert [ask(server, path=page)[0].status for page in pages] == [404, 200, 200]
    assert len(list(server.folder.iterdir())) == 2


def test_too_many_wait(server):
    server.reader.hold.clear()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(post(server, make_nifti())[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert server.reader.under_way.wait(10)
    while server.places.acquire(blocking=False):  # until both have a place
        server.places.release()
        time.sleep(0.01)
    status, found = post(server, make_nifti())
    assert status == 503 and "try again" in found["error"]
    assert ask(server)[0].status == 200, "the page is there meanwhile"
    server.reader.hold.set()
    for thread in threads:
        thread.join()
    assert answers == [200, 200]
    assert post(server, make_nifti())[0] == 200


def test_slow_and_broken_clients_are_hung_up_on(tmp_path):
    with serving(tmp_path / "served", headers=0.3, waiting=1) as server:
        head = f"POST /read HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nDatxai-Sizes: 9\r\nContent-Length: 9\r\n\r\n"
        assert talk(server, b"GET / HT") == b""
        assert talk(server, head.encode() + b"123") == b"", "less came than was said"
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(head.encode())
        deadline = time.monotonic() + 10
        while post(server, make_nifti())[0] == 503:  # until the place is given back
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert list(server.folder.iterdir()) == [server.folder / server.results[-1]]


def test_an_upload_that_trickles_in_is_hung_up_on(tmp_path):
    with serving(tmp_path / "served", headers=0.5, rate=1 << 20) as server:
        head = f"POST /read HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nDatxai-Sizes: 99\r\nContent-Length: 99\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
            slow.sendall(head.encode())
            begin = time.monotonic()
            with suppress(OSError):
                while time.monotonic() - begin < 15 and len(server.deadlines) > 0:
                    slow.sendall(b"x")
                    time.sleep(0.2)
        assert time.monotonic() - begin < 15, "99 bytes at five a second take twenty"
        assert post(server, make_nifti())[0] == 200


def test_a_run_made_again_reads_no_scan_by_the_old_network(server):
    server.made_from = server.identify()
    assert post(server, make_nifti())[0] == 200
    server.identify = lambda: "another"
    status, answer = post(server, make_nifti())
    assert status == 422 and "made again" in answer["error"]
    assert len(server.reader.seen) == 1


def test_what_a_killed_server_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("datxai-serve-killed", "datxai-serve-live", "datxai-serve-begins", "datxai-other"):
        (tmp_path / name / "upload").mkdir(parents=True)
        (tmp_path / name / "upload" / "scan.nii").touch()
    (tmp_path / "datxai-serve-killed" / ".lock").touch()
    with holding(tmp_path / "datxai-serve-live", "datxai serve"):
        serve._remove_left()
    assert {path.name for path in tmp_path.iterdir()} == {"datxai-serve-live", "datxai-serve-begins", "datxai-other"}


def test_no_more_connections_than_allowed(tmp_path):
    with serving(tmp_path / "served", connections=1) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as idle:
            idle.sendall(b"GET / HT")
            while not server.deadlines:
                time.sleep(0.01)
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as other:
                assert other.recv(1) == b""
        while server.deadlines:
            time.sleep(0.01)
        assert ask(server)[0].status == 200


def test_nothing_is_read_after_the_end(server):
    server.finish()
    assert "ended" in post(server, make_nifti())[1]["error"]
    assert server.reader.seen == []


def test_a_port_that_is_taken():
    trained = SimpleNamespace(entry=lambda *_: None, folder=Path())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port={port}: cannot be used"):
            serve.run(Config(port=port), trained)
    with pytest.raises(InputError, match="port=99999"):
        serve.run(Config(port=99999), trained)


def test_the_command_reads_a_scan_and_leaves_nothing(finished, tmp_path):
    """The installed command with a real run: what it answers is what `datxai case` writes; SIGTERM ends it cleanly."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    folder = shutil.copytree(finished[0], tmp_path / "run")
    command = [sys.executable, "-m", "datxai", "serve", f"run={folder}", "port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "TMPDIR": str(scratch)})  # fmt: skip
    try:
        addresses = (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in process.stdout)
        port = int(next(address for address in addresses if address)[1])
        there = SimpleNamespace(port=port)
        scan = (folder / "simulated" / "sub-0002_spect.dcm").read_bytes()
        status, found = post(there, make_zip({SECRET: scan}))
        assert status == 200, found
        page = ask(there, path=found["page"])[1].decode()
        assert "Research use only" in page
        files = set(re.findall(r'<li><a href="([^"]+)">', page))
        assert {"report.pdf", "prediction.json", "scan_relevance.nii.gz"} <= files
        for file in files:
            assert ask(there, path=found["page"].replace("report.html", file))[0].status == 200
        result = json.loads(ask(there, path=found["page"].replace("report.html", "prediction.json"))[1])
        rows = (folder / "predictions.tsv").read_text().splitlines()
        row = dict(zip(rows[0].split("\t"), next(row for row in rows if row.startswith("sub-0002")).split("\t")))
        assert result["p_reduced"] == pytest.approx(float(row["p_reduced"]), rel=1e-4)
        assert post(there, make_dicom(b"no scan"))[0] == 422
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert list(scratch.glob("datxai-*")) == []
    assert SECRET not in said and "sub-0002" not in said
    assert not (folder / "cases").exists()
    assert "serve" not in read_json(folder / "manifest.json")


def test_dropped_on_the_page_in_a_browser(server, open_page, tmp_path):
    (tmp_path / "scan.nii").write_bytes(make_nifti())
    page = open_page(f"http://127.0.0.1:{server.port}/")
    page.fill("#age", "71")
    content = list(make_nifti())
    page.evaluate(
        """content => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(content)], "a scan.nii"));
            window.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
        }""",
        content,
    )
    page.wait_for_url("**/report.html")
    assert page.title() == "Result"
    assert server.reader.seen == [("scan.nii", {"scan.nii": make_nifti()}, 71)]
    page.go_back()
    (tmp_path / "large.nii").write_bytes(bytes(1 << 17))
    page.set_input_files("#files", tmp_path / "large.nii")
    page.get_by_text("more than 0.0625 MiB").wait_for()
    assert len(server.reader.seen) == 1


def drop(page, *paths):
    """Drop files and folders of this machine on the page, as a hand would."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 300, "data": data})


def make_folder(folder, files):
    """A folder with these files, by their paths in it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


SERIES = {"DICOM/1/one.dcm": make_dicom(b"one"), "DICOM/1/2/two": make_dicom(b"two"), "notes.txt": b"notes"}


@pytest.mark.parametrize("way", ["dropped", "chosen"])
def test_a_folder_gives_all_files_in_it(server, open_page, tmp_path, way):
    folder = make_folder(tmp_path / "patient", SERIES)
    (folder / "empty").mkdir()
    page = open_page(f"http://127.0.0.1:{server.port}/")
    if way == "dropped":
        drop(page, folder)
    else:
        page.get_by_label("Choose a folder").set_input_files(folder)
    page.wait_for_url("**/report.html")
    ((_, files, _),) = server.reader.seen
    assert sorted(files.values()) == [make_dicom(b"one"), make_dicom(b"two")]


def test_files_and_folders_are_dropped_together(server, open_page, tmp_path):
    page = open_page(f"http://127.0.0.1:{server.port}/")
    (tmp_path / "three.dcm").write_bytes(make_dicom(b"three"))
    drop(page, tmp_path / "three.dcm", make_folder(tmp_path / "patient", SERIES))
    page.wait_for_url("**/report.html")
    assert len(server.reader.seen[0][1]) == 3
    page.go_back()
    drop(page, tmp_path / "three.dcm")
    page.wait_for_url("**/report.html")
    assert list(server.reader.seen[1][1].values()) == [make_dicom(b"three")]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({f"{number // 3}/{number}": make_dicom() for number in range(9)}, "more than 8 files"),
        ({"1/large": bytes(1 << 16), "2/3/more": b"1"}, "more than 0.0625 MiB"),
        ({}, "no file in it"),
    ],
)
def test_a_folder_that_is_no_upload_is_told_so(server, open_page, tmp_path, files, sentence):
    (tmp_path / "patient").mkdir()
    page = open_page(f"http://127.0.0.1:{server.port}/")
    drop(page, make_folder(tmp_path / "patient", files))
    page.get_by_text(sentence).wait_for()
    assert not page.is_disabled("#folder")
    assert server.reader.seen == []


WALK = """async (sizes) => {
    // A folder as a browser hands it out: some entries at a time, here one, and an empty list at the end.
    const counts = { asked: 0, taken: 0 };
    const file = (size) => ({ isFile: true, file: (take) => take({ size, number: counts.taken++ }) });
    const folder = (entries) => ({ createReader: () => ({
        readEntries: (take) => take(entries.slice(counts.asked, ++counts.asked)),
    }) });
    const files = await walk([folder(sizes.map(file))]);
    return { ...counts, files: files.length };
}"""


@pytest.mark.parametrize(
    ("sizes", "taken", "asked"),
    [([1] * 7, 7, 8), ([1] * 8, 8, 9), ([1] * 500, 9, 9), ([1 << 15] * 6, 3, 3)],
)
def test_walking_a_folder_ends_with_its_last_file_or_at_the_limits(server, open_page, sizes, taken, asked):
    page = open_page(f"http://127.0.0.1:{server.port}/")
    assert page.evaluate(WALK, sizes) == {"files": taken, "taken": taken, "asked": asked}


def test_a_folder_that_cannot_be_read_is_told(server, open_page):
    page = open_page(f"http://127.0.0.1:{server.port}/")
    broken = "{ createReader: () => ({ readEntries: (take, fail) => fail(new Error('gone')) }) }"
    page.evaluate(f"read(walk([{broken}]))")
    page.get_by_text("a file cannot be read").wait_for()


def test_a_bad_file_is_told_on_the_page(server, browser, tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(make_nifti()))
    page = browser.new_page()
    try:
        page.goto(f"http://localhost:{server.port}/")
        page.set_input_files("#files", tmp_path / "notes.txt")
        page.get_by_text("Found neither a NIfTI nor a DICOM file").wait_for()
        page.set_input_files("#files", [tmp_path / "scan.nii.gz"])
        page.wait_for_url("**/report.html")
    finally:
        page.close()


def test_the_guide_says_what_is_so():
    guide = (Path(serve.__file__).parents[2] / "docs" / "serve.md").read_text()
    limits = Limits()
    for said in (f"{limits.upload >> 20} MiB", f"{limits.unpacked >> 30} GiB", f"{limits.files} files",
                 f"newest {limits.results} results", f"127.0.0.1:{Config.port}"):  # fmt: skip
        assert said in guide
