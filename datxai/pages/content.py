"""What pages are given: a dataclass for each of them. What is left out, or None, is not shown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from datxai.volume import Volume

Picture = str | os.PathLike  # a PNG file


@dataclass(frozen=True, kw_only=True, eq=False)
class MapBeside:
    """Another map of the same decision, by another explanation.

    Attributes
    ----------
    relevance, own_relevance : the map in MNI space and in the scan's own space
    explanation, measures : name to value
    picture : shown in the PDF
    """

    relevance: Volume
    own_relevance: Volume
    explanation: Mapping[str, object]
    measures: Mapping[str, object]
    picture: Picture | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorScan:
    """An earlier scan of the same person.

    Attributes
    ----------
    title : what it is called, and how long before
    volumes : ``spect`` and ``relevance`` in MNI space, on the grid of the scan's
    change : region to what `datxai.analysis.change.measure_change` says; ``source`` is where its limits come from
    """

    title: str
    volumes: Mapping[str, Volume]
    change: Mapping[str, Mapping]
    source: str


@dataclass(frozen=True, kw_only=True, eq=False)
class CasePage:
    """The page, and the PDF, of one scan.

    Attributes
    ----------
    case_id, title, created : text; the title takes the place of one made from ``case_id``
    predicted, p_reduced : what the network says: 0 or 1, softmax output for reduced
    label : 0 or 1, what the case is labelled
    probability : calibrated probability of reduced; None where the calibration could not be determined
    warnings : sentences, shown first
    volumes, own_volumes : ``spect`` and ``relevance`` in MNI space and in the scan's own space; the page then holds a
        viewer. Left and right are the patient's own, else ``sides`` says what stands at low and high x
    beside : name of another explanation to its map, which is shown beside that of ``volumes``
    prior : an earlier scan, shown beside that of ``volumes`` on the same scales; ``picture`` shows both
    outline, brain : bool arrays (X, Y, Z) on the grid of ``volumes``: what the viewer outlines (caudate and putamen,
        and the brain)
    radiological : whether the page begins with the patient's left on the right, and its pictures have it there
    picture : shown where the viewer cannot run, and in the PDF
    sbr : region (``putamen_left`` ...) to specific binding ratio, and what follows from these (None: not known)
    normal_range : region to what `datxai.analysis.normal_range.Expected.describe` says: ``low, median, high`` as
        expected of a normal case (95 % prediction interval), ``z``, ``percentile``; or None. ``normal_range_source`` is
        a sentence that says where it comes from, ``among_normals`` the picture of the ratios among those of normal
        cases, by age
    subject, relevance, explanation, quality, provenance : name to value
    shift : whether the scan is like the training cases, see `datxai.analysis.shift.Shift.judge`; None: not judged
    timings : what was done to seconds
    downloads : label to the name of a file that lies beside the page
    home : the address where the next scan can be given
    ledger : rows: where relevance went, layer by layer
    """

    case_id: str
    title: str | None = None
    created: str | None = None
    predicted: int | None = None
    p_reduced: float | None = None
    label: int | None = None
    probability: float | None = None
    warnings: Sequence[str] = ()
    volumes: Mapping[str, Volume] | None = None
    own_volumes: Mapping[str, Volume] | None = None
    beside: Mapping[str, MapBeside] = field(default_factory=dict)
    prior: PriorScan | None = None
    sides: tuple[str, str] = ("L", "R")
    outline: np.ndarray | None = None
    brain: np.ndarray | None = None
    radiological: bool = False
    picture: Picture | None = None
    sbr: Mapping[str, float | None] = field(default_factory=dict)
    normal_range: Mapping[str, Mapping | None] = field(default_factory=dict)
    normal_range_source: str = ""
    among_normals: Picture | None = None
    subject: Mapping[str, object] = field(default_factory=dict)
    relevance: Mapping[str, object] = field(default_factory=dict)
    explanation: Mapping[str, object] = field(default_factory=dict)
    quality: Mapping[str, object] = field(default_factory=dict)
    shift: Mapping | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    downloads: Mapping[str, str] = field(default_factory=dict)
    home: str | None = None
    ledger: Sequence[Mapping] = ()


@dataclass(frozen=True, kw_only=True)
class LinkedPages:
    """The pages of the cases of a run: their ``folder``, how many they are and how many bytes, and the group of each
    mean map to the address of its page."""

    folder: str
    n: int
    bytes: int
    means: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """The report of a run.

    Attributes
    ----------
    title, created, data : text; ``data`` says where the scans come from
    explanation : the name of the run's explanation that the report is of
    metrics : what metrics.json holds: ``classifiers`` (name to `classification.summarise`, with ``cutoff`` or
        ``tree``), ``peaks``, ``heat_map_peak``, ``mean_map_correlation``, ``target``, ``attribution``, ``composite``,
        ``calibration`` (of `calibration.calibrate`), ``shift`` (of `shift.Shift.summarise`)
    figures : ``fig3, fig3_all_slices, fig4, fig5, regions, detection, cart, training, sbr, reliability`` and the first
        contact sheet, ``sheet``
    cases : a row for each scan with what is in `report.COLUMNS` (None: not known), ``group`` (TN, FP, FN, TP or None),
        ``flags`` (a list of those in `report.FLAGS`) and ``page``, the address of its page, or None
    pages : where the pages of the cases are
    quality : rows with ``participant_id``, ``verdict`` (green, amber, red), ``reason``
    table1, ledger : rows
    misclassified, skipped : rows; an empty list says that there was none
    external : the address of the page that sets the cohort beside that of the run which judged it
    radiological : whether the figures have the patient's left on the right
    config, manifest : the resolved configuration as text; stage to its entry in manifest.json
    """

    title: str | None = None
    created: str | None = None
    data: str | None = None
    explanation: str | None = None
    metrics: Mapping = field(default_factory=dict)
    figures: Mapping[str, Picture] = field(default_factory=dict)
    cases: Sequence[Mapping] = ()
    pages: LinkedPages | None = None
    quality: Sequence[Mapping] = ()
    table1: Sequence[Mapping] = ()
    misclassified: Sequence[Mapping] | None = None
    skipped: Sequence[Mapping] | None = None
    ledger: Sequence[Mapping] = ()
    external: str | None = None
    radiological: bool = False
    config: str | None = None
    manifest: Mapping[str, Mapping] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExternalPage:
    """The page of a cohort that a run has been applied to, beside the run's own test cases.

    Attributes
    ----------
    created, data : text; ``data`` says what the cohort is
    run : name of the run that is applied; ``applied``: name to value, what identifies it
    report, theirs : the addresses of the report of the cohort, and of that of the run; None for a bundle
    facts : what can be said without labels: name to text
    remarks : sentences that come before all numbers
    rows : of `datxai.analysis.cohorts`, with ``group`` and ``classifier``
    half_width, temperature : of the run that is applied
    figure : the picture of accuracy, sensitivity and specificity by group; None without labels
    """

    created: str
    data: str
    run: str
    applied: Mapping[str, object]
    report: str
    theirs: str | None
    facts: Mapping[str, object]
    remarks: Sequence[str] = ()
    rows: Sequence[Mapping] = ()
    half_width: float
    temperature: float
    figure: Picture | None = None


@dataclass(frozen=True, kw_only=True)
class MethodsPage:
    """The page that shows ways to explain side by side.

    Attributes
    ----------
    created : text
    lines : table of `datxai.pages.benchmark.tabulate`
    cases : rows of cases.tsv, each with the picture ``figure`` of its maps
    ranks : the picture of the ranks
    methods : settings of the methods, as text
    meanings : measure to a sentence that says what it is
    """

    created: str
    lines: Sequence[Sequence[str]]
    cases: Sequence[Mapping]
    ranks: Picture
    methods: str
    meanings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a bundle says of the model that it holds.

    Attributes
    ----------
    data : where the scans of the cohort came from, a word
    table1 : rows of Table 1; ``age_mean`` is None for groups too small to tell
    left_out : how many scans could not be used
    split : how the cases were divided, in words
    classifiers : name to `classification.summarise`, of the test set
    calibration : ``temperature, determined, n``
    peaks : ``n, inside`` of the maps' peaks; ``inconsistent`` how many maps were; ``mean_map_correlation`` or None
    rounding : ``cases, logit, map``: the largest differences that the precision makes; None in float32
    groups : TN and TP to the number of test cases behind the mean map; ``least``: how many there have to be
    mean_scan_of : the number of training cases behind the mean scan, None where the network has none
    settings : group of settings to name and value
    members : name to bytes; ``made_by`` : package to version, and what identifies the run
    """

    name: str
    data: str
    table1: Sequence[Mapping]
    left_out: int
    split: str
    classifiers: Mapping[str, Mapping]
    calibration: Mapping
    peaks: Mapping
    inconsistent: int
    mean_map_correlation: float | None
    precision: str
    rounding: Mapping | None
    parameters: int
    groups: Mapping[str, int]
    least: int
    mean_scan_of: int | None
    settings: Mapping[str, Mapping[str, object]]
    members: Mapping[str, int]
    made_by: Mapping[str, object]
