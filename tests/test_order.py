"""What a command line asks for: a table from words to orders."""

import pytest

from datxai.errors import InputError
from datxai.order import Order, quote, read_order

TABLE = {
    "": Order("all"),
    "run=x": Order("all", ("run='x'",)),
    "train": Order("train"),
    "train run=x network.dropout=0.1": Order("train", ("run='x'", "network.dropout=0.1")),
    "run=x train": Order("train", ("run='x'",)),
    "train seed=3": Order("train", ("training.seed=3",)),
    "explain seed=3": Order("explain", ("training.seed=3",)),
    "train seed=3 training.seed=4": Order("train", ("seed=3", "training.seed=4")),
    "split seed=3": Order("split", ("seed=3",)),
    "seed=3": Order("all", ("seed=3",)),
    "explain --dry-run run=x": Order("explain", ("dry_run=true", "run='x'")),
    "--cfg job explain run=x": Order("explain", ("run='x'",), ("--cfg", "job")),
    "explain run=x -c job -p network": Order("explain", ("run='x'",), ("-c", "job", "-p", "network")),
    "explain --config-dir conf composite=mine": Order("explain", ("composite=mine",), ("--config-dir", "conf")),
    "--config-dir=conf composite=mine": Order("all", ("composite=mine",), ("--config-dir=conf",)),
    "train -m run=x seed=1,2": Order("train", ("run=x", "training.seed=1,2"), ("-m",)),
    "~attribution split": Order("split", ("~attribution",)),
    "+data.camera.motion_mm=0": Order("all", ("+data.camera.motion_mm=0",)),
    "compare a b out=c": Order("compare", ("out='c'", "runs=['a','b']")),
    "compare run=a explanations=[default,x]": Order("compare", ("explanations=[default,x]", "runs=['a']")),
    "apply run=a to=b data=folder": Order("all", ("applied='a'", "run='b'", "data=folder")),
    "apply to=b,c run=a=1 seed=3": Order("all", ("run='b,c'", "applied='a=1'", "seed=3")),
    "apply --help": Order("help", topic="apply"),
    "case scan=a=b.nii run=x": Order("case", ("scan='a=b.nii'", "run='x'")),
    "case run=x explanations=[b,a]": Order("case", ("run='x'", "explanations=[b,a]", "explanation='b'")),
    "case run=x explanations=[b,a] explanation=c": Order("case", ("run='x'", "explanations=[b,a]", "explanation='c'")),
    "explain run=x explanation=1e3": Order("explain", ("run='x'", "explanation='1e3'")),
    "help": Order("help"),
    "help explain": Order("help", topic="explain"),
    "--help": Order("help"),
    "-h": Order("help"),
    "explain --help": Order("help", topic="explain"),
    "explain run=x -h": Order("help", topic="explain"),
    "--version": Order("version"),
    "--hydra-help": Order("all", (), ("--hydra-help",)),
    "explain --hydra-help run=r": Order("all", (), ("--hydra-help",)),
    "-sc install=bash": Order("all", (), ("-sc", "install=bash")),
    "-sc query=bash": Order("all", (), ("-sc", "query=bash")),
}


@pytest.mark.parametrize("line", TABLE)
def test_words_are_read_as_an_order(line):
    assert read_order(line.split()) == TABLE[line]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("trian", r"'trian' is neither stage nor command \(did you mean train\?\)"),
        ("x=1 nonsense", "'nonsense' is neither stage nor command; the stages are simulate, .* the commands case, "),
    ],
)
def test_a_first_word_that_is_neither_stage_nor_command(line, sentence):
    with pytest.raises(InputError, match=sentence):
        read_order(line.split())


def test_apply_needs_both_folders():
    for line, missing in (("apply run=a data=folder", "to=DIR"), ("apply to=b", "run=RUN_DIR")):
        with pytest.raises(InputError, match=f"`datxai apply` needs {missing}"):
            read_order(line.split())


@pytest.mark.parametrize("word", ["run=clinic data (Köln)", "data.root=Müller, Hans", "scan=it's", "run=a=b"])
def test_what_is_given_is_what_was_typed(word):
    key, _, value = word.partition("=")
    order = read_order([word])
    assert order.given == {key: value}
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_overrides([*order.words])[0].value() == value


@pytest.mark.parametrize(
    ("word", "sweeps", "quoted"),
    [
        ("run=a,b", False, "run='a,b'"), ("data.root=a,b", True, "data.root=a,b"), ("base=null", False, "base=null"),
        ("composite=gamma", False, "composite=gamma"), ("run='a b'", False, "run='a b'"), ("x=[a=b]", False, "x=[a=b]"),
        ("runs=a=b", False, "runs='a=b'"), ("scan=[a b,Köln/c,'d,e']", False, "scan=['a b','Köln/c','d,e']"),
    ],
)  # fmt: skip
def test_quotes_are_put_where_hydra_needs_them(word, sweeps, quoted):
    assert quote(word, sweeps) == quoted


def test_an_order_says_what_it_leaves_behind():
    for line in ("--cfg job", "--info plugins", "--hydra-help", "explain --dry-run"):
        assert read_order(line.split()).leaves_nothing, line
    assert not read_order(["explain"]).leaves_nothing
    for line in ("-m x=1,2", "--multirun x=1,2", "hydra.mode=MULTIRUN x=1,2"):
        assert read_order(line.split()).sweeps, line
    assert not read_order(["x=1"]).sweeps
    for line in ("--config-dir conf", "-cd conf", "--config-dir=conf"):
        assert read_order(line.split()).config_dir == "conf"


def test_several_scans_come_through_hydra_as_they_were_typed():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    paths = ["a b.nii", "it's", "x=1/(2).dcm", "Müller, Hans"]
    (word,) = read_order(["case", f"scan=[{paths[0]}, {paths[1]},{paths[2]},'{paths[3]}']"]).words
    assert OverridesParser.create().parse_overrides([word])[0].value() == paths
