"""What the settings of `data` name."""

import pytest

from datxai.config import Config, Folder, Phantom
from datxai.data_source import _parse_labels, find_scans, makes_projections, set_camera
from datxai.errors import InputError
from datxai.run import Run


@pytest.mark.parametrize("words", [{"0": [0]}, {"HC": 2}, {}, "HC"])
def test_labels_that_are_none_are_refused(words):
    with pytest.raises(InputError, match="expected a mapping to 0"):
        _parse_labels(words, "data.label_values")


def test_truths_of_a_spreadsheet_are_words_in_any_case():
    found = _parse_labels({True: 1, False: 0, "PD": 1}, "data.label_values")
    assert (found["TRUE"], found["false"], found["PD"]) == (1, 0, 1)


def test_the_camera_counts_in_whole_numbers():
    assert set_camera({"views": 60.0, "pixel_mm": 3}) == {"views": 60, "pixel_mm": 3.0}
    for name, value in (("views", 60.5), ("pixel_mm", 0), ("rows", -1)):
        with pytest.raises(InputError, match=f"data.camera.{name}="):
            set_camera({name: value})
    with pytest.raises(InputError, match=r"data\.camera has no lens, expected some of"):
        set_camera({"lens": 1.0})


def test_the_phantom_makes_projections_unless_volumes_are_asked_for():
    kinds = ({}, {"raw": False}, {"reconstruction": "sites"})
    made = [makes_projections(Phantom("phantom", n_subjects=1, seed=0, **more)) for more in kinds]
    assert made == [True, False, False]


@pytest.mark.parametrize(
    ("data", "on_error", "words"),
    [(Folder("tape", root="."), "raise", "data.kind=tape: expected"), (Folder("folder"), "stop", "on_error=stop")],
)
def test_what_is_no_source_is_refused(tmp_path, data, on_error, words):
    with pytest.raises(InputError, match=words):
        find_scans(Config(data=data, on_error=on_error), Run(tmp_path))
