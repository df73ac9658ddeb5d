"""The pages about explanations: their examples run, their table is true, and rules are executed only where named."""

import re
import shlex
from pathlib import Path

import forked
import pytest
import torch
import yaml
from torch import nn

import datxai
from datxai.explain import METHODS, attribute
from datxai.explain.composite import load_rules
from datxai.explain.methods import options_of

DOCS = Path(datxai.__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    return [(kind, text) for found, kind, text in BLOCK.findall((DOCS / page).read_text()) if found == language]


def command(line, cwd):
    return forked.datxai(*shlex.split(line)[1:], cwd=cwd, status=None)


def test_the_python_page_runs(capsys):
    names: dict = {"__name__": "page"}
    for kind, text in blocks("python.md", "python"):
        if kind in ("scans", "run-folder"):  # of a run: tests/test_bundle.py, tests/test_api.py
            continue
        exec(compile(text, "docs/python.md", "exec"), names)
    assert "grad_cam {'layer': None}" in capsys.readouterr().out


def test_the_methods_page_lists_every_method_and_option():
    page = (DOCS / "methods.md").read_text()
    rows = {row.split("|")[1].strip(" `"): row for row in page.splitlines() if re.match(r"\| `\w+`", row)}
    assert set(rows) == set(METHODS)
    for method, row in rows.items():
        assert re.findall(r"`(\w+)`", row.split("|")[3]) == list(options_of(method))


@pytest.fixture
def own(tmp_path):
    """The files of the how-to, as a user would write them."""
    written = [*blocks("composites.md", "python"), *blocks("composites.md", "yaml")]
    for kind, text in written:
        if kind.startswith("file="):
            path = tmp_path / kind.removeprefix("file=")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return tmp_path


def test_the_how_to_of_a_rule_of_ones_own(own):
    ((_, line),) = [block for block in blocks("composites.md", "sh") if block[0] == "run"]
    before = set(own.rglob("*"))
    answer = command(line, own)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    first = next(row.split(maxsplit=4) for row in answer.stdout.splitlines() if row.startswith("conv1"))
    assert first == ["conv1", "Conv3d", "16x1x3x3x3", "magnitude", "power=1.5, stabilizer=1e-06"]
    left = {path for path in set(own.rglob("*")) - before if "__pycache__" not in path.parts}
    assert not left, "a dry run leaves no trace"
    refused = command(line.replace("composite.rules_from=my_rules.py", ""), own)
    assert refused.returncode == 2
    assert "'magnitude', expected one of" in refused.stderr and "composite.rules_from" in refused.stderr


def test_the_rule_of_the_how_to_is_what_it_says(own):
    """Power 2 is Zennit's w-square, power 0 is flat, without biases."""
    rules = load_rules(own / "my_rules.py")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv3d(1, 3, 2), nn.Flatten(), nn.Linear(3 * 8, 2)).double()
    x, rest = torch.rand(1, 1, 3, 3, 3).double(), {"match": ["*"], "rule": "gradient"}
    for power, stock in ((2, "wsquare"), (0, "flat")):
        mine = {"match": ["0"], "rule": "magnitude", "parameters": {"power": power}}
        found, expected = (
            attribute(model, x, composite=[line, rest], own_rules=rules).relevance
            for line in (mine, {"match": ["0"], "rule": stock, "parameters": {"zero_params": "bias"}})
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_files_of_rules_are_executed_only_where_the_command_names_them(own):
    """Not from a configuration file, nor from the record of a run folder that somebody else sends."""
    (own / "my_rules.py").write_text("open('executed', 'w')\n")
    path = own / "my_conf" / "composite" / "magnitude_first.yaml"
    plain = path.read_text()
    path.write_text(plain + "rules_from: my_rules.py\n")
    answer = command("datxai explain --dry-run --config-dir my_conf composite=magnitude_first", own)
    assert answer.returncode == 2
    assert "is Python code that would be executed" in answer.stderr
    path.write_text(plain)
    record = own / "theirs" / ".hydra"
    record.mkdir(parents=True)
    sources = [{"provider": "command-line", "path": str(own / "my_conf")}]
    (record / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"config_sources": sources}}}))
    (record / "overrides.yaml").write_text("- composite=magnitude_first\n- composite.rules_from=my_rules.py\n")
    answer = command("datxai explain --dry-run run=theirs", own)
    assert answer.returncode == 2
    assert "'magnitude', expected one of" in answer.stderr
    assert not (own / "executed").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("explain --dry-run -m composite=epsilon,gamma", "leave out -m"),
        ("explain --dry-run attribution=gradient", "attribution.method=gradient has no rules"),
        ("train --dry-run", "only `datxai explain`"),
        ("explain attribution=smoothgrad attribution.options.n_step=3", "n_step"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, said):
    answer = command(f"datxai {arguments}", tmp_path)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert said in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
