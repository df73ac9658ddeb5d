"""The schema of all settings: a misspelt key or a wrong type is refused before anything runs.

Values live in ``conf/``; one dataclass here per group there. ``MISSING`` marks what a user must give.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from datxai.errors import InputError

MISSING: Any = "???"  # OmegaConf's marker, spelt out so that nothing heavy is imported here

STAGES = {
    "simulate": "make the phantom cohort (data=phantom)",
    "preprocess": "register to MNI, scale by the reference region, measure SBR, mirror",
    "split": "training, validation and test set; Table 1",
    "train": "train the CNN, predict every case",
    "explain": "a relevance map of every test case",
    "evaluate": "classification with intervals, regional relevance, mean maps",
    "report": "figures and report.html",
    "external": "of `apply`: internal and external test side by side, external.html",
}
COMMANDS = {
    "case": "new scans through a trained run: scan=PATH|[A,B] run=RUN_DIR [age=YEARS] [sex=F|M] [prior=PATH] [out=DIR]",
    "apply": "a finished run meets other scans: run=RUN_DIR|FILE to=DIR data=folder data.root=SCANS [subgroups=[sex]]",
    "serve": "a page on this machine where scans are dropped in: run=RUN_DIR [port=8765]",
    "bundle": "a run's model in one file to hand on, without scans: run=RUN_DIR [out=FILE.datxai] [precision=bf16]",
    "export": "a run's network in another format: run=RUN_DIR [to=onnx] [out=FILE]",
    "template": "a template for registration from a run's own normal scans: run=RUN_DIR",
    "benchmark": "ways to explain side by side, by measures of their maps: run=RUN_DIR",
    "spectral": "groups among the relevance maps of a run, to find a Clever Hans: run=RUN_DIR",
    "check": "whether all files of a run are as they were written: run=RUN_DIR",
    "compare": "runs, or explanations of one, side by side: RUN... [explanations=[default,NAME]] [out=DIR]",
    "search": "settings of training and network that end best, by Optuna: run=RUN_DIR [search=training]",
    "doctor": "what is installed here and what works, in lines for a bug report",
    "reads": "consensus of two readers, and how far they agree: file=READS.tsv [out=DIR]",
}
OF_BUNDLES = ("case", "serve", "bundle", "export")  # commands that accept a bundle instead of a run folder
ALL = "all"
DEFAULT = "default"  # the explanation with its maps in the run folder itself
EXPLAINED = ("explain", "evaluate", "report", "external")  # stages that are run separately for each explanation
EXPLAINING = ("attribution", "composite", "target")  # and their settings
CALL = (  # settings of one call or one machine, which a run does not record
    "stage", "run", "shard", "runs", "scan", "age", "sex", "prior", "prior_years", "port", "dicom", "deidentify",
    "file", "out", "device", "n_jobs", "on_error", "check", "dry_run", "objective", "benchmark", "search",
    "explanation", "explanations", "precision", "to",
)  # fmt: skip
READ_BY = {  # settings of one call that only these commands read
    "scan": ("case",), "age": ("case",), "sex": ("case",), "prior": ("case",), "prior_years": ("case",),
    "dicom": ("case", "serve"), "deidentify": ("case", "serve"), "explanations": ("case", "serve", "compare"),
    "port": ("serve",), "runs": ("compare",), "file": ("reads",), "precision": ("bundle",), "to": ("export",),
    "out": ("case", "compare", "bundle", "export", "reads"),
}  # fmt: skip
RADIOLOGICAL = "radiological"
TARGETS = ("difference", "decision", "predicted", "normal", "reduced", "label")
OF_SPLIT = {  # settings of each kind of split
    "random": ("sizes", "candidates"),
    "kfold": ("folds", "fold", "repeat", "validation", "candidates"),
    "column": ("column", "test", "validation", "candidates"),
}
SPLITS = {"random": "a random split", "kfold": "split=kfold", "column": "split=column"}
OF_PLAIN = (  # settings of network=nazari2021 only
    "channels", "kernel_size", "padding", "hidden", "dropout", "initialisation",
)  # fmt: skip
OF_OTHERS = ("target", "arguments", "in_channels", "spatial_dims")  # settings of all other networks
FILES = ("template", "labels", "names", "weights")  # settings of registration, atlas and network that name a file


@dataclass
class Data:
    """Where scans come from."""

    kind: str = MISSING
    orientation: str = "header"  # header | as_fitted


@dataclass
class Dicom(Data):
    """DICOM series, a folder or file per participant, with a table of participants."""

    root: str = MISSING
    participants: str = "participants.tsv"
    columns: dict[str, str | None] = field(default_factory=dict)
    label_values: Any = None  # {text: 0 or 1}; a typed mapping would refuse new keys on the command line


@dataclass
class Folder(Dicom):
    """NIfTI files with a table of participants."""

    pattern: str | None = None


@dataclass
class Ppmi(Data):
    """An unpacked PPMI download."""

    root: str = MISSING
    collection: str | None = None
    groups: Any = None  # {group: 0 or 1}
    columns: dict[str, str | None] = field(default_factory=dict)
    descriptions: list[str] = field(default_factory=lambda: ["Reconstructed DaTSCAN"])


@dataclass
class Phantom(Data):
    """The digital phantom cohort."""

    n_subjects: int = MISSING
    seed: int = MISSING
    raw: bool = True
    reconstruction: str | None = None  # sites | null
    camera: dict[str, float] = field(default_factory=dict)


KINDS = {"phantom": Phantom, "folder": Folder, "dicom": Dicom, "ppmi": Ppmi}  # of data


@dataclass
class Lattice:
    """A voxel grid in MNI space; lengths in mm, ``origin`` is the centre of the first voxel."""

    name: str = MISSING
    shape: list[int] = MISSING
    spacing: list[float] = MISSING
    origin: list[float] = MISSING


@dataclass
class Reconstruction:
    """Filtered back projection of raw projections, and their geometry."""

    filter: str = "shepp-logan"
    cutoff_per_cm: float = 1.25
    attenuation_per_cm: float | None = None
    post_filter_mm: float = 0.0
    equivalent_mm: float | None = 4.0
    centre: float | None = None
    start_angle_deg: Any = None  # a number, or a list with one per detector
    flip: list[str] = field(default_factory=list)


@dataclass
class Registration:
    """How a scan is registered to MNI space."""

    kind: str = MISSING  # affine | none
    template: str | None = None


@dataclass
class Atlas:
    """Regions: the packaged atlas, or a label image with a table of names."""

    labels: str | None = None
    names: str | None = None


@dataclass
class Preprocessing:
    """Intensity scaling, SBR and mirroring."""

    reference_percentile: float = 75.0
    putamen_ml: float = 10.0
    caudate_ml: float = 5.0
    striatum_ml: float = 15.0
    mirror: bool = True
    min_coverage: float = 0.9


@dataclass
class Split:
    """How the cases are split into training, validation and test sets; `OF_SPLIT` has the settings of each kind."""

    kind: str = "random"  # random | kfold | column
    sizes: list[float] = field(default_factory=list)  # cases, or fractions of them
    folds: int = 5
    fold: int = 0
    repeat: int = 0
    column: str = "set"  # of the table of participants
    test: list[str] = field(default_factory=list)  # values of the column that are tested
    validation: float = 0.125  # share of the cases that are not tested
    candidates: int = 100


@dataclass
class Network:
    """The CNN: `OF_PLAIN` are settings of the plain one, `OF_OTHERS` those of others."""

    architecture: str = "plain"  # plain | vgg3d | resnet3d | densenet3d | custom
    channels: list[int] = field(default_factory=list)
    kernel_size: int = 3
    padding: str = "auto"
    hidden: list[int] = field(default_factory=list)
    dropout: float = 0.2
    initialisation: str = "glorot"  # glorot | looks_linear
    target: str | None = None  # package.module:Class, which is executed
    arguments: Any = None  # {name: value}; a typed mapping would refuse new keys on the command line
    in_channels: int = 1  # number of copies of the scan: 3 for networks for colour images and videos
    spatial_dims: int = 3  # 2: the network takes images, on a grid of one slice
    see: str = "all"  # all | striatum | extrastriatal
    centre: bool = False
    weights: str | None = None  # a file of trained weights to start from
    rename: Any = None  # {regular expression: replacement, or null to leave out}, of names in that file
    initial: list[str] = field(default_factory=list)  # patterns of weights that may be missing in it
    freeze: list[str] = field(default_factory=list)  # patterns of weights that are not trained


@dataclass
class Augmentation:
    """Amounts of random variation of the training cases, redrawn in each epoch; zero is none."""

    blur_fwhm_mm: float = 0.0
    noise: float = 0.0
    rotation_deg: float = 0.0
    translation_mm: float = 0.0


@dataclass
class Training:
    """Optimisation: the fields of `datxai.model.recipe.Recipe`, and further settings of the stage."""

    batch_size: int = 8  # of all processes together
    learning_rate: float = 1e-4
    fan_in: int | None = None
    optimiser: str = "adam"  # adam | adamw | sgd
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0
    schedule: str = "constant"  # constant | cosine | step | plateau
    decay_epochs: int = 10
    decay_factor: float = 0.1
    warmup_epochs: int = 0
    loss: str = "cross_entropy"  # cross_entropy | focal
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weights: Any = None  # null | balanced | a number for each class
    sampling: str = "shuffled"  # shuffled | balanced
    accumulate: int = 1  # batches for each step
    clip_norm: float | None = None
    ema_decay: float | None = None
    max_epochs: int = MISSING
    monitor: str = "loss"  # loss | accuracy | auc
    patience: int | None = None
    precision: str = "float32"  # float32 | bf16
    save_memory: bool = False
    shard: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    tracking: str = "none"  # none | tensorboard | mlflow
    seed: int = MISSING  # of initial weights, batches and dropout


@dataclass
class Attribution:
    """How a decision is explained."""

    method: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)  # of the method; the command line may change those in a file
    parcels: str | None = None  # atlas | null: what occlusion, lime and kernel_shap remove
    start: str = "logit"  # relevance at the output: the logit's value, or one
    cases: str = "test"  # test | all
    rules: str = "fast"  # fast | zennit
    precision: str = "float32"  # float32 | bf16
    batch_size: str = "auto"  # or a number of cases


@dataclass
class LayerRule:
    """One line of a composite: which layers, which rule, with which parameters."""

    match: list[str] = MISSING
    rule: str = MISSING
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Composite:
    """Maps layers to LRP rules; the first line that matches a layer applies."""

    name: str = MISSING
    reference: str = ""
    values: dict[str, Any] = field(default_factory=dict)  # values that the lines refer to as ${composite.values.NAME}
    layers: list[LayerRule] = field(default_factory=list)
    auto: bool = False  # add lines and canonizers for the network's layers
    canonizers: list[str] = field(default_factory=list)
    bias: bool = True  # whether biases absorb their share of the relevance
    rules_from: str | None = None  # a Python file with the user's own rules, which is executed


@dataclass
class Method:
    """A method to explain, as set by `attribution` and `composite` elsewhere; or a control."""

    attribution: Attribution | None = None
    composite: Composite | None = None
    control: str | None = None  # uptake | noise: a map that does not depend on the network


@dataclass
class Benchmark:
    """Comparison of methods by measures of their maps."""

    catalogue: dict[str, Method] = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)  # of the catalogue
    metrics: list[str] = field(default_factory=list)
    fill: str = "mean"  # mean | blur | brain_mean: what region flipping replaces a region by
    n_cases: int = 12  # of the test set
    n_checks: int = 2  # of these, for metrics that need many more maps
    lesions: list[str] = field(default_factory=list)  # regions of the phantom
    n_heads: int = 2  # healthy heads for each lesion
    min_effect: float = 0.1  # fraction of the way from normal to reduced above which a map must show a lesion


@dataclass
class Search:
    """Search over settings, each with a space such as log(1e-5, 1e-2)."""

    name: str = "training"  # of the folder within RUN/search
    space: Any = None  # {setting: space}; a typed mapping would refuse new keys on the command line
    objective: str = "loss"  # loss | auc | accuracy, of the validation set
    trials: int = 30
    pruning: str = "median"  # median | none
    unpruned: int = 5
    processes: int = 1
    seed: int = 0


@dataclass
class Config:
    """All settings."""

    data: Data = field(default_factory=Data)
    grid: Lattice = field(default_factory=Lattice)
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    registration: Registration = field(default_factory=Registration)
    atlas: Atlas = field(default_factory=Atlas)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    split: Split = field(default_factory=Split)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    attribution: Attribution = field(default_factory=Attribution)
    composite: Composite = field(default_factory=Composite)
    benchmark: Benchmark = field(default_factory=Benchmark)
    search: Search = field(default_factory=Search)
    sides: str = "neurological"  # neurological | radiological: the left of the patient is on the left, or the right
    target: str = "difference"  # difference | decision | predicted | normal | reduced | label
    run: str = MISSING
    base: str | None = None  # a run whose stages are reused where settings and inputs are the same
    applied: str | None = None  # a finished run whose network and calibration judge this cohort, all of it a test set
    subgroups: list[str] = field(default_factory=list)  # columns of the participants by which the cohort is divided
    stage: str = ALL
    shard: str | None = None  # K/N: every N-th case of `preprocess`, or batch of `explain`, from K on
    explanation: str = DEFAULT  # the explanation of the run that is made or used
    explanations: list[str] = field(default_factory=list)  # of `compare` and `case`: shown side by side
    runs: list[str] = field(default_factory=list)  # of `compare`
    scan: Any = None  # of `case`: a path, or several
    age: float | None = None  # of the person scanned, in years; None: from the scan's header
    sex: str | None = None  # F | M; None: from the scan's header
    prior: str | None = None  # of `case`: an earlier scan of the same person
    prior_years: float | None = None  # before the scan; None: from the headers of both
    port: int = 8765  # of `serve`; 0: any free port
    dicom: bool = False  # also write results of `case` as DICOM
    deidentify: bool = False  # without the patient's identity
    file: str | None = None
    out: str | None = None
    precision: str = "float32"  # float32 | bf16: of the weights in a `bundle`
    to: str = "onnx"  # format of `export`
    seed: int = 0
    device: str = "auto"
    n_jobs: int = -1
    on_error: str = "raise"  # raise | skip
    check: str = "quick"  # quick | full: whether existing files are checked by size and time, or read
    objective: str = "validation_accuracy"  # or a number in metrics.json: what a job returns to a sweeper
    dry_run: bool = False  # of `explain`: show which layer gets which rule, and stop


def require_sensible(settings: Config) -> None:
    """Raise `InputError` for values with which no run is possible, before anything is written or removed."""
    network, training, seed = settings.network, settings.training, "a whole number from 0 to 2^63 - 1"
    grid, data_seed = settings.grid, getattr(settings.data, "seed", 0)
    n_subjects, orientation = getattr(settings.data, "n_subjects", 1), settings.data.orientation
    split = settings.split
    channels_fit = network.architecture != "plain" or min(network.channels, default=0) > 0
    sites, raw = getattr(settings.data, "reconstruction", None), getattr(settings.data, "raw", True)
    for name, value, holds, expected in (
        ("seed", settings.seed, 0 <= settings.seed < 2**63, seed),
        ("data.orientation", orientation, orientation in ("header", "as_fitted"), "header or as_fitted"),
        ("target", settings.target, settings.target in TARGETS, f"one of {', '.join(TARGETS)}"),
        ("sides", settings.sides, settings.sides in ("neurological", RADIOLOGICAL), "neurological or radiological"),
        ("on_error", settings.on_error, settings.on_error in ("raise", "skip"), "raise or skip"),
        ("sex", settings.sex, settings.sex in (None, "F", "M"), "F or M"),
        ("prior_years", settings.prior_years, (settings.prior_years or 1) > 0, "more than 0"),
        ("check", settings.check, settings.check in ("quick", "full"), "quick or full"),
        ("n_jobs", settings.n_jobs, settings.n_jobs != 0, "-1 (one per core) or a number of processes"),
        ("data.n_subjects", n_subjects, n_subjects > 0, "1 or more"),
        ("data.reconstruction", sites, sites in (None, "sites"), "sites, or null for that of the run"),
        ("data.raw", raw, raw or not sites, "true, for data.reconstruction=sites needs projections"),
        ("data.seed", data_seed, 0 <= data_seed < 2**63, seed),
        ("grid.spacing", grid.spacing, len(grid.spacing) == 3 and min(grid.spacing) > 0, "three lengths in mm"),
        ("grid.shape", grid.shape, len(grid.shape) == 3 and min(grid.shape) > 0, "three numbers of 1 or more"),
        ("grid.origin", grid.origin, len(grid.origin) == 3, "three places in mm"),
        ("split.kind", split.kind, split.kind in OF_SPLIT, f"one of {', '.join(OF_SPLIT)}"),
        ("split.candidates", split.candidates, split.candidates > 0, "1 or more"),
        ("split.validation", split.validation, 0 < split.validation < 1, "more than 0 and less than 1"),
        ("split.folds", split.folds, split.folds > 1, "2 or more"),
        ("split.fold", split.fold, 0 <= split.fold < split.folds, f"less than the {split.folds} folds, from 0 on"),
        ("split.repeat", split.repeat, split.repeat >= 0, "0 or more"),
        ("network.kernel_size", network.kernel_size, network.kernel_size > 0, "1 or more"),
        ("network.channels", network.channels, channels_fit, "numbers of 1 or more"),
        ("network.hidden", network.hidden, min(network.hidden, default=1) > 0, "numbers of 1 or more"),
        ("network.dropout", network.dropout, 0 <= network.dropout < 1, "0 or more and less than 1"),
        ("training.seed", training.seed, 0 <= training.seed < 2**63, seed),
        ("training.batch_size", training.batch_size, training.batch_size > 0, "1 or more"),
        ("training.learning_rate", training.learning_rate, 0 < training.learning_rate < math.inf, "more than 0"),
        ("training.max_epochs", training.max_epochs, training.max_epochs >= 0, "1 or more, or 0 for training=none"),
        ("training.patience", training.patience, training.patience is None or training.patience > 0, "null, 1 or more"),
    ):
        if not holds:
            raise InputError(f"{name} is {value}, expected {expected}; change {name}=VALUE.")
    describe_network(network)
    describe_split(split)
    _require_weights(network, training)


def _require_weights(network: Network, training: Training) -> None:
    """Raise `InputError` if foreign weights are needed but not given, or given together with what contradicts them."""
    if training.max_epochs == 0 and network.weights is None:
        raise InputError("training=none: expected the weights of a trained network; give network.weights=FILE.")
    if network.weights is None and (network.rename or network.initial):
        raise InputError("network.rename and network.initial apply to network.weights=FILE, which is not given.")
    if not isinstance(network.rename, (dict, type(None))):
        raise InputError(f"network.rename is {network.rename}, expected {{PATTERN:REPLACEMENT}}.")
    if training.max_epochs == 0 and network.centre and network.architecture != "plain":
        raise InputError("training=none: network.centre is the mean of training cases; set it to false.")


def is_radiological(settings: Config) -> bool:
    """Whether pictures show the patient's left on the right."""
    return settings.sides == RADIOLOGICAL


def describe_network(network: Network) -> dict:
    """The arguments of `datxai.model.architectures.build`, except for shape and seed.

    Raises `InputError` for settings of another kind of network.
    """
    is_plain, default = network.architecture == "plain", Network()
    for name in OF_OTHERS if is_plain else OF_PLAIN:
        if getattr(network, name) != getattr(default, name):
            instead = "network=custom and others" if is_plain else "network=nazari2021; this one has network.arguments"
            raise InputError(f"network.{name}: the network {network.architecture} has no such setting, but {instead}.")
    if network.target is not None and network.architecture != "custom":
        raise InputError(f"network.target: the network {network.architecture} has no such setting, but network=custom.")
    if not is_plain and not isinstance(network.arguments, (dict, type(None))):
        raise InputError(f"network.arguments is {network.arguments}, expected names with values, as in {{width:16}}.")
    names = OF_PLAIN if is_plain else ("architecture", "target", "arguments")
    channels = {name: getattr(network, name) for name in ("in_channels", "spatial_dims")}
    changed = any(value != getattr(default, name) for name, value in channels.items())
    return {
        **{name: getattr(network, name) for name in (*names, "see", "centre")},
        **({"image": channels} if changed else {}),
    }


def describe_split(split: Split) -> dict:
    """The settings of a split's kind only; raises `InputError` for settings of another kind."""
    own_settings = OF_SPLIT[split.kind]
    default = Split()
    for name in dict.fromkeys(name for names in OF_SPLIT.values() for name in names):
        if name not in own_settings and getattr(split, name) != getattr(default, name):
            kinds = " or ".join(SPLITS[kind] for kind, names in OF_SPLIT.items() if name in names)
            raise InputError(f"split.{name}: {SPLITS[split.kind]} has no such setting, but {kinds}.")
    return {name: getattr(split, name) for name in own_settings}


def unknown_setting(key: str) -> str:
    """The message for an unknown setting, with a suggestion."""
    names = setting_names()
    namesakes = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    close = difflib.get_close_matches(key, names, 1, 0.75) or namesakes[:1] or difflib.get_close_matches(key, names, 1)
    guess = f"did you mean {close[0]}?" if close else "`datxai --cfg job` shows all."
    return f"there is no setting {key}; {guess}"


def setting_names() -> list[str]:
    """The full names of all settings."""
    return [*_names(Config), *(name for kind in KINDS.values() for name in _names(kind, "data.")), "experiment"]


def _names(kind: Any, place: str = "") -> Iterator[str]:
    for name, inner in get_type_hints(kind).items():
        yield place + name
        if is_dataclass(inner):
            yield from _names(inner, f"{place}{name}.")


def require_name(explanation: str) -> None:
    """Raise `InputError` for a name that is not portable as a folder name, or leads out of the run folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", explanation) or explanation.endswith("."):
        raise InputError(
            f"explanation={explanation}: expected a name of at most 64 letters, digits, '-', '_' and '.' that begins "
            f"with a letter or digit, such as epsilon; change explanation=NAME."
        )


def entry_name(stage: str, explanation: str) -> str:
    """The name of an explanation's stage in manifest.json."""
    return stage if explanation == DEFAULT or stage not in EXPLAINED else f"{stage}/{explanation}"


def describe(group: Any) -> dict:
    """The settings of a group, files as paths, which `datxai.files.hash_content` hashes by their content."""
    settings = asdict(group)
    return settings | {name: Path(settings[name]) for name in FILES if settings.get(name) is not None}


def restore(values: Any, kind: Any = Config) -> Any:
    """The `Config` from the recorded settings of a run (.hydra/config.yaml).

    Keys of another version are left out, and so are the fields of `Data` that are specific to a kind.
    """
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(values, Mapping):
        types = get_type_hints(kind)
        names = [known_field.name for known_field in fields(kind) if known_field.name in values]
        return kind(**{name: restore(values[name], types[name]) for name in names})
    if get_origin(kind) is list and values is not None:
        return [restore(value, get_args(kind)[0]) for value in values]
    return values
