"""The installed command: help, configuration, bad input."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import datxai.conf
import forked
import pytest
import yaml

from datxai import cli
from datxai.config import STAGES

CONF = Path(datxai.conf.__file__).parent
COMMAND = [sys.executable, "-m", "datxai"]
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))


def datxai_command(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)


def test_help_names_every_stage_and_choice():
    answer = datxai_command("--help")
    assert answer.returncode == 0
    for name in STAGES:
        assert f"\n  {name}" in answer.stdout
    for option in OPTIONS:
        group, name = option.split("=")
        choices = answer.stdout.partition("Choices")[2].splitlines()
        line = next(line for line in choices if line.split() and line.split()[0] == group)
        assert name in line.replace(",", " ").split()


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['datxai', '--help']; from datxai.cli import main; main();"
        "heavy = {'torch', 'hydra', 'numpy', 'matplotlib', 'zennit', 'scipy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize("arguments", [["--hydra-help"], ["--info", "searchpath"], ["--cfg", "job", "train"]])
def test_hydras_own_flags(tmp_path, arguments):
    answer = datxai_command(*arguments, cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_version():
    assert datxai_command("--version").stdout.strip() == datxai.__version__


@pytest.fixture(scope="module")
def compose():
    from hydra import compose, initialize_config_module

    from datxai.cli import register_schemas

    register_schemas()
    with initialize_config_module("datxai.conf", version_base="1.3"):
        yield lambda *overrides: compose("config", overrides=list(overrides))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_fits_the_schema(compose, option):
    from omegaconf import OmegaConf

    extra = ["data.root=somewhere"] if option in ("data=folder", "data=ppmi", "data=dicom") else []
    settings = OmegaConf.to_object(compose(option, "run=somewhere", *extra))
    assert type(settings).__name__ == "Config"


def test_the_experiment_takes_other_data(compose):
    cfg = compose("experiment=paper", "data=folder", "data.root=somewhere")
    assert cfg.data.kind == "folder"
    assert list(cfg.grid.shape) == [91, 109, 63]
    assert list(cfg.split.sizes) == [864, 144, 288]


def test_what_an_experiment_says_of_the_run_counts(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nrun: runs/mine\nseed: 5\ntarget: difference\ntraining: {max_epochs: 7}\n"
    )
    cfg = composed(tmp_path, "--config-dir", str(tmp_path), "experiment=mine", "on_error=skip")
    assert (cfg["run"], cfg["seed"], cfg["target"], cfg["on_error"]) == ("runs/mine", 5, "difference", "skip")
    assert cfg["training"]["max_epochs"] == 7
    assert composed(tmp_path, "experiment=paper")["run"] == "runs/paper"
    assert composed(tmp_path, "experiment=paper", "run=elsewhere")["run"] == "elsewhere"
    assert composed(tmp_path)["run"] == "runs/phantom"


def composed(place, *arguments):
    answer = datxai_command(*arguments, "--cfg", "job", "--resolve", cwd=place)
    assert answer.returncode == 0, answer.stderr
    return yaml.safe_load(answer.stdout)


def begun(folder, *overrides, sources=()):
    """A run folder of which there is only the record."""
    record = folder / ".hydra"
    record.mkdir(parents=True)
    sources = [{"provider": "command-line", "path": str(path)} for path in sources]
    (record / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"config_sources": sources}}}))
    (record / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (record / "config.yaml").write_text("{}")
    return {path: path.read_bytes() for path in record.iterdir()}


def test_a_refused_command_leaves_the_record_as_it_was(tmp_path):
    """Wherever the configuration says that the run folder lies."""
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "clinic.yaml").write_text("defaults: [folder_schema]\nkind: folder\nroot: missing\n")
    before = begun(tmp_path / "runs" / "folder")
    answer = forked.datxai("--config-dir", tmp_path / "conf", "preprocess", "data=clinic", cwd=tmp_path, status=2)
    assert "missing" in answer.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "runs" / "folder" / ".hydra").iterdir()} == before
    forked.datxai("split", "run=new/run", cwd=tmp_path, status=2)
    assert not (tmp_path / "new" / "run").exists(), "nothing was made, so nothing is left"


def test_a_run_folder_cannot_set_what_hydra_executes(tmp_path):
    begun(
        tmp_path / "theirs",
        f"hydra.job_logging.handlers.file.filename={tmp_path}/stolen",
        f"+hydra.callbacks.evil={{_target_: os.mkdir, path: {tmp_path}/executed}}",
    )
    forked.datxai("split", "run=theirs", cwd=tmp_path, status=2)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize(
    "text",
    [
        "# @package _global_\nhydra: {callbacks: {evil: {_target_: os.mkdir, path: executed}}}\n",
        "# @package hydra.callbacks\nevil: {_target_: os.mkdir, path: executed}\n",
        "# @package _global_\ndefaults: [{override hydra/job_logging: evil}]\n",
        "defaults: ['parts@hydra.callbacks: evil']\nname: mine\n",
    ],
)
@pytest.mark.parametrize("typed", [True, False])
def test_a_composite_cannot_set_what_hydra_executes(tmp_path, text, typed):
    conf = tmp_path / "conf"
    (conf / "composite").mkdir(parents=True)
    (conf / "composite" / "mine.yaml").write_text(text)
    begun(tmp_path / "theirs", "composite=mine", sources=[conf])
    words = ["--config-dir", conf, "composite=mine"] if typed else ["run=theirs"]
    answer = forked.datxai("explain", *words, cwd=tmp_path, status=2)
    assert f"{conf / 'composite' / 'mine.yaml'}: has settings of Hydra itself" in answer.stderr
    assert not (tmp_path / "executed").exists()


def test_launchers_of_ones_own_lie_in_a_folder_of_hydras_name(tmp_path):
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "hydra" / "launcher" / "mine.yaml").write_text(
        "_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher\n"
    )
    answer = datxai_command("--config-dir", str(tmp_path), "hydra/launcher=mine", "--cfg", "hydra", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr


def test_no_dry_run_is_a_run(tmp_path):
    forked.datxai("split", "run=here", "dry_run=false", cwd=tmp_path, status=2)
    assert not (tmp_path / ".hydra").exists()
    assert not (tmp_path / "datxai.log").exists()


def test_a_run_goes_on_with_its_own_settings(tmp_path):
    """Without a word of its data it would become the default phantom, over a clinic's cohort and its network."""
    begun(tmp_path / "run", "data=folder", "data.root=missing", "grid=slab_12mm")
    answer = forked.datxai("run=run", cwd=tmp_path, status=2)
    assert "missing" in answer.stderr
    assert not (tmp_path / "run" / "simulated").exists()
    answer = forked.datxai("run=run", "data=phantom", "data.n_subjects=0", cwd=tmp_path, status=2)
    assert "data.n_subjects" in answer.stderr


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1", "n_jobs=0", "training.seed=99999999999999999999999", "training.batch_size=0",
        "training.learning_rate=-1", "training.learning_rate=nan", "training.max_epochs=0", "training.patience=0",
        "network.dropout=1.5", "network.channels=[0]", "network.hidden=[0]", "data.n_subjects=0",
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused_before_anything_is_touched(tmp_path, override):
    before = begun(tmp_path / "run", "training.max_epochs=2")
    answer = forked.datxai("run=run", override, cwd=tmp_path, status=2)
    assert f"{override.partition('=')[0]} is " in answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run" / ".hydra").iterdir()} == before


@pytest.mark.parametrize("name", ["clinic data (Köln)", "Müller, Hans (1)", "it's", "a=b"])
def test_names_of_files_need_no_quotes_within_quotes(tmp_path, name):
    answer = forked.datxai("preprocess", f"data.root={name}", "data=folder", f"run={name} run", cwd=tmp_path, status=2)
    assert f"{name}: " in answer.stderr
    assert f"data.root={name}" in answer.stderr or "no such folder" in answer.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for run in ("file", "file/run"):
        answer = forked.datxai("simulate", f"run={run}", cwd=tmp_path, status=2)
        assert "is a file, expected a folder" in answer.stderr
    for fault in (errno.ENOSPC, errno.EROFS):
        assert cli._say(OSError(fault, os.strerror(fault), "x.nii")).startswith(f"x.nii: {os.strerror(fault)};")


def test_a_composite_given_now_is_explained_with_whatever_the_run_did_last(tmp_path):
    begun(tmp_path / "run", "attribution=lime", "target=normal")
    flags_and_kept = cli._take_over(tmp_path / "run", {"run": "run", "composite": "gamma"})
    assert flags_and_kept == ([], ["target=normal"])
    flags_and_kept = cli._take_over(tmp_path / "run", {"run": "run", "target": "label"})
    assert flags_and_kept == ([], ["attribution=lime"])


def test_own_configuration_directory(tmp_path):
    (tmp_path / "composite").mkdir()
    (tmp_path / "composite" / "mine.yaml").write_text(
        "name: mine\nlayers:\n  - {match: ['type:Linear'], rule: epsilon, parameters: {epsilon: 0.25}}\n"
    )
    answer = datxai_command("--config-dir", str(tmp_path), "composite=mine", "--cfg", "job", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "epsilon: 0.25" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["trian"], "trian"),
        (["grid=unknown"], "unknown"),
        (["training.batchsize=3"], "batchsize"),
        (["training.batch_size=many"], "many"),
        (["preprocess", "data=folder"], "data.root"),
        (["case", "scan=x.nii"], "run="),
        (["case", "scan=x.nii", "run=nowhere"], "nowhere"),
        (["split", "run=nowhere"], "datxai preprocess"),
        (["train", "run=nowhere"], "datxai split"),
        (["explain", "run=nowhere"], "datxai train"),
        (["report", "run=nowhere"], "datxai evaluate"),
        (["preprocess", "data=folder", "data.root=missing"], "missing"),
        (["preprocess", "registration.kind=guess"], "simulate"),
        (["split", "split.sizes=[1,2]", "run=nowhere"], "preprocess"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(tmp_path, arguments, word):
    answer = forked.datxai(*arguments, cwd=tmp_path, status=2)
    said = answer.stdout + answer.stderr
    assert word in said
    assert "Traceback" not in said
    made = [path for path in tmp_path.rglob("*") if path.is_file() and ".hydra" not in path.parts]
    assert [path.name for path in made] in ([], ["datxai.log"])


def test_status_2_from_the_console_script(tmp_path):
    script = Path(sys.executable).with_name("datxai")
    answer = subprocess.run([script, "nonsense"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert answer.returncode == 2
    assert "nonsense" in answer.stderr
