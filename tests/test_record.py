"""The record of a run, and what a run goes on with: a table from (record, words) to configurations."""

import copy
import functools
import os

import forked
import pytest
import yaml

from datxai import compose, record
from datxai.errors import InputError
from datxai.files import hash_content, write_json
from datxai.order import read_order
from datxai.plan import prepare

FILES = {
    "network/tiny.yaml": "defaults: [nazari2021, _self_]\nchannels: [4, 4]\nhidden: [8]\n",
    "composite/mine.yaml": "name: mine\nvalues: {e: 0.1}\n"
    "layers: [{match: ['*'], rule: epsilon, parameters: {epsilon: '${composite.values.e}'}}]\n",
    "experiment/quick.yaml": "# @package _global_\ndefaults: [{override /network: tiny}, {override /grid: slab_12mm}, "
    "{override /composite: gamma}]\ndata: {n_subjects: 4, raw: false}\n",
    "experiment/lime.yaml": "# @package _global_\ndefaults: [{override /attribution: lime}]\n",
    "experiment/other.yaml": "# @package _global_\ndefaults: [{override /composite: epsilon}]\n",
    "experiment/short.yaml": "# @package _global_\ntraining: {max_epochs: 1}\n",
    "experiment/usual.yaml": "# @package _global_\ntraining: {max_epochs: 24}\n",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    return tmp_path


@functools.cache
def make(*words):
    """The record that these words make."""
    compose.register_schemas()
    cfg = compose.compose(words, folder="conf")
    return compose.record_of(cfg, None, cfg.hydra.runtime.choices)


def begin(folder, *words, made=None):
    """A run folder with the record that these words make, and a manifest."""
    written = make(*words)
    with record.recording(folder, written):
        write_json(folder / "manifest.json", {name: {"config": config} for name, config in (made or {}).items()})
    return written


def settle(*words):
    """What a command goes on with, by the names of settings."""
    own = ["--config-dir", "conf"] if any(word.startswith("experiment=") or "mine" in word for word in words) else []
    plan = prepare(read_order([*words, *own]))
    cfg = compose.compose(plan.words, plan.config, plan.order.config_dir)
    now = compose.record_of(cfg, plan.record, cfg.hydra.runtime.choices)
    return record.flatten_all(now.values) | {"run": cfg.run, "stage": cfg.stage, "device": cfg.device}


MADE = {"preprocess": {"grid": {"name": "", "shape": [], "spacing": []}, "data": {"n_subjects": 240}},
        "train": {"network": {"dropout": 0.2}, "training": {"seed": 0}},
        "explain": {"composite": {"name": ""}}, "explain/mine": {"composite": {"name": ""}}}  # fmt: skip
E = "composite.layers.0.parameters.epsilon"
TABLE = [  # begun with, words now, what holds
    ("", "run=run", "data.kind=phantom grid.name=mni_3mm training.max_epochs=12"),
    ("grid=slab_12mm", "run=run", "grid.name=slab_12mm"),
    ("grid=slab_12mm", "run=run grid=mni_2mm", "grid.name=mni_2mm"),
    ("grid=slab_12mm grid.name=own", "run=run", "grid.name=own"),
    ("grid=slab_12mm grid.name=own", "run=run grid=slab_12mm", "grid.name=slab_12mm"),
    ("training.max_epochs=3", "run=run", "training.max_epochs=3"),
    ("training.max_epochs=3", "run=run training.max_epochs=24", "training.max_epochs=24"),
    ("training.max_epochs=3", "run=run training.batch_size=2", "training.max_epochs=3 training.batch_size=2"),
    ("training.max_epochs=3", "run=run training=nazari2021", "training.max_epochs=84"),
    ("training.max_epochs=3", "run=run experiment=short", "training.max_epochs=1"),
    ("training.max_epochs=3", "run=run experiment=usual", "training.max_epochs=24"),
    ("training.max_epochs=3", "run=run experiment=short training.max_epochs=9", "training.max_epochs=9"),
    ("experiment=short training.max_epochs=3", "run=run", "training.max_epochs=3"),
    ("experiment=short training.max_epochs=3", "run=run experiment=short", "training.max_epochs=3"),
    ("experiment=short training.max_epochs=3", "run=run experiment=usual", "training.max_epochs=24"),
    ("experiment=quick", "run=run", "grid.name=slab_12mm network.hidden.0=8 data.n_subjects=4 composite.name=gamma"),
    ("experiment=quick", "explain run=run experiment=other",
     "grid.name=slab_12mm network.hidden.0=8 data.n_subjects=4 composite.name=epsilon"),
    ("experiment=quick", "run=run experiment=other", "grid.name=slab_12mm data.raw=False composite.name=epsilon"),
    ("experiment=quick", "run=run experiment=short", "grid.name=slab_12mm training.max_epochs=1 composite.name=gamma"),
    ("experiment=quick composite=w_square", "run=run", "composite.name=w_square"),
    ("experiment=quick composite=w_square", "run=run experiment=other", "composite.name=epsilon"),
    ("composite=gamma", "explain run=run experiment=other", "composite.name=epsilon attribution.method=lrp"),
    ("composite=gamma", "explain run=run experiment=other composite=w_square", "composite.name=w_square"),
    ("attribution=lime", "explain run=run", "attribution.method=lime"),
    ("attribution=lime", "explain run=run composite=gamma", "attribution.method=lrp composite.name=gamma"),
    ("attribution=lime", "explain run=run experiment=other", "attribution.method=lrp composite.name=epsilon"),
    ("attribution=lime", "explain run=run experiment=short", "attribution.method=lime"),
    ("attribution=lime target=normal", "explain run=run composite=gamma", "target=normal attribution.method=lrp"),
    ("attribution=lime", "explain run=run target=label", "attribution.method=lime target=label"),
    ("experiment=lime", "explain run=run composite=gamma", "attribution.method=lrp composite.name=gamma"),
    ("experiment=lime", "explain run=run composite=gamma attribution=lime", "attribution.method=lime"),
    ("", "explain run=run experiment=lime composite=gamma", "attribution.method=lrp composite.name=gamma"),
    ("composite=gamma", "explain run=run attribution=lime", "attribution.method=lime composite.name=gamma"),
    ("attribution.cases=all", "explain run=run composite=gamma", "attribution.cases=all composite.name=gamma"),
    ("composite=mine", "explain run=run", f"composite.name=mine {E}=0.1"),
    ("composite=mine", "explain run=run composite.values.e=0.7", f"{E}=0.7"),
    ("composite=mine composite.values.e=0.5", "explain run=run", f"{E}=0.5"),
    ("composite=mine composite.values.e=0.5", "explain run=run composite=mine", f"{E}=0.1"),
    ("seed=5", "run=run", "seed=5 data.seed=5 training.seed=5"),
    ("seed=5", "run=run seed=7", "seed=7 data.seed=7 training.seed=7"),
    ("seed=5 training.seed=1", "run=run seed=7", "seed=7 data.seed=7 training.seed=1"),
    ("seed=5", "train run=run seed=7", "seed=5 data.seed=5 training.seed=7"),
    ("seed=5", "split run=run seed=7", "seed=7 data.seed=5"),
    ("attribution=lime seed=5", "explain run=run", "attribution.options.seed=5"),
    ("data=folder data.root=here", "run=run", "data.kind=folder data.root=here"),
    ("data=folder data.root=here", "run=run data.root=there", "data.kind=folder data.root=there"),
    ("data=folder data.root=here", "run=run data=phantom", "data.kind=phantom data.n_subjects=240"),
    ("data=folder data.root=here ~data.columns.age", "run=run", "data.columns.age=nothing"),
    ("data=folder data.root=here +data.columns.site=scanner", "run=run", "data.columns.site=scanner"),
    ("+data.camera.motion_mm=0", "run=run", "data.camera.motion_mm=0.0 data.camera.views=60.0"),
    ("device=cuda", "run=run", "device=auto"),
    ("network.channels=[2,2]", "train run=run network.hidden=[]", "network.channels.0=2 stage=train"),
    ("grid=slab_12mm", "train run=new base=run network.dropout=0.4", "grid.name=slab_12mm run=new network.dropout=0.4"),
    ("grid=slab_12mm", "run=${oc.env:PLACE}", "grid.name=slab_12mm run=run"),
    ("grid=slab_12mm", "run=elsewhere", "grid.name=mni_3mm run=elsewhere"),
]  # fmt: skip


@pytest.mark.parametrize(("begun", "words", "holds"), TABLE)
def test_a_run_goes_on_with_its_record_and_what_comes_later_wins(place, monkeypatch, begun, words, holds):
    monkeypatch.setenv("PLACE", "run")
    begin(place / "run", *begun.split(), made={"simulate": {"data": {"seed": 5, "n_subjects": 240}}})
    found = settle(*words.split())
    for expected in holds.split():
        setting, _, value = expected.partition("=")
        assert str(found.get(setting, "nothing")) == value, setting


def test_a_sweep_goes_on_with_the_record_of_its_base(place):
    begin(place / "run", "experiment=quick")
    plan = prepare(read_order(["-m", "run=run", "experiment=other,short", "--config-dir", "conf"]))
    for choice, name in (("other", "epsilon"), ("short", "gamma")):
        cfg = compose.compose([*plan.words[1:], f"experiment={choice}"], plan.config, "conf")
        assert (cfg.grid.name, cfg.composite.name, cfg.base) == ("slab_12mm", name, "run")


def test_what_is_written_is_what_is_read(place):
    written = begin(place / "run", "composite=mine", "attribution=lime", "experiment=short", "target=normal")
    assert record.read_record(place / "run") == written
    assert written.choices["composite"] == "mine"
    assert written.choices["experiment"] == "short"
    assert written.references[E] == "composite.values.e"
    assert written.references["attribution.options.seed"] == "seed"
    assert "${" not in (place / "run" / record.RECORD).read_text()
    described = compose.describe(written)
    assert described == "training.max_epochs=1, attribution=lime, composite=mine, target=normal"


def test_what_is_held_while_a_stage_is_made_follows_again_afterwards(place):
    old = begin(place / "run", made=MADE)
    plan = prepare(read_order(["explain", "run=run", "composite=epsilon"]))
    cfg = compose.compose(plan.words, plan.config)
    now = compose.record_of(cfg, plan.record, cfg.hydra.runtime.choices, plan.fixed)
    assert now.references == old.references == {"data.seed": "seed", "training.seed": "seed"}


def test_an_environment_variable_is_recorded_by_its_value(place, monkeypatch):
    monkeypatch.setenv("WHERE", "archive")
    written = make("data=folder", "data.root=${oc.env:WHERE}/scans")
    assert written.values["data"]["root"] == "archive/scans"
    assert "data.root" not in written.references


def edit(folder, change, sealed=True):
    path = folder / record.RECORD
    content = yaml.safe_load(path.read_text())
    content.pop("sha256")
    change(content)
    path.write_text(yaml.safe_dump(content | ({"sha256": hash_content(content)} if sealed else {}), sort_keys=False))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["data"].update(seed="${oc.env:HOME}"), "data.seed is"),
        (lambda content: content.update(target="${oc.env:HOME}"), "target is"),
        (lambda content: content["data"]["camera"].update({"${oc.env:HOME}": 1.0}), "data.camera is"),
        (lambda content: content.update(hydra={"callbacks": {}}), "hydra is not a setting"),
        (lambda content: content["grid"].update(defaults=["x"]), "grid.defaults is not a setting"),
        (lambda content: content["grid"].update(shape="large"), "grid.shape is"),
        (lambda content: content["training"].update(max_epochs=True), "training.max_epochs is"),
        (lambda content: content.update(network=[1]), "network is"),
        (lambda content: content.pop("composite"), "says nothing of composite"),
        (lambda content: content.update(choices=[1]), "choices is"),
        (lambda content: content["references"].update({"training.seed": "oc.env:HOME"}), "lets training.seed follow"),
        (lambda content: content["references"].update({"hydra.run.dir": "seed"}), "lets hydra.run.dir follow"),
        (lambda content: content["data"].update(kind="../x"), "data.n_subjects is not a setting"),
    ],
)
def test_a_record_that_is_not_ours_is_refused(place, change, words):
    begin(place / "run")
    edit(place / "run", change)
    with pytest.raises(InputError, match=rf"run/\.hydra/config\.yaml: {words}"):
        settle("explain", "run=run")


@pytest.mark.parametrize("text", ["", "{", "[1]", "a: &x [1]\nb: *x\n", "a: !!python/object/apply:os.mkdir [x]\n",
                                  "a: " + "[" * 5000, "a: 1\n" * 300_000, "\0"])  # fmt: skip
def test_a_record_that_cannot_be_read_is_refused(place, text):
    begin(place / "run")
    (place / "run" / record.RECORD).write_text(text)
    with pytest.raises(InputError, match=r"run/\.hydra/config\.yaml: .*, expected the settings of the run"):
        settle("explain", "run=run")
    assert not (place / "x").exists()


def test_damage_is_noticed(place):
    begin(place / "run")
    edit(place / "run", lambda content: content.update(seed=1), sealed=False)
    with pytest.raises(InputError, match="checksum"):
        settle("run=run")
    path = place / "run" / record.RECORD
    path.write_text(path.read_text().replace("choices", "choises"))
    with pytest.raises(InputError, match="checksum"):
        settle("run=run")


def test_a_record_that_is_cut_off_is_not_taken_for_one_of_version_0_1(place):
    begin(place / "run")
    path = place / "run" / record.RECORD
    lines = path.read_text().splitlines(keepends=True)
    for n in range(len(lines)):
        path.write_text("".join(lines[:n]))
        with pytest.raises(InputError, match=r"config\.yaml: "):
            record.read_record(place / "run")


def test_a_run_without_its_record_is_not_begun_anew(place):
    begin(place / "run")
    (place / "run" / record.RECORD).unlink()
    with pytest.raises(InputError, match=r"no such file, although the folder holds a run"):
        settle("run=run")


def test_a_command_that_fails_leaves_the_record_as_it_was(place):
    before = begin(place / "run", "seed=1")
    now = make("seed=2")
    with pytest.raises(RuntimeError), record.recording(place / "run", now):
        assert record.read_record(place / "run").values["seed"] == 2
        raise RuntimeError
    assert record.read_record(place / "run") == before
    assert [path.name for path in (place / "run" / ".hydra").iterdir()] == ["config.yaml"]
    with pytest.raises(RuntimeError), record.recording(place / "new", now):
        raise RuntimeError
    assert not (place / "new").exists()


def test_a_full_disk_leaves_the_record_as_it_was(place, monkeypatch):
    before = begin(place / "run", "seed=1")
    now = make("seed=2")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"), record.recording(place / "run", now):
            pass
    assert record.read_record(place / "run") == before
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"), record.recording(place / "run", now):
        patch.setattr("datxai.record.write_text", fail)  # going back takes no room
        fail()
    assert record.read_record(place / "run") == before


def test_another_commands_record_is_left(place):
    begin(place / "run", "seed=1")
    two, three = make("seed=2"), make("seed=3")
    with pytest.raises(RuntimeError), record.recording(place / "run", two):
        with record.recording(place / "run", three):
            pass
        raise RuntimeError
    assert record.read_record(place / "run").values["seed"] == 3


def test_what_a_record_says_cannot_steer_a_terminal(place):
    begin(place / "run")
    edit(place / "run", lambda content: content.update(target="\x1b[2J"))
    assert "\x1b" not in compose.describe(record.read_record(place / "run"))


@pytest.mark.parametrize("name", [".hydra", ".hydra/config.yaml", "datxai.log"])
def test_nothing_is_written_through_a_link(place, name):
    begin(place / "run")
    theirs = place / "theirs"
    (place / "run" / name).rename(theirs) if name != "datxai.log" else theirs.write_text("mine")
    (place / "run" / name).symlink_to(theirs)
    before = (theirs / "config.yaml").read_bytes() if theirs.is_dir() else theirs.read_bytes()
    answer = forked.datxai("split", "run=run", cwd=place, status=2)
    assert "Traceback" not in answer.stderr
    assert "is a link" in answer.stderr or name == ".hydra/config.yaml"
    assert ((theirs / "config.yaml").read_bytes() if theirs.is_dir() else theirs.read_bytes()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("explain grid=mni_2mm", "'preprocess' was made with grid=mni_3mm"),
        ("evaluate grid.name=x", "'preprocess' was made with grid.name=mni_3mm"),
        ("explain network.dropout=0.5", "'train' was made with network.dropout=0.2"),
        ("explain seed=3", "'train' was made with training.seed=0"),
        ("split data.n_subjects=3", "'preprocess' was made with data.n_subjects=240"),
        ("explain experiment=quick --config-dir conf", "'preprocess' was made with grid=mni_3mm"),
        ("case scan=x.nii grid=mni_2mm", "'preprocess' was made with grid=mni_3mm, and `case` goes on with that"),
        ("serve network.dropout=0.5", "'train' was made with network.dropout=0.2"),
        ("benchmark data.n_subjects=3", "'preprocess' was made with data.n_subjects=240"),
        ("spectral composite=gamma", "'explain' was made with composite=nazari2021"),
    ],
)
def test_settings_of_earlier_stages_are_refused_before_anything_is_written(place, words, said):
    begin(place / "run", made=MADE)
    before = {path: path.read_bytes() for path in (place / "run").rglob("*.*") if path.is_file()}
    answer = forked.datxai(*words.split(), "run=run", cwd=place, status=2)
    assert said in answer.stderr
    assert "run=OTHER base=" in answer.stderr
    assert before == {path: path.read_bytes() for path in before}


def test_settings_of_this_stage_and_of_what_was_not_made_are_free(place):
    old = begin(place / "run", made=MADE)
    for word, stage in (
        ("grid=mni_2mm", "preprocess"), ("split.candidates=3", "train"), ("target=normal", "report"),
        ("composite=gamma", "case"), ("reconstruction.flip=[u]", "case"), ("composite=gamma", "serve"),
    ):  # fmt: skip
        cfg = compose.compose([word])
        now = compose.record_of(cfg, old, cfg.hydra.runtime.choices)
        record.require_same(place / "run", old, now, stage)


def test_a_record_of_version_0_1_is_read(place):
    folder = place / "run" / ".hydra"
    folder.mkdir(parents=True)
    words = ["composite=mine", "seed=5", "device=cuda", "hydra.run.dir=elsewhere", "data.n_subjects=${oc.env:HOME}"]
    sources = [{"provider": "command-line", "path": str(place / "conf")}, {"provider": "main", "path": "datxai.conf"}]
    (folder / "overrides.yaml").write_text(yaml.safe_dump(words))
    (folder / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"config_sources": sources}}}))
    from omegaconf import OmegaConf

    compose.register_schemas()
    cfg = compose.compose(["composite=mine", "seed=5", "device=cuda", "run=run"], folder="conf")
    for text in ("{}", OmegaConf.to_yaml(OmegaConf.create({k: cfg[k] for k in cfg if k != "hydra"}), resolve=True)):
        (folder / "config.yaml").write_text(text)
        found = settle("explain", "run=run", "composite.values.e=0.3")
        assert (found["seed"], found[E], found["device"], found["data.n_subjects"]) == (5, 0.3, "auto", 240)
        assert found["run"] == "run"


def explain_as(name, *words):
    """The record once an explanation has been made with these words, as the command writes it."""
    plan = prepare(read_order(["explain", "run=run", *words, *([f"explanation={name}"] if name else [])]))
    cfg = compose.compose(plan.words, plan.config)
    now = compose.record_of(cfg, plan.record, cfg.hydra.runtime.choices, plan.fixed)
    written = plan.record.keep(now, plan.order.explanation)
    with record.recording(plan.run, written):
        pass
    return record.read_record(plan.run)


def test_each_explanation_has_settings_of_its_own(place):
    begin(place / "run", "attribution=lime", "composite=gamma", "seed=5")
    explain_as("eps", "composite=epsilon", "target=normal")
    explain_as("same")
    explain_as("eps", "composite.bias=false")
    own = {name: settle("explain", "run=run", f"explanation={name}") for name in ("default", "eps", "same", "new")}
    found = {name: tuple(of[key] for key in ("attribution.method", "composite.name", "target", "composite.bias"))
             for name, of in own.items()}  # fmt: skip
    lime = ("lime", "gamma", "difference", True)
    assert found == {"default": lime, "eps": ("lrp", "epsilon", "normal", False), "same": lime, "new": lime}
    assert own["eps"]["seed"] == 5
    explain_as("", "attribution=smoothgrad")
    assert settle("explain", "run=run", "explanation=eps")["composite.name"] == "epsilon"
    assert settle("explain", "run=run", "explanation=same")["attribution.method"] == "lime"
    assert settle("explain", "run=run")["attribution.method"] == "smoothgrad"


def test_what_all_explanations_share_is_the_runs(place):
    begin(place / "run")
    explain_as("eps", "composite=epsilon")
    plan = prepare(read_order(["run=run", "training.max_epochs=3"]))
    cfg = compose.compose(plan.words, plan.config)
    with record.recording(plan.run, plan.record.keep(compose.record_of(cfg, plan.record, cfg.hydra.runtime.choices),
                                                     "default")):  # fmt: skip
        pass
    found = settle("run=run", "explanation=eps")
    assert (found["training.max_epochs"], found["composite.name"]) == (3, "epsilon")


def test_an_experiment_belongs_to_the_explanation_that_it_was_given_for(place):
    begin(place / "run")
    words = ["explain", "run=run", "experiment=other", "explanation=mine"]
    plan = prepare(read_order([*words, "--config-dir", "conf"]))
    cfg = compose.compose(plan.words, plan.config, "conf")
    now = compose.record_of(cfg, plan.record, cfg.hydra.runtime.choices, plan.fixed)
    with record.recording(plan.run, plan.record.keep(now, "mine")):
        pass
    assert settle("explain", "run=run")["composite.name"] == "nazari2021"
    assert settle("explain", "run=run", "experiment=other")["composite.name"] == "epsilon"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x" * 65, "[a,b]", "a,b", "null."])
def test_a_name_that_is_no_folder_is_refused(place, name):
    begin(place / "run")
    with pytest.raises(InputError, match="explanation="):
        prepare(read_order(["explain", "run=run", f"explanation={name}"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["explanations"].update({"../x": copy.deepcopy(content["explanations"]["eps"])}),
        lambda content: content["explanations"]["eps"].pop("target"),
        lambda content: content["explanations"]["eps"].update(run="elsewhere"),
        lambda content: content["explanations"]["eps"].update(target="${oc.env:HOME}"),
        lambda content: content["explanations"]["eps"]["references"].update({"target": "no.such"}),
        lambda content: content["explanations"]["eps"].update(composite=3),
        lambda content: content.update(explanations=["eps"]),
    ],
)
def test_what_a_record_says_of_explanations_is_checked(place, change):
    begin(place / "run")
    explain_as("eps", "composite=epsilon")
    edit(place / "run", change)
    with pytest.raises(InputError, match=r"explanations|follow|target"):
        record.read_record(place / "run")
def test_the_first_record_stays_if_a_later_stage_fails(place):
    with pytest.raises(OSError), record.recording(place / "run", make()):
        write_json(place / "run" / "manifest.json", {})
        raise OSError
    assert record.read_record(place / "run") == make()
