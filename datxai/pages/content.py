"""The content of each page as a dataclass; fields that are left out or None are not shown."""

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
    title : its name, and how long before the scan it was made
    volumes : ``spect`` and ``relevance`` in MNI space, on the same grid as those of the scan
    change : region to the result of `datxai.analysis.change.measure_change`; ``source`` says where its limits come from
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
    case_id, title, created : text; ``title`` replaces the default one, made from ``case_id``
    predicted, p_reduced : output of the network: class 0 or 1, softmax output for reduced
    label : 0 or 1
    probability : calibrated probability of reduced; None if the calibration could not be determined
    warnings : sentences, shown first
    volumes, own_volumes : ``spect`` and ``relevance`` in MNI space and in the scan's own space, for the viewer
    sides : letters at low and high x; by default the patient's left and right
    beside : name of another explanation to its map, which is shown next to that of ``volumes``
    prior : an earlier scan, shown next to ``volumes`` on the same scales; ``picture`` shows both
    outline, brain : bool arrays (X, Y, Z) on the grid of ``volumes``, whose borders the viewer draws (caudate and
        putamen; brain)
    radiological : whether the viewer starts with the patient's left on the right, as in the pictures
    picture : shown where the viewer cannot run, and in the PDF
    sbr : region (``putamen_left`` ...) to specific binding ratio, and measures derived from these (None: unknown)
    normal_range : region to the result of `datxai.analysis.normal_range.Expected.describe`: ``low, median, high`` of
        the 95 % prediction interval of normal cases, ``z``, ``percentile``; or None. ``normal_range_source`` is a
        sentence on its origin, ``among_normals`` a picture of the ratios among those of normal cases, by age
    subject, relevance, explanation, quality, provenance : name to value
    shift : whether the scan is like the training cases, see `datxai.analysis.shift.Shift.judge`; None: not judged
    timings : step to seconds
    downloads : label to the name of a file in the page's folder
    home : address of the page for the next scan
    ledger : rows of the relevance ledger, layer by layer
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
    """The case pages of a run: their ``folder``, number ``n`` and size in ``bytes``; ``means`` maps the group of each
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
    explanation : name of the explanation that the report shows
    metrics : content of metrics.json: ``classifiers`` (name to `classification.summarise`, with ``cutoff`` or
        ``tree``), ``peaks``, ``heat_map_peak``, ``mean_map_correlation``, ``target``, ``attribution``, ``composite``,
        ``calibration`` (of `calibration.calibrate`), ``shift`` (of `shift.Shift.summarise`)
    figures : ``fig3, fig3_all_slices, fig4, fig5, regions, detection, cart, training, sbr, reliability`` and the first
        contact sheet, ``sheet``
    cases : a row for each scan with the columns `report.COLUMNS` (None: unknown), ``group`` (TN, FP, FN, TP or None),
        ``flags`` (a list of keys of `report.FLAGS`) and ``page``, the address of its page, or None
    pages : the case pages
    quality : rows with ``participant_id``, ``verdict`` (green, amber, red), ``reason``
    table1, ledger : rows
    misclassified, skipped : rows; an empty list is shown as "none", None not at all
    external : address of the page that compares the cohort with that of the run that is applied
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
    """The page that compares a cohort with the test cases of the run that was applied to it.

    Attributes
    ----------
    created, data : text; ``data`` says what the cohort is
    run : name of the run that is applied; ``applied``: name to value, which identify it
    report, theirs : addresses of the cohort's report and of that of the run that is applied (None for a bundle)
    facts : results that need no labels: name to text
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
    """The page that compares explanation methods.

    Attributes
    ----------
    created : text
    lines : table of `datxai.pages.benchmark.tabulate`
    cases : rows of cases.tsv, each with the picture ``figure`` of its maps
    ranks : the picture of the ranks
    methods : settings of the methods, as text
    meanings : measure to a sentence that defines it
    """

    created: str
    lines: Sequence[Sequence[str]]
    cases: Sequence[Mapping]
    ranks: Picture
    methods: str
    meanings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Content of the model card of a bundle.

    Attributes
    ----------
    data : where the scans of the cohort came from, in a few words
    table1 : rows of Table 1; ``age_mean`` is None for groups too small to publish it
    left_out : how many scans could not be used
    split : how the cases were divided, in words
    classifiers : name to `classification.summarise`, of the test set
    calibration : ``temperature, determined, n``
    peaks : ``n, inside`` of the maps' peaks; ``inconsistent``: number of inconsistent maps
    rounding : ``cases, logit, map, decisions``: the largest differences due to rounding; None in float32
    groups : TN and TP to the number of test cases in the mean map; ``least``: the required number
    mean_scan_of : number of training cases in the mean scan; None if the network has none
    settings : group of settings to name and value
    members : name to bytes; ``made_by`` : package to version, and the fingerprint of the run
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
