"""What a stage follows from: the content of files that settings name, not where they lie."""

import shutil

import pytest

from datxai.config import Atlas, Config, Network, Registration, Training
from datxai.run import Run
from datxai.stages import evaluate, preprocess, report, train


@pytest.fixture
def fingerprint(tmp_path):
    """The fingerprint of a stage with the files of a folder."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("labels.nii", "names.tsv", "template.nii"):
        (folder / name).write_text("as it was")

    def fingerprint(stage, folder=folder):
        settings = Config(
            registration=Registration("affine", str(folder / "template.nii")),
            atlas=Atlas(str(folder / "labels.nii"), str(folder / "names.tsv")),
            network=Network(see="striatum"),
            training=Training(max_epochs=1, seed=0),
        )
        return Run(tmp_path).fingerprint(stage.__name__, stage.depends(settings), {})

    return fingerprint


@pytest.mark.parametrize(
    ("stage", "files"),
    [
        (preprocess, {"labels.nii", "names.tsv", "template.nii"}),
        (train, {"labels.nii", "names.tsv"}),
        (evaluate, {"labels.nii", "names.tsv"}),
        (report, set()),  # which takes the atlas that `evaluate` had
    ],
)
def test_other_content_is_a_reason_to_make_a_stage_anew(fingerprint, tmp_path, stage, files):
    before, changed = fingerprint(stage), set()
    for path in (tmp_path / "files").iterdir():
        path.write_text("otherwise")
        if fingerprint(stage) != before:
            changed.add(path.name)
        path.write_text("as it was")
    assert changed == files
    assert fingerprint(stage, shutil.copytree(tmp_path / "files", tmp_path / "moved")) == before


def test_the_record_says_where_the_files_lay(tmp_path):
    settings = Config(atlas=Atlas("labels.nii", "names.tsv"))
    with Run(tmp_path).recording("evaluate", evaluate.depends(settings), {}, []):
        pass
    recorded = Run(tmp_path).entries()["evaluate"]["config"]["atlas"]
    assert recorded == {"labels": "labels.nii", "names": "names.tsv"}, "the report reads them from there"
