"""`Pipeline`: what the command does, from Python."""

import os
import re
import shutil
from pathlib import Path

import forked
import numpy as np
import pytest

import datxai
from datxai.errors import InputError
from datxai.files import read_json
from datxai.volume import load

WORDS = ("data.n_subjects=2", "data.raw=false", "grid=slab_12mm", "network.channels=[4,4,4,4]", "seed=3")


def test_a_run_made_from_python_is_that_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forked.datxai("simulate", "run=runs/x", *WORDS, cwd=tmp_path)
    os.rename("runs", "by_command")
    settings = {"data": {"n_subjects": 2, "raw": False}, "network": {"channels": [4, 4, 4, 4]}}
    run = datxai.Pipeline("runs/x", "seed=3", grid="slab_12mm", **settings)
    run.simulate()
    by_command, by_python = (Path(name, "x") for name in ("by_command", "runs"))
    assert (by_command / ".hydra/config.yaml").read_text() == (by_python / ".hydra/config.yaml").read_text()
    first, second = (read_json(folder / "manifest.json")["simulate"] for folder in (by_command, by_python))
    assert (first["fingerprint"], first["output_hash"]) == (second["fingerprint"], second["output_hash"])


def test_stages_go_on_with_what_is_there(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    run = datxai.Pipeline(folder)
    before = run.findings.metrics
    found = run.explain(composite="epsilon", explanation="epsilon")
    assert found.run.explained == folder / "explanations/epsilon"
    name = found.explained[0]["participant_id"]
    forked.datxai("explain", f"run={folder}", "composite=epsilon", "explanation=command")
    other = load(folder / "explanations/command/relevance" / f"{name}_relevance.nii.gz").data
    np.testing.assert_array_equal(found.map_of(name).data, other)
    assert run.findings.metrics == before, "the explanation that was there is left"
    assert datxai.Pipeline(folder, explanation="epsilon").findings.run.explained == found.run.explained


def test_the_page_says_what_can_be_run(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0], tmp_path / "runs/phantom")
    page = (Path(datxai.__file__).parents[1] / "docs/python.md").read_text()
    (block,) = re.findall(r"^```python run-folder\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    block, n_changed = re.subn(r'Pipeline\("runs/phantom", .*\)', 'Pipeline("runs/phantom")', block)  # as it was made
    assert n_changed == 1
    exec(compile(block, "docs/python.md", "exec"), {})
    assert (tmp_path / "runs/phantom/explanations/gamma/relevance").is_dir()


def test_a_command_is_a_task_too(tmp_path):
    with pytest.raises(InputError, match="file has no value"):
        datxai.Pipeline(tmp_path / "none").make("reads")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (("grid=none",), {}, "grid=none: no such choice"),
        ((), {"gird": "mni_4mm"}, "there is no setting gird; did you mean grid?"),
        ((), {"training": {"max_epoch": 1}}, "did you mean training.max_epochs?"),
        (("-m", "seed=1,2"), {}, "only the command `datxai` does that"),
        (("--cfg=job",), {}, "split --cfg=job: only the command"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, words, settings, said):
    with pytest.raises(InputError) as refused:
        datxai.Pipeline(tmp_path / "run").split(*words, **settings)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_none():
    assert not hasattr(datxai, "Pipline")
    with pytest.raises(InputError, match="neither stage nor command"):
        datxai.Pipeline("run").make("trian")
    with pytest.raises(InputError, match="only the command"):
        datxai.Pipeline("run").make("help")
