"""A bundle: the run's answers bit for bit, nobody's scan in it, and whatever is altered is refused in one sentence."""

import io
import json
import re
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from datxai.analysis.normal_range import NormalRange
from datxai.bundle import (
    CARD,
    MANIFEST,
    MEANS,
    MOST,
    NETWORK,
    REFERENCE,
    SETTINGS,
    WEIGHTS,
    Bundle,
    pack_numbers,
    settings_to_hand_on,
    unpack_numbers,
    write_bundle,
)
from datxai.bundle import archive as room
from datxai.commands import bundle as command
from datxai.errors import InputError
from datxai.files import _plain, read_table
from datxai.findings import Findings
from datxai.reader import Reader, _restore
from datxai.record import Record, read_record
from datxai.reference import Reference
from datxai.run import Run

SCAN = "simulated/sub-0002_spect.dcm"


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    return shutil.copytree(finished[0], tmp_path_factory.mktemp("bundle") / "run")


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    """A place of its own for what programs keep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


def make(folder, out, least=1, **changes):
    """The bundle of a run; the run of the tests has too few cases of a group for a mean that is handed on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "MIN_CASES", least)
        command.run(replace(_restore(Run(folder)), out=str(out), **changes), Run(folder))
    return out


@pytest.fixture(scope="module")
def path(folder, tmp_path_factory):
    return make(folder, tmp_path_factory.mktemp("made") / "model.datxai")


@pytest.fixture(scope="module")
def rounded(folder, tmp_path_factory):
    return make(folder, tmp_path_factory.mktemp("made") / "rounded.datxai", precision="bf16")


@pytest.fixture(scope="module")
def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def remake(path, members, **about):
    """A bundle with other members, whose checksums are right."""
    manifest = json.loads(members[MANIFEST])
    kept = {key: value for key, value in manifest.items() if key not in ("format", "members", "sha256")}
    write_bundle(path, {name: members[name] for name in members if name != MANIFEST}, {**kept, **about})
    return path


def test_the_answers_are_those_of_the_run_bit_for_bit(folder, path):
    ours, theirs = (Reader.open(place).read(folder / SCAN, age=61) for place in (folder, path))
    said = [json.loads(json.dumps(_plain({**one.result, "timings": None}))) for one in (ours, theirs)]
    assert [one["made_by"].pop("folder") for one in said] == [folder.name, path.name]
    assert said[0] == said[1]
    assert theirs.result["normal_range"]["putamen_left"] is not None
    for name in ("scan", "spect", "relevance", "own_relevance"):
        np.testing.assert_array_equal(getattr(ours, name).data, getattr(theirs, name).data)


def test_its_file_of_weights_is_that_of_the_run(folder, path, members):
    weights = (folder / "model" / "weights.safetensors").read_bytes()
    assert unpack_numbers(members[WEIGHTS], 4, path).tobytes() == weights
    assert len(members[WEIGHTS]) < 0.9 * len(weights)


def test_any_zip_program_reads_it(path, members, folder, tmp_path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [name for name in MOST if name in archive.namelist()]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert {MANIFEST, CARD, SETTINGS, NETWORK, REFERENCE, WEIGHTS} == {*members}
    assert make(folder, tmp_path / "again.datxai").read_bytes() == path.read_bytes(), "the same bytes each time"


def test_nobody_is_in_it(folder, path, rounded):
    """No row of voxels of a training case, as float32 or bf16 or packed, no identifier, and no place of a file."""
    run = Run(folder)
    findings, volumes = Findings(run), {}
    for case in findings.cohort:
        volumes[case["participant_id"]] = findings.store.volume(case["participant_id"])
    people = {row["subject"] for row in read_table(run.participants)} | {*volumes}
    for place in (path, rounded):
        bundle = Bundle.open(place)
        held = [place.read_bytes(), unpack_numbers(bundle.content[WEIGHTS], bundle._width, place).tobytes()]
        for content in held:
            for name, volume in volumes.items():
                x, y, z = np.unravel_index(volume.argmax(), volume.shape)
                for row in (volume[max(x - 2, 0) : x + 2, y, z], volume[x, max(y - 2, 0) : y + 2, z]):
                    assert row.astype(np.float32).tobytes() not in content, name
                    bf16 = torch.from_numpy(np.ascontiguousarray(row)).bfloat16().view(torch.int16).numpy()
                    assert bf16.tobytes() not in content, name
            for word in [*people, str(folder), str(folder.resolve()), str(Path.home()), "simulated/", "/tmp"]:
                assert word.encode() not in content, word
    assert any(volume.astype(np.float32).tobytes()[:16] in run.store.read_bytes() for volume in volumes.values())


@pytest.mark.parametrize("n", [4, 5])
def test_means_over_few_cases_are_left_out(folder, tmp_path, monkeypatch, n):
    grid = Findings(Run(folder)).store.shape
    maps = [np.random.default_rng(seed).normal(size=grid).astype(np.float32) for seed in (1, 2)]
    plain = Reference.of(_restore(Run(folder)), Run(folder))
    monkeypatch.setattr(command.Reference, "of", lambda *_: replace(plain, means=maps))
    monkeypatch.setattr(command.Findings, "groups", ["TN"] * 9 + ["TP"] * n)
    path = make(folder, tmp_path / "few.datxai", least=5)
    bundle = Bundle.open(path)
    assert f"mean relevance maps: over test cases, TN 9, TP {n}; {'held' if n == 5 else 'left out'}" in bundle.card
    means = Reference.of_bundle(bundle.settings, bundle).means
    if n == 5:
        np.testing.assert_array_equal(means, maps)
    else:
        assert means is None and MEANS not in bundle.content
    assert Reference.of_bundle(replace(bundle.settings, target="decision"), bundle).means is None, "made another way"


def test_a_mean_scan_over_few_cases_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="subtracts the mean of 12 training scans, expected 13 or more"):
        make(folder, tmp_path / "none.datxai", least=13)
    assert not (tmp_path / "none.datxai").exists()


@pytest.mark.parametrize("maps", [{"TN": np.zeros((2, 2, 2), np.float32)}, {}, None])
def test_means_of_a_stranger(members, tmp_path, maps):
    content = b"none" if maps is None else safetensors.numpy.save(maps)
    bundle = Bundle.open(remake(tmp_path / "theirs.datxai", {**members, MEANS: content}))
    with pytest.raises(InputError, match=r"expected two maps of the grid|cannot be read as safetensors"):
        Reference.of_bundle(bundle.settings, bundle)


def test_what_rounding_changes_is_in_the_card(folder, rounded):
    """Measured a second way: by the two readers' networks on the stored scans."""
    findings = Findings(Run(folder))
    exact, other = (Reader.open(place).explainer for place in (folder, rounded))
    logit, share = 0.0, 0.0
    for case in findings.of_set("test"):
        x = torch.from_numpy(findings.store.volume(case["participant_id"]))[None, None]
        with torch.no_grad():
            logit = max(logit, (exact.model(x) - other.model(x)).abs().max().item())
        before, after = (one.attribute(x).relevance.double() for one in (exact, other))
        share = max(share, ((after - before).norm() / before.norm()).item())
    numbers = re.search(r"test cases by (\S+) at most, and their maps by (\S+) of", Bundle.open(rounded).card)
    assert float(numbers[1]) == pytest.approx(logit, rel=0.06) and logit > 0
    assert float(numbers[2]) == pytest.approx(share, rel=0.06) and share > 0
    for name, parameter in other.model.named_parameters():
        before = dict(exact.model.named_parameters())[name]
        expected = before.bfloat16().float() if before.ndim > 1 else before
        torch.testing.assert_close(parameter, expected, rtol=0, atol=0)


def test_the_ranges_are_those_of_the_cases(folder, path):
    held, ranges = Bundle.open(path).reference["ranges"], Findings(Run(folder)).ranges
    assert {name: NormalRange.unpack(data) for name, data in held.items()} == ranges


@given(st.binary(max_size=60), st.sampled_from([2, 4]))
def test_packing_loses_nothing(data, width):
    packed = pack_numbers(data, width)
    assert unpack_numbers(packed, width, "x").tobytes() == data
    count = len(data) // width
    lowest = data[: count * width][::width]
    start = struct.calcsize("<QB") + len(data) % width
    assert packed[start : start + len(lowest)] == lowest
    for wrong in (packed[:-1], packed + b"\0", struct.pack("<Q", 2**62) + packed[8:]):
        with pytest.raises(InputError, match="does not hold the numbers"):
            unpack_numbers(wrong, width, "x")


def test_200_altered_bundles_are_refused(path, rounded, members, tmp_path):
    """A bit turned anywhere, a cut, bytes added, a member of another bundle or in another's place."""
    rng, whole, altered = np.random.default_rng(4), path.read_bytes(), tmp_path / "altered.datxai"
    edges = [0, 4, 10, 14, 30, 43, len(whole) - 22, len(whole) - 1]
    contents = []
    for k in range(120):
        place = edges[k] if k < len(edges) else int(rng.integers(3000 if k % 2 else len(whole)))
        turned = bytearray(whole)
        turned[-place if k % 5 == 4 and place else place] ^= 1 << int(rng.integers(8))
        contents.append(bytes(turned))
    contents += [whole[: int(rng.integers(len(whole)))] for _ in range(40)] + [b"", whole + b"\0", whole[1:], whole * 2]
    with zipfile.ZipFile(rounded) as archive:
        others = {name: archive.read(name) for name in archive.namelist()}
    names = [name for name in members if name != MANIFEST]
    for k in range(36):
        one, two = rng.choice(names, 2, replace=False)
        exchanged = {**members, one: members[two], two: members[one]} if k % 2 else {**members, one: others[one]}
        if exchanged == members:
            exchanged = {**members, MANIFEST: others[MANIFEST]}
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED][k % 4 == 3]) as archive:
            for name, content in exchanged.items():
                archive.writestr(name, content)
        contents.append(stream.getvalue())
    assert len(contents) == 200 and whole not in contents
    for content in contents:
        altered.write_bytes(content)
        with pytest.raises(InputError, match=r"altered\.datxai") as refused:
            Bundle.open(altered)
        assert "\n" not in str(refused.value)


def craft(members, manifest_of):
    """An archive laid out as a bundle is, whose manifest is made by ``manifest_of`` and has a right checksum."""
    manifest = json.loads(members[MANIFEST])
    content = manifest_of({key: value for key, value in manifest.items() if key != "sha256"})
    return begin(len(text := room.dump({**content, "sha256": room.hash_json(content)}))) + text


def begin(size):
    return struct.pack(room.LOCAL, b"PK\3\4", 20, 0, 0, 0, 0x21, 0, size, size, 13, 0) + b"manifest.json"


def with_member(name, size=4):
    entry = {"size": size, "crc32": 0, "sha256": "0" * 64}
    return lambda content: {**content, "members": {**content["members"], name: entry}}


@pytest.mark.parametrize(
    ("manifest_of", "words"),
    [
        (lambda content: {**content, "format": 2}, "of format 2, this version of datxai reads 1; update"),
        (with_member("../../etc/passwd"), "has a member '../../etc/passwd', expected manifest.json, card.md"),
        (with_member("code.py"), "has a member 'code.py'"),
        (with_member(MEANS, 2**40), "means.safetensors has 1099511627776 bytes, expected 268435456 at most"),
        (with_member(MEANS, -1), "which is not a size and hash"),
        (with_member(MEANS, "many"), "which is not a size and hash"),
        (with_member(WEIGHTS, 2**31), "is cut off"),
        (lambda content: {**content, "members": {}}, "lacks card.md, settings.json"),
        (lambda content: {**content, "members": []}, "lacks card.md, settings.json"),
        (lambda content: {**content, "format": "1"}, "not as it was written"),
    ],
)
def test_what_a_stranger_may_make(members, tmp_path, manifest_of, words):
    (tmp_path / "theirs.datxai").write_bytes(craft(members, manifest_of))
    with pytest.raises(InputError, match=words):
        Bundle.open(tmp_path / "theirs.datxai")


def test_a_manifest_that_says_it_is_huge_takes_no_memory(tmp_path):
    (tmp_path / "huge.datxai").write_bytes(begin(2**32 - 1))
    with pytest.raises(InputError, match="has 4294967295 bytes, expected 1048576 at most"):
        Bundle.open(tmp_path / "huge.datxai")


def change(members, name, *way, value):
    content = json.loads(members[name])
    node = content
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = value
    return {**members, name: room.dump(content)}


@pytest.mark.parametrize(
    ("name", "way", "value", "words"),
    [
        (SETTINGS, ("values", "composite", "rules_from"), "evil.py", "evil.py is Python code, which no bundle names"),
        (SETTINGS, ("values", "network", "target"), "os:system", "target=os:system is Python code, which no bundle"),
        (SETTINGS, ("values", "grid", "shape"), "???", "grid.shape"),
        (SETTINGS, ("values", "grid", "shape"), [3, 3, 3], "grid slab_12mm"),
        (SETTINGS, ("values", "grid"), {}, "says nothing of grid.name"),
        (SETTINGS, ("values", "target"), "${oc.env:HOME}", "which is not a value"),
        (SETTINGS, ("values", "evil"), 1, "evil is not a setting"),
        (SETTINGS, ("references",), {"a": "b"}, "lets a follow b"),
        (SETTINGS, ("values",), [], "does not hold settings"),
        (REFERENCE, ("calibration", "temperature"), 0, "the calibration cannot be used"),
        (REFERENCE, ("calibration",), None, "calibration is None"),
        (REFERENCE, ("ranges",), {"putamen_left": {"regressions": [1]}}, "normal ranges cannot be used"),
        (REFERENCE, ("evaluated",), {}, "which run it is of"),
    ],
)
def test_settings_and_numbers_of_a_stranger_are_looked_at(members, tmp_path, name, way, value, words):
    theirs = remake(tmp_path / "theirs.datxai", change(members, name, *way, value=value))
    with pytest.raises(InputError, match=words):
        Reader.open(theirs)


def test_a_network_of_a_stranger_is_not_executed(members, tmp_path):
    network = yaml.safe_load(members[NETWORK])
    evil = {**network, "network": {"shape": [3, 3, 3], "architecture": "custom", "target": "os:system"}}
    theirs = remake(tmp_path / "theirs.datxai", {**members, NETWORK: yaml.safe_dump(evil).encode()})
    with pytest.raises(InputError, match="made by os:system, Python code that would be executed"):
        Reader.open(theirs)
    for weights in (pack_numbers(b"not safetensors.", 4), b"", pack_numbers(safetensors.numpy.save({}), 4)):
        theirs = remake(tmp_path / "theirs.datxai", {**members, WEIGHTS: weights})
        with pytest.raises(InputError, match=r"theirs.datxai.*(safetensors|numbers|missing in the file)"):
            Reader.open(theirs)
    with pytest.raises(InputError, match="precision is 'float8'"):
        Reader.open(remake(tmp_path / "theirs.datxai", members, precision="float8"))


def test_code_and_places_are_not_handed_on(folder):
    record = read_record(folder)
    for group, key in (("composite", "rules_from"), ("network", "target")):
        code = Record({**record.values, group: {**record.values[group], key: "mine"}}, record.choices)
        with pytest.raises(InputError, match=rf"{group}.{key}=mine is Python code, which a bundle does not hold"):
            settings_to_hand_on(code)
    network = {**record.values["network"], "weights": "/home/me/w.pt", "rename": {"a": "b"}}
    values = {**record.values, "network": network}
    handed, _ = settings_to_hand_on(Record(values, record.choices, record.references))
    assert handed["values"]["data"] == {"orientation": "header"} and "/home" not in json.dumps(handed)
    assert "data" not in handed["choices"] and "training" not in handed["values"]


def test_files_of_the_runs_own_go_with_it(folder, members, tmp_path):
    record = read_record(folder)
    own = {"template": tmp_path / "mean.nii.gz", "labels": tmp_path / "atlas.nii", "names": tmp_path / "names.csv"}
    for name, file in own.items():
        file.write_bytes(name.encode())
    registration = {**record.values["registration"], "template": str(own["template"])}
    atlas = {"labels": str(own["labels"]), "names": str(own["names"])}
    handed, files = settings_to_hand_on(Record({**record.values, "registration": registration, "atlas": atlas}))
    assert str(tmp_path) not in json.dumps(handed)
    given = {**members, SETTINGS: room.dump(handed), **{name: file.read_bytes() for name, file in files.items()}}
    bundle = Bundle.open(remake(tmp_path / "own.datxai", given))
    settings = bundle.settings
    there = [settings.registration.template, settings.atlas.labels, settings.atlas.names]
    assert [Path(file).read_text() for file in there] == ["template", "labels", "names"]
    assert bundle.anatomy != Bundle.open(remake(tmp_path / "other.datxai", members)).anatomy
    place = Path(there[0]).parent
    assert place.stat().st_mode & 0o77 == 0
    del bundle
    assert not place.exists()


def test_a_place_that_something_else_has(folder, path, tmp_path):
    (tmp_path / "folder.datxai").mkdir()
    (tmp_path / "thesis.datxai").write_text("of somebody")
    for name, words in (("folder", "is a folder"), ("thesis", "is a file that is not a bundle")):
        with pytest.raises(InputError, match=f"{words}, which is not replaced"):
            make(folder, tmp_path / f"{name}.datxai")
    with pytest.raises(InputError, match=r"expected a name that ends with \.datxai"):
        make(folder, tmp_path / "model.zip")
    assert (tmp_path / "thesis.datxai").read_text() == "of somebody"
    again = shutil.copy(path, tmp_path / "model.datxai")
    make(folder, again)
    assert [*tmp_path.glob(".part-*")] == []


def test_a_bundle_is_of_one_explanation(folder, path, tmp_path):
    reader = Reader.open(path, target="decision")
    assert reader.settings.target == "decision"
    with pytest.raises(InputError, match="target=label needs a labelled case"):
        Reader.open(path, target="label")
    with pytest.raises(InputError, match="is a bundle of one explanation, default; leave it out"):
        Reader.of(replace(reader.settings, explanation="other"), Run(path))
    with pytest.raises(InputError, match="is a bundle of one explanation, default"):
        Reader.open(path, explanations=["default", "other"])
    with pytest.raises(InputError, match="holds an explanation that the run has made"):
        make(folder, tmp_path / "x.datxai", target="decision")


@pytest.fixture(scope="module")
def reader(path):
    return Reader.open(path)


def test_the_lines_of_the_page(folder, path, tmp_path, monkeypatch, capsys, caplog):
    page = (Path(room.__file__).parents[2] / "docs" / "python.md").read_text()
    code = page.split("```python scans\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    shutil.copy(path, "model.datxai")
    shutil.copy(folder / SCAN, "scan.dcm")
    shutil.copy(folder / SCAN.replace("2_", "3_"), "other.dcm")
    Path("broken.dcm").write_bytes(Path("scan.dcm").read_bytes()[:900])
    exec(code, {})
    assert {place.name for place in Path("out").iterdir()} == {"scan", "other"}
    assert "(91, 109, 1)" in capsys.readouterr().out
    assert "left out: broken.dcm: " in caplog.text


def test_many_scans_are_read_when_they_are_asked_for(reader, folder, tmp_path):
    paths = [folder / SCAN, tmp_path / "nothing.dcm", folder / SCAN]
    readings = reader.read_many(paths)
    first, alone = next(readings), reader.read(paths[0])
    assert first.result["logit_reduced"] == alone.result["logit_reduced"]
    np.testing.assert_array_equal(first.relevance.data, alone.relevance.data)
    with pytest.raises(InputError, match="no such file"):
        next(readings)
    assert [reading.name for reading in reader.read_many(paths, on_error="skip")] == ["sub-0002_spect"] * 2
    with pytest.raises(InputError, match="on_error is ignore, expected raise or skip"):
        reader.read_many(paths, on_error="ignore")
