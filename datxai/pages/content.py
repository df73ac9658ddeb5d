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
    """

    relevance: Volume
    own_relevance: Volume
    explanation: Mapping[str, object]
    measures: Mapping[str, object]


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
    outline : bool array (X, Y, Z) on the grid of ``volumes``: what the viewer outlines (caudate and putamen)
    picture : shown where the viewer cannot run, and in the PDF
    sbr : region (``putamen_left`` ...) to specific binding ratio
    normal_range : region to ``{"low", "median", "high"}`` as expected of a normal case (95 % prediction interval), or
        None; ``normal_range_source`` is a sentence that says where it comes from
    subject, relevance, explanation, quality, provenance : name to value
    timings : what was done to seconds
    downloads : label to the name of a file that lies beside the page
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
    sides: tuple[str, str] = ("L", "R")
    outline: np.ndarray | None = None
    picture: Picture | None = None
    sbr: Mapping[str, float] = field(default_factory=dict)
    normal_range: Mapping[str, Mapping[str, float] | None] = field(default_factory=dict)
    normal_range_source: str = ""
    subject: Mapping[str, object] = field(default_factory=dict)
    relevance: Mapping[str, object] = field(default_factory=dict)
    explanation: Mapping[str, object] = field(default_factory=dict)
    quality: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    downloads: Mapping[str, str] = field(default_factory=dict)
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
        ``calibration`` (of `calibration.calibrate`)
    figures : ``fig3, fig3_all_slices, fig4, fig5, regions, detection, cart, training, sbr, reliability`` and the first
        contact sheet, ``sheet``
    cases : a row for each scan with what is in `report.COLUMNS` (None: not known), ``group`` (TN, FP, FN, TP or None),
        ``flags`` (a list of those in `report.FLAGS`) and ``page``, the address of its page, or None
    pages : where the pages of the cases are
    quality : rows with ``participant_id``, ``verdict`` (green, amber, red), ``reason``
    table1, ledger : rows
    misclassified, skipped : rows; an empty list says that there was none
    external : the address of the page that sets the cohort beside that of the run which judged it
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
    config: str | None = None
    manifest: Mapping[str, Mapping] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExternalPage:
    """The page of a cohort that a run has been applied to, beside the run's own test cases.

    Attributes
    ----------
    created, data : text; ``data`` says what the cohort is
    run : name of the run that is applied; ``applied``: name to value, what identifies it
    report, theirs : the addresses of the report of the cohort, and of that of the run
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
    theirs: str
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
    """

    created: str
    lines: Sequence[Sequence[str]]
    cases: Sequence[Mapping]
    ranks: Picture
    methods: str
