"""`datxai bundle`, and the commands that take a bundle in the place of a run folder."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys

import forked
import pytest

from datxai.pages.card import CLAIM, TRIPOD


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory):
    """A folder with a run and its bundle, made on the command line."""
    place = tmp_path_factory.mktemp("bundle")
    shutil.copytree(finished[0], place / "run")
    said = forked.datxai("bundle", "run=run", "out=model.datxai", cwd=place).stdout
    assert re.search(r"Bundle: model\.datxai, [\d.]+ MB; `datxai bundle run=model\.datxai` shows its card", said)
    return place


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches"))


def test_its_card_is_filled_in_from_the_run(place):
    card = forked.datxai("bundle", "run=model.datxai", cwd=place).stdout
    metrics = json.loads((place / "run" / "metrics.json").read_text())["classifiers"]["cnn"]
    low, high = metrics["accuracy_ci95"]
    assert f"| Accuracy | {100 * metrics['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) |" in card
    assert "Research use, not diagnostic" in card and "the digital phantom (simulated)" in card
    assert "| Training set (n = 12) |" in card and "type:Convolution: alpha_beta (alpha=2, beta=1)" in card
    people = (place / "run" / "table1.tsv").read_text().splitlines()[1:]
    for row in (row.split("\t") for row in people):
        assert f"(n = {row[3]})" in card
        if int(row[3]) < 5 and row[4] != "n/a":
            assert f"{float(row[4]):.1f} ± {float(row[5]) if row[5] != 'n/a' else 0:.1f} (n = {row[3]})" not in card
    for items in (CLAIM, TRIPOD):
        for number, (name, section) in items.items():
            line = f"| {number} | {name} | {section} |" if section else f"- {number}. {name}"
            assert line in card
            assert section is None or f"\n## {section}\n" in card
    assert len(CLAIM) == 44 and len({re.match(r"\d+", number)[0] for number in TRIPOD}) == 27


def test_case_reads_a_scan_with_it(place):
    scan = place / "run" / "simulated" / "sub-0002_spect.dcm"
    said = forked.datxai("case", "run=model.datxai", f"scan={scan}", cwd=place).stdout
    assert "Report: cases/sub-0002_spect/report.html" in said
    forked.datxai("case", "run=model.datxai", f"scan={scan}", "out=there", "target=decision", cwd=place)
    forked.datxai("case", "run=run", f"scan={scan}", "out=of_the_run", cwd=place)
    found = {}
    for folder in ("cases", "there", "of_the_run"):
        found[folder] = json.loads((place / folder / "sub-0002_spect" / "prediction.json").read_text())
        found[folder].pop("timings")
        found[folder]["made_by"].pop("folder")  # of the run, or the bundle's file
    assert found["cases"] == found["of_the_run"]
    assert found["there"]["method"]["target"] == "decision"
    assert not (place / "run" / "cases").exists() and not (place / "datxai.log").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["explain", "run=model.datxai"], "holds network, settings and reference and no case, and `explain` needs"),
        (["benchmark", "run=model.datxai"], "no case, and `benchmark` needs a run with cases; give the run folder"),
        (["run=model.datxai"], "is a bundle, which holds"),
        (["compare", "run", "model.datxai"], "model.datxai: is a bundle, which holds"),
        (
            ["case", "run=model.datxai", "scan=x", "grid=mni_2mm"],
            "was made with grid.name=slab_12mm, and `case` goes on",
        ),
        (["case", "run=model.datxai", "scan=x", "network.dropout=0.1"], "was made with network.dropout=0.2"),
        (["case", "-m", "run=model.datxai", "scan=a,b"], "a bundle is for one command at a time"),
        (["case", "run=cut.datxai", "scan=x"], "is cut off: it has 9000 bytes"),
        (["case", "run=words.datxai", "scan=x"], "is not a bundle of datxai"),
        (["train", "run=words.datxai"], "is a file, expected a folder"),
        (["bundle", "run=run", "out=words.datxai"], "is a file that is not a bundle, which is not replaced"),
        (["bundle", "run=run", "precision=int4"], "precision=int4: expected float32 or bf16"),
        (["bundle", "run=run", "composite=epsilon"], "a bundle holds an explanation that the run has made"),
    ],
)
def test_what_is_refused_in_one_sentence(place, words, said):
    (place / "cut.datxai").write_bytes((place / "model.datxai").read_bytes()[:9000])
    (place / "words.datxai").write_text("words")
    answer = forked.datxai(*words, cwd=place, status=2)
    assert said in answer.stderr and answer.stderr.count("\n") == 1
    assert not (place / "x").exists()


def test_serve_reads_with_it(place):
    command = [sys.executable, "-m", "datxai", "serve", "run=model.datxai", "port=0"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True)
    try:
        found = (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in process.stdout)
        port = int(next(filter(None, found))[1])
        (place / "model.datxai").rename(place / "moved.datxai")  # it is in memory
        scan = (place / "run" / "simulated" / "sub-0002_spect.dcm").read_bytes()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/read", scan, {"Datxai-Sizes": str(len(scan))})
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["page"].startswith("/results/")
        connection.close()
    finally:
        (place / "moved.datxai").rename(place / "model.datxai")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
