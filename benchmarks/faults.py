"""Test a run with damaged files, killed commands, a full disk, and bad inputs.

    python -m benchmarks.faults run=runs/phantom minutes=10 seed=0

Works on a copy of a finished run. Each kind of fault has a row: how many there were, how many were ``refused`` with one
sentence, ``made again`` as before, or ``harmless``; and, which must be 0, how many ended in a ``traceback`` or
a ``silent`` difference, took more than ten seconds (``slow``), or left ``litter``.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from safetensors.numpy import save_file

from datxai.api import Pipeline
from datxai.compose import refusing
from datxai.config import STAGES, Reconstruction
from datxai.errors import InputError
from datxai.files import UNFINISHED, hash_file, read_rows
from datxai.imaging.dicom import Projections, write_projections
from datxai.integrity import TIMES, hash_of_all
from datxai.model import checkpoint
from datxai.nifti import read as read_nifti
from datxai.order import HELP, VERSION, read_order
from datxai.plan import prepare
from datxai.record import RECORD, read_record
from datxai.run import Run
from datxai.scan import Scan
from datxai.schema import read_document
from datxai.volume import Volume, save

GOOD, BAD = ("refused", "made again", "harmless"), ("traceback", "silent", "slow", "litter")
SLOW_S = 10.0
TIMED = (TIMES, "results.tsv", "summary.tsv")  # tables with the seconds that something took
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def flip(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]


def swap(content: bytes, chance: random.Random) -> bytes:
    """Swap two pieces of a file, as if blocks were written in another order."""
    a, b = sorted(chance.randrange(len(content)) for _ in range(2))
    return content[:a] + content[b:] + content[a:b]


def end_lines(content: bytes, chance: random.Random) -> bytes:
    return content.replace(b"\n", b"\r\n")


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut off": cut, "bit flipped": flip, "pieces swapped": swap, "line ends": end_lines,
    "emptied": lambda content, chance: b"", "gone": lambda content, chance: b"",
}  # fmt: skip


@contextmanager
def damaged(path: Path, kind: str, chance: random.Random) -> Iterator[bool]:
    """Damage a file temporarily; yields whether it differs. Its size may be unchanged, its time never is."""
    content, state = path.read_bytes(), path.stat()
    changed = DAMAGES[kind](content, chance) if content else b"x"
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(changed)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + chance.randrange(1, 10**9)))  # another each time
    try:
        yield changed != content or kind == "gone"
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def judge(
    work: Callable[[], object], is_as_before: Callable[[], bool], differs: bool = True, slow_s: float = SLOW_S
) -> str:
    """Outcome of a command on damaged input."""
    begin = time.monotonic()
    try:
        work()
        outcome = "made again" if is_as_before() else "silent"
        outcome = outcome if differs else "harmless"
    except InputError:
        outcome = "refused"
    except Exception as error:  # must never reach a user
        print(f"  {type(error).__name__}: {error}", file=sys.stderr)
        outcome = "traceback"
    return "slow" if time.monotonic() - begin > slow_s else outcome


def damage_files(folder: Path, chance: random.Random, until: float) -> Counter:
    """Damage files of a run one at a time, then read it like a command: it must be refused."""
    run, outcomes = Run(folder), Counter()
    last = next(stage for stage in reversed(STAGES) if stage in run.entries())
    names = [name for entry in run.entries().values() for name in entry["files"]] + [run.manifest.name, str(RECORD)]
    before = run.entries(), read_record(folder)

    def read():
        Run(folder).entry(last, "faults")
        assert read_record(folder) is not None, "taken for a folder where no run has been begun"

    def says_the_same():  # readable, because the changed byte has no meaning
        now = run.entries()
        return read_record(folder) == before[1] and all(before[0][stage].items() <= now[stage].items() for stage in now)

    while time.monotonic() < until:
        name, kind = chance.choice(names), chance.choice(list(DAMAGES))
        with damaged(folder / name, kind, chance) as differs:
            outcome = judge(read, says_the_same if name in names[-2:] else bool, differs)
        outcomes[outcome] += 1
        if outcome in BAD:
            print(f"  {name}, {kind}: {outcome}", file=sys.stderr)
    return outcomes


def mutate_inputs(place: Path, chance: random.Random, until: float) -> Counter:
    """Mutate files of every supported kind: each must be read or refused."""
    save(Volume(np.arange(60.0).reshape(3, 4, 5), np.diag([4, 4, 4, 1.0])), place / "a.nii.gz")
    save(Volume(np.arange(60.0).reshape(3, 4, 5), np.diag([4, 4, 4, 1.0])), place / "b.nii")
    rows = "".join(f"sub-{n}\t{50 + n}\t{n % 2}\n" for n in range(9))
    (place / "c.tsv").write_text(f"participant_id\tage\tlabel\n{rows}")
    (place / "d.json").write_text(json.dumps({"method": {"name": "lrp"}, "ledger": [1, 2.5, None]}))
    save_file({"weight": np.ones((3, 2), np.float32)}, place / "e.safetensors")
    (place / "f.yaml").write_text("network: {shape: [9, 9, 1], channels: [2], hidden: [3], dropout: 0.2}\n")
    counts, angles, radius = np.full((30, 8, 16), 9, np.float32), np.arange(0.0, 360, 12), np.full(30, 150.0)
    write_projections(place / "g.dcm", Projections(counts, angles, 15.0, 15.0, radius), "g")
    words = ["explain", f"run={place / 'run'}", "composite=gamma", "training.seed=1", "split.sizes=[8,4,4]"]
    (place / "h.txt").write_text("\n".join([*words, "data.label_values={HC: 0, PD: 1}", "explanation=gamma"]))
    readers: dict[str, Callable[[Path], object]] = {
        "a.nii.gz": read_nifti, "b.nii": read_nifti, "c.tsv": read_rows,
        "d.json": lambda path: read_document(path, {"method": dict, "ledger": list}),
        "e.safetensors": checkpoint.is_whole, "f.yaml": checkpoint.load_network,
        "g.dcm": lambda path: Scan.find(path).read(Reconstruction()), "h.txt": _plan,
    }  # fmt: skip
    outcomes = Counter()
    while time.monotonic() < until:
        name, kind = chance.choice(list(readers)), chance.choice(list(DAMAGES))
        with damaged(place / name, kind, chance):
            outcomes[judge(partial(readers[name], place / name), lambda: True, differs=False)] += 1
    return outcomes


def _plan(path: Path) -> None:
    """Read the lines of a file as the words of a command; without the file, it has none."""
    text = path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else ""
    with refusing():
        order = read_order(text.replace("\0", "").splitlines())
        if order.task not in (HELP, VERSION):
            prepare(order)


def fail_writes(folder: Path, chance: random.Random, until: float) -> Counter:
    """Fill the disk when a file is first written, for each file of the run in turn; then free it
    and resume, until the output of the stage is as before."""
    outcomes, pipeline = Counter(), Pipeline(folder, n_jobs=1)  # in this process, in which writing fails
    for stage in _stages(folder):
        if time.monotonic() > until:
            break
        make, before, have_failed = partial(pipeline.make, stage), _content(Run(folder), stage), set()
        _forget(folder, stage)
        while time.monotonic() < until:
            with mock.patch("datxai.files.os.replace", _Disk(have_failed).replace):
                try:
                    make()
                    break
                except (OSError, InputError):
                    litter = any(folder.rglob(f"{UNFINISHED}*"))
                    outcomes["litter" if litter else "refused"] += 1
        outcomes[judge(make, partial(_holds, folder, stage, before), slow_s=math.inf)] += 1
    return outcomes


class _Disk:
    """A disk that is full from the first file on that has not met a full disk yet."""

    def __init__(self, have_failed: set[str]):
        self.have_failed, self.is_full, self.put = have_failed, False, os.replace

    def replace(self, source: Path, target: Path) -> None:
        self.is_full |= str(target) not in self.have_failed
        if self.is_full:
            self.have_failed.add(str(target))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        self.put(source, target)


def _forget(folder: Path, stage: str) -> None:
    run = Run(folder)
    files = run.entries()[stage]["files"]
    run.release(stage, [])
    for name in files:
        (folder / name).unlink()


def _stages(folder: Path) -> list[str]:
    return [stage for stage in STAGES if stage in Run(folder).entries()]


class Command(NamedTuple):
    """A command that is killed: its words, those of the call that ends its work, and what removes its output."""

    words: list[str]
    last: list[str]
    forget: Callable[[], None]


def _commands(folder: Path) -> dict[str, Command]:
    """Every stage of the run; and, on few cases, what works beside it."""
    at, beside, scan = f"run={folder}", folder.parent, min(Run(folder).simulated.glob("*_spect.dcm"))
    other = ["data=phantom", "data.seed=7", "data.n_subjects=4"]
    stages = {stage: ([stage, at], [stage, at], partial(_forget, folder, stage)) for stage in _stages(folder)}
    shards = ["explain", "-m", "shard=0/2,1/2", at]
    few = ["n_cases=2", "lesions=[]", "methods=[lrp_nazari2021,occlusion]", "metrics=[relevance_mass,patch_flipping]"]
    others = {
        folder / "benchmark": ["benchmark", at, *(f"benchmark.{setting}" for setting in few)],
        beside / "case": ["case", at, f"scan={scan}", f"out={beside / 'case'}"],
        beside / "applied": ["apply", at, f"to={beside / 'applied'}", *other],
        beside / "sweep": ["train", "-m", f"run={beside / 'sweep'}", f"base={folder}", "training.seed=1,2"],
    }
    return {
        **{name: Command(*stage) for name, stage in stages.items()},
        "shards": Command(shards, stages["explain"][1], stages["explain"][2]),
        **{path.name: Command(words, words, partial(shutil.rmtree, path, True)) for path, words in others.items()},
    }


def kill(folder: Path, chance: random.Random, until: float) -> Counter:
    """Kill commands at random moments, some twice, and repeat them: what they make must not differ from before."""
    outcomes, commands, usual_s, place = Counter(), _commands(folder), {}, folder.parent
    with tempfile.TemporaryDirectory() as temporary:
        for name, command in commands.items():
            command.forget()
            begin = time.monotonic()
            for words in (command.words, command.last):
                if said := _call(words, temporary):
                    sys.exit(said)
            usual_s[name] = time.monotonic() - begin
        before = _numbers(place)
        while time.monotonic() < until:
            name = chance.choice(list(commands))
            command = commands[name]
            command.forget()
            said = _call(command.words, temporary, chance.uniform(0, usual_s[name]), chance)
            said += _call(command.last, temporary)
            if said:
                print(f"  {name}: {said}", file=sys.stderr)
                outcomes["traceback"] += 1
            elif litter := [*place.rglob(f"{UNFINISHED}*"), *filter(Path.is_file, Path(temporary).rglob("*"))]:
                print(f"  {name}: {litter}", file=sys.stderr)
                outcomes["litter"] += 1
            else:
                now = _numbers(place)
                if other := [path for path, _ in {*before.items()} ^ {*now.items()}]:
                    print(f"  {name}: {other} differ", file=sys.stderr)
                outcomes["silent" if other else "made again"] += 1
                before = now
    return outcomes


def _call(words: list[str], temporary: str, kill_after_s: float = math.inf, chance: random.Random | None = None) -> str:
    """Run a command, which may be killed once or twice; returns what it said if it does not end as it should."""
    command, own = [sys.executable, "-m", "datxai", *words], {**os.environ, "TMPDIR": temporary}
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=own
    )
    if chance is not None:
        send = chance.choice((os.kill, os.killpg))  # to the command alone, or to its processes as well
        for wait_s in (kill_after_s, 0.3)[: chance.choice((1, 2))]:
            with suppress(subprocess.TimeoutExpired):
                process.wait(wait_s)
            with suppress(ProcessLookupError):
                send(process.pid, chance.choice(SIGNALS))
    said = process.communicate()[1]
    as_it_should = "Traceback" not in said and (chance is not None or process.returncode == 0)
    return "" if as_it_should else said or f"status {process.returncode}"


def _numbers(place: Path) -> dict[Path, str]:
    """Hashes of all files with numbers in ``place``, but for those with times."""
    patterns = ("*.nii.gz", "*.npy", "*.safetensors", "*.tsv", "metrics.json")
    paths = (path for pattern in patterns for path in place.rglob(pattern))
    return {path: hash_file(path) for path in paths if path.name not in TIMED}


def _holds(folder: Path, stage: str, content: str | None) -> bool:
    return _content(Run(folder), stage) == content


def _content(run: Run, stage: str) -> str | None:
    entry = run.entries().get(stage)
    return None if entry is None else hash_of_all(entry["files"])


def table(rows: dict[str, Counter]) -> str:
    """The outcomes as a table, a row per kind of fault."""
    lines = ["\t".join(["fault", "n", *GOOD, *BAD])]
    for name, row in rows.items():
        lines.append("\t".join(map(str, [name, row.total(), *(row[key] for key in (*GOOD, *BAD))])))
    return "\n".join(lines)


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    source, minutes = Path(words.get("run", "runs/phantom")), float(words.get("minutes", 10))
    entries = Run(source).entries()
    if "simulate" not in entries or not all("files" in entry for entry in entries.values()):
        sys.exit(f"{source}: expected a finished run of the phantom, with checksums; make one: datxai run={source}")
    chance, rows = random.Random(int(words.get("seed", 0))), {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        shutil.copytree(source, folder, symlinks=False)
        inputs = Path(place) / "inputs"
        inputs.mkdir()
        for name, share, fault, where in (
            ("damaged files", 0.2, damage_files, folder), ("mutated inputs", 0.2, mutate_inputs, inputs),
            ("disk full", 0.2, fail_writes, folder), ("kills", 0.4, kill, folder),
        ):  # fmt: skip
            rows[name] = fault(where, chance, time.monotonic() + 60 * minutes * share)
            print(table({name: rows[name]}), flush=True)
    sys.exit(1 if any(row[key] for row in rows.values() for key in BAD) else 0)


if __name__ == "__main__":
    main()
