import subprocess
import sys

import pytest
from PIL import Image

from datxai.pages.charts import plot_sbr
from datxai.pages.style import save_figure


def test_saved_in_print_resolution_twice_the_same(tmp_path):
    for name in ("a", "b"):
        save_figure(plot_sbr([0.5, 1.4], [3.0, 1.9], [1, 0]), tmp_path / "sub" / f"fig.{name}")
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == [
        "fig.a.pdf", "fig.a.png", "fig.b.pdf", "fig.b.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "sub" / "fig.a.png") as image:
        assert image.width == pytest.approx(85 / 25.4 * 300, abs=1)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    for suffix in (".png", ".pdf"):
        assert (tmp_path / "sub" / f"fig.a{suffix}").read_bytes() == (tmp_path / "sub" / f"fig.b{suffix}").read_bytes()


def test_one_kind_alone(tmp_path):
    save_figure(plot_sbr([0.5, 1.4], [3.0, 1.9], [1, 0]), tmp_path / "fig", ("png",))
    assert [path.name for path in tmp_path.iterdir()] == ["fig.png"]


def test_pyplot_and_its_global_state_stay_out():
    code = "import sys, datxai.pages.figures, datxai.pages.charts; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
