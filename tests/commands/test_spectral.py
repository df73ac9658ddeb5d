"""The command on maps written by hand: two kinds of maps among the normal cases, too few reduced ones."""

import json

import numpy as np
import pytest

from datxai.commands import spectral
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_table, write_table
from datxai.run import Run
from datxai.volume import Grid, Volume, save

GRID = Grid.axis_aligned((23, 27, 16), (8, 8, 8), (-88, -124, -56), "8 mm")
COLUMNS = ("participant_id", "set", "label", "predicted", "p_reduced", "logit_normal", "logit_reduced")


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "entry", lambda run, stage, needed_by: {})

    def make(n):
        run, rng, rows = Run(tmp_path / "run"), np.random.default_rng(0), []
        for number in range(n + 3):
            name, reduced = f"sub-{number:03d}", int(number >= n)
            data = 0.02 * rng.normal(size=GRID.shape).astype(np.float32)
            data[(0, 0, 0) if number % 2 else (11, 14, 8)] += 3  # outside the head, or in the middle of the brain
            save(Volume(data, GRID.affine), run.relevance_of(name))
            values = (name, "test", 0, reduced, 0.5, 1.0, 0.0)
            rows.append(dict(zip(COLUMNS, values)))
        write_table(run.predictions, rows, COLUMNS)
        return run

    return make


def test_groups_of_a_run(make_run):
    run = make_run(40)
    spectral.run(Config(), run)
    out = run.folder / "spectral"
    found = json.loads((out / "spectral.json").read_text())
    assert found.keys() == {"normal"}, "three reduced cases are too few"
    assert sorted(group["n"] for group in found["normal"]["groups"]) == [20, 20]
    rows = {row["participant_id"]: row for row in read_table(out / "clusters.tsv")}
    odd = {row["cluster"] for name, row in rows.items() if int(name[-3:]) % 2}
    even = {row["cluster"] for name, row in rows.items() if int(name[-3:]) % 2 == 0}
    assert len(rows) == 40 and len(odd) == len(even) == 1 and odd != even
    shares = {place: np.mean([float(row["outside_brain"]) for name, row in rows.items() if int(name[-3:]) % 2 == place])
              for place in (0, 1)}  # fmt: skip
    assert shares[1] > shares[0]
    assert sum(row["prototype"] == "true" for row in rows.values()) == 2
    assert (out / "normal.png").is_file() and not (out / "reduced.png").exists()


def test_too_few_maps_are_refused_and_nothing_is_written(make_run):
    run = make_run(4)
    with pytest.raises(InputError, match="fewer than 8 relevance maps in each class"):
        spectral.run(Config(), run)
    assert not (run.folder / "spectral").exists()
