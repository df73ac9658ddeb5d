"""The installed command: help, configuration, bad input."""

import errno
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import datxai.conf
import forked
import pytest
import yaml
from hydra.errors import HydraException

from datxai import cli, compose
from datxai.config import COMMANDS, STAGES, Config, Phantom, require_sensible, restore
from datxai.errors import InputError
from datxai.help import help_text
from datxai.order import read_order
from datxai.plan import prepare
from datxai.record import recording

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
    assert datxai_command("--version").stdout.split()[0] == datxai.__version__


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_fits_the_schema(option):
    from omegaconf import OmegaConf

    extra = ["data.root=somewhere"] if option in ("data=folder", "data=ppmi", "data=dicom") else []
    cfg = compose.compose([option, "run=somewhere", *extra])
    OmegaConf.set_struct(cfg, False)
    del cfg.hydra
    assert isinstance(OmegaConf.to_object(cfg), Config)


def test_the_experiment_takes_other_data():
    cfg = compose.compose(["experiment=paper", "data=folder", "data.root=somewhere"])
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


def begun(folder, *overrides):
    """A run folder of which there is only the record."""
    compose.register_schemas()
    cfg = compose.compose(overrides)
    with recording(folder, compose.record_of(cfg, None, cfg.hydra.runtime.choices)):
        (folder / "kept").touch()
    return {path: path.read_bytes() for path in (folder / ".hydra").iterdir()}


def of_version_0_1(folder, *overrides, sources=()):
    """A run folder with a record as version 0.1 wrote it, but for the values."""
    record = folder / ".hydra"
    record.mkdir(parents=True)
    sources = [{"provider": "command-line", "path": str(path)} for path in sources]
    (record / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"config_sources": sources}}}))
    (record / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))


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
    of_version_0_1(
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
        "# @package _global_\ndefaults: [{override /hydra/launcher: evil}]\n",
        "defaults: [{/parts@_global_.hydra.callbacks: evil}]\nname: mine\n",
    ],
)
def test_a_composite_cannot_set_what_hydra_executes(tmp_path, text):
    conf = tmp_path / "conf"
    (conf / "composite").mkdir(parents=True)
    (conf / "composite" / "mine.yaml").write_text(text)
    (conf / "hydra" / "launcher").mkdir(parents=True)
    (conf / "hydra" / "launcher" / "evil.yaml").write_text("_target_: os.mkdir\n")
    (conf / "parts").mkdir()
    (conf / "parts" / "evil.yaml").write_text("evil: {_target_: os.mkdir, path: executed}\n")
    for words in (["composite=mine"], ["-m", "run=run", "composite=gamma,mine"]):
        answer = forked.datxai("simulate", "--config-dir", conf, *words, cwd=tmp_path, status=2)
        assert f"{conf}: a file there has settings of Hydra itself" in answer.stderr
    of_version_0_1(tmp_path / "theirs", "composite=mine", sources=[conf])
    forked.datxai("explain", "run=theirs", cwd=tmp_path, status=2)
    assert not (tmp_path / "executed").exists()


def test_a_launcher_of_theirs_does_not_take_the_place_of_hydras(tmp_path):
    (tmp_path / "conf" / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "conf" / "hydra" / "launcher" / "basic.yaml").write_text("_target_: os.mkdir\n")
    (tmp_path / "conf" / "composite").mkdir()
    (tmp_path / "conf" / "composite" / "mine.yaml").write_text("name: mine\n")
    answer = forked.datxai("explain", "--config-dir", "conf", "composite=mine", cwd=tmp_path, status=2)
    assert "settings of Hydra itself (hydra.launcher" in answer.stderr
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
        "training.learning_rate=-1", "training.learning_rate=nan", "training.max_epochs=-1", "training.patience=0",
        "network.dropout=1.5",
        "target=parkinson", "on_error=no", "network.channels=[0]", "network.hidden=[0]", "data.n_subjects=0",
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused_before_anything_is_touched(tmp_path, override):
    before = begun(tmp_path / "run", "training.max_epochs=2")
    answer = forked.datxai("run=run", override, cwd=tmp_path, status=2)
    assert f"{override.partition('=')[0]} is " in answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run" / ".hydra").iterdir()} == before


@pytest.mark.parametrize("words", [["out=elsewhere"], ["explain", "scan=a.nii.gz"], ["serve", "age=60"]])
def test_settings_that_a_command_does_not_read_are_refused(tmp_path, words):
    answer = forked.datxai("run=run", *words, cwd=tmp_path, status=2)
    assert f"{words[-1]}: only `" in answer.stderr and list(tmp_path.iterdir()) == []


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
    fault = OSError("encoder error -2")  # as Pillow says it
    fault.__cause__ = OSError(errno.ENOSPC, "full")
    assert cli._say(fault) == f"the run folder: {os.strerror(errno.ENOSPC)}; make room or choose another place."
    assert cli._errno_of(OSError("nothing else")) is None


INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs are begun without
from datxai import cli
def work(order):
    try:
        print("begun", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        if "twice" in sys.argv:
            print("ending", flush=True)
            time.sleep(60)
        raise ImportError("as a library makes of it")
cli._launch = work
cli.read_order = lambda words: cli.Order("split")
cli.main()
"""


@pytest.mark.parametrize("times", ["once", "twice"])
def test_interrupts_end_without_a_traceback(times):
    command = [sys.executable, "-c", INTERRUPTED, times]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        if times == "twice":
            assert process.stdout.readline() == "ending\n"
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said == "datxai: interrupted; the same command goes on from here.\n"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("data.seed", -1), ("grid.spacing", [4, -4, 4]), ("grid.spacing", [4.0]), ("grid.shape", [3, 0, 3]),
     ("grid.origin", []), ("network.kernel_size", -3), ("split.candidates", 0), ("seed", -1), ("check", "some")],
)  # fmt: skip
def test_numbers_that_no_run_can_be_made_with(setting, value):
    settings = restore(compose.record_of(compose.compose(["run=r"]), None, {}).values)
    settings.data = Phantom("phantom", n_subjects=3, seed=0)
    require_sensible(settings)
    *way, last = setting.split(".")
    setattr(functools.reduce(getattr, way, settings), last, value)
    with pytest.raises(InputError, match=rf"{setting} is .*, expected "):
        require_sensible(settings)


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize(
    ("key", "meant"),
    [("traning.seed", "training.seed"), ("training.sed", "training.seed"), ("n_subjects", "data.n_subjects"),
     ("sed", "seed"), ("data.nsubjects", "data.n_subjects")],
)  # fmt: skip
def test_a_misspelt_setting_is_an_error_with_a_plus_too(tmp_path, monkeypatch, key, meant, sign):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, HydraException)) as caught:
        plan = prepare(read_order([f"{sign}{key}=1", "run=run"]))
        compose.compose(plan.words, plan.config)
    said = str(caught.value) if isinstance(caught.value, InputError) else compose.sentence(caught.value)
    assert said == f"there is no setting {key}; did you mean {meant}?"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("grid=", "grid=: no such choice, expected one of mni_2mm, mni_2mm_paper, mni_3mm, mni_4mm, slab_12mm."),
        ("-m grid=slab_12mm,none", "grid=none: no such choice, expected one of mni_2mm, mni_2mm_paper, mni_3mm, "),
        ("data=mine", "data=mine: no such choice, expected one of dicom, folder, phantom, phantom_paper, ppmi."),
        ("hydra/launcher=none", "hydra/launcher=none: no such choice, expected one of basic, "),
        ("grid=a,b", "grid=a,b: several values, expected one; add -m for a job with each"),
        ("data.n_subjects=1.5", "data.n_subjects: Value '1.5' of type 'float' could not be converted to Integer."),
        ("network.channels=[a]", "network.channels[0]: Value 'a' of type 'str' could not be converted to Integer."),
        ("run=${x}", "run: Interpolation key 'x' not found."),
        ("--config-dir none", "none: no such folder, expected the configuration directory of --config-dir."),
        ("--config-name theirs", "--config-path and --config-name: a run begins with the configuration of datxai"),
        ("seed=}", "seed=}: cannot be read as SETTING=VALUE;"),
    ],
)
def test_what_hydra_finds_wrong_is_one_sentence(tmp_path, words, said):
    answer = forked.datxai(*words.split(), *([] if "run=" in words else ["run=run"]), cwd=tmp_path, status=2)
    assert answer.stderr.startswith(f"datxai: {said}")
    assert answer.stderr.count("\n") == 1
    assert not (tmp_path / "run" / ".hydra").exists()


def test_help_on_a_stage_or_command():
    for name in (*STAGES, *COMMANDS):
        text = help_text(name)
        assert text.startswith(f"datxai {name}: ")
        assert "Settings\n" in text or "no settings of its own" in text
    assert datxai_command("explain", "--help").stdout == datxai_command("help", "explain").stdout
    assert datxai_command("help").stdout == datxai_command("--help").stdout


@pytest.mark.parametrize(
    ("line", "among"),
    [
        ("datxai ex", "explain"), ("datxai doc", "doctor"), ("datxai explain composite=g", "composite=gamma"),
        ("datxai composite=g", "composite=gamma"), ("datxai explain training.see", "training.seed="),
        ("datxai --config-dir conf explain composite=m", "composite=mine"),
    ],
)  # fmt: skip
def test_completion_goes_on_after_a_stage(tmp_path, monkeypatch, line, among):
    (tmp_path / "conf" / "composite").mkdir(parents=True)
    (tmp_path / "conf" / "composite" / "mine.yaml").write_text("name: mine\n")
    monkeypatch.setenv("COMP_LINE", line)
    assert among in forked.datxai("-sc", "query=bash", cwd=tmp_path).stdout.split()


def test_the_configuration_shown_is_that_of_the_run(tmp_path):
    begun(tmp_path / "run", "network.channels=[4,4]", "grid=slab_12mm")
    cfg = composed(tmp_path, "explain", "run=run", "target=normal")
    assert (cfg["network"]["channels"], cfg["grid"]["name"], cfg["target"]) == ([4, 4], "slab_12mm", "normal")
    assert forked.datxai("--hydra-help", cwd=tmp_path).stdout
    assert {path.name for path in tmp_path.rglob("*")} == {"run", ".hydra", "config.yaml", "kept"}


def test_a_sweeper_that_needs_an_objective_is_refused_where_there_is_none(tmp_path):
    answer = forked.datxai("simulate", "-m", "run=x", "hydra/sweeper=optuna", "seed=1,2", cwd=tmp_path, status=2)
    assert "looks for settings with the best objective" in answer.stderr


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
