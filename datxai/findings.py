"""The results of a finished run; each table and volume is read once, on first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from datxai.analysis.calibration import choose_uncertain, margin_of, probability
from datxai.analysis.classification import FEATURES, follow_tree, tabulate_features
from datxai.analysis.detection import trace_roc
from datxai.analysis.normal_range import NormalRange, fit_ranges
from datxai.analysis.shift import Shift
from datxai.anatomy import Anatomy
from datxai.case import tabulate_measures
from datxai.errors import InputError
from datxai.files import read_arrays
from datxai.run import Run
from datxai.schema import (
    FLAG,
    LABEL,
    NUMBER,
    TEXT,
    WHOLE,
    ByCase,
    Kind,
    one_of,
    read_columns,
    read_document,
)
from datxai.volume import Volume, load, sidecar_path

if TYPE_CHECKING:
    from datxai.cohort.dataset import VolumeStore

GROUPS = ("TN", "FP", "FN", "TP")
UNLABELLED = "unlabelled"  # the set of cases without a label to which a run was applied
SET = one_of("train", "validation", "test", UNLABELLED)
VERDICT = one_of("green", "amber", "red")


def _to_measure(text: str) -> float | bool | None:
    return text == "true" if text in ("true", "false") else NUMBER.or_unknown().convert(text)


MEASURE = Kind("a number, true, false, or n/a", _to_measure)
PREDICTION = {
    "participant_id": TEXT, "set": SET, "label": LABEL.or_unknown(), "predicted": LABEL,
    "p_reduced": NUMBER, "logit_normal": NUMBER, "logit_reduced": NUMBER,
}  # fmt: skip
TABLE1 = {
    "set": TEXT, "label": WHOLE, "sex": TEXT.or_unknown(), "n": WHOLE,
    "age_mean": NUMBER.or_unknown(), "age_sd": NUMBER.or_unknown(),
}  # fmt: skip
METRICS = {"classifiers": dict, "calibration": {"temperature": float, "determined": bool}}
MAP_RECORD = {"method": dict, "ledger": list}
SCAN_RECORD = {"measures": {"mirrored": bool, "quality": dict}}


def _find_group(case: Mapping) -> str | None:
    label, predicted = case["label"], case["predicted"]
    return None if label is None else (("TN", "FP"), ("FN", "TP"))[label][predicted]


@dataclass(frozen=True, eq=False)
class Findings:
    """The results of a run so far. `InputError` for a table that is missing, damaged or lacks its columns.

    ``radiological``: figures show the patient's left on the right.
    """

    run: Run
    radiological: bool = False

    @cached_property
    def cohort(self) -> list[dict]:
        """``participant_id``, ``set`` and ``label`` of every case, available before predictions."""
        rows = read_columns(self.run.split, {"participant_id": TEXT, "set": SET})
        sets = ByCase(self.run.split, rows)
        people = read_columns(self.run.participants, {"participant_id": TEXT, "label": LABEL.or_unknown()})
        return [
            {"participant_id": name, "set": sets[name]["set"], "label": person["label"]}
            for person in people
            for name in [person["participant_id"]]
        ]

    @cached_property
    def predictions(self) -> list[dict]:
        """predictions.tsv: every case with its ``group``, TN, FP, FN or TP (None without a label), and its ``margin``,
        the logit of reduced minus that of normal."""
        return [
            {**row, "group": _find_group(row), "margin": margin_of(row)}
            for row in read_columns(self.run.predictions, PREDICTION)
        ]

    @cached_property
    def tested(self) -> list[dict]:
        """The test cases: predictions, and the measures of their relevance maps."""
        return [case | self.roi_relevance[case["participant_id"]] for case in self.of_set("test")]

    def require_tested(self, needed_by: str) -> None:
        """Raise `InputError` for a run that was applied to a cohort without labels, if a task needs them."""
        if not self.of_set("test"):
            raise InputError(
                f"{self.run.predictions}: no case has a label, and '{needed_by}' needs labelled test cases; give "
                f"labels to the cohort, or choose another run."
            )

    def of_set(self, name: str) -> list[dict]:
        """The predictions of the training, ``validation`` or ``test`` set, or of the `UNLABELLED`."""
        return [case for case in self.predictions if case["set"] == name]

    @property
    def misclassified(self) -> list[dict]:
        """The misclassified test cases."""
        return [case for case in self.tested if case["label"] != case["predicted"]]

    @property
    def groups(self) -> list[str]:
        """TN, FP, FN or TP of each test case."""
        return [case["group"] for case in self.tested]

    @property
    def explained(self) -> list[dict]:
        """The predictions of the cases with a relevance map."""
        return [case for case in self.predictions if self.run.relevance_of(case["participant_id"]).is_file()]

    @cached_property
    def people(self) -> Mapping[str, dict]:
        """participants.tsv by case: ``age`` in years (None if unknown), ``label``, and the rest as text."""
        columns = {"participant_id": TEXT, "label": LABEL.or_unknown()}
        rows = read_columns(self.run.participants, columns, others=TEXT, optional={"age": NUMBER.or_unknown()})
        return ByCase(self.run.participants, rows)

    @cached_property
    def sbr(self) -> Mapping[str, dict]:
        """Specific binding ratios of the patient's own sides, by case. Those of the putamen's halves may be None, and
        are missing in a run of an earlier version."""
        rows = read_columns(self.run.sbr, {"participant_id": TEXT}, others=MEASURE)
        ratios = ByCase(self.run.sbr, rows)
        for name, row in ratios.items():
            ratios[name] = {key: value for key, value in row.items() if key.endswith(("_left", "_right"))}
        return ratios

    @cached_property
    def normals(self) -> list[dict]:
        """The cases labelled normal: ``subject``, ``age`` in years and ``sex`` (None if unknown), and the measures of
        `datxai.case.tabulate_measures`."""
        return [
            {
                "subject": person.get("subject", name),
                "age": person.get("age"),
                "sex": sex if (sex := person.get("sex")) in ("F", "M") else None,
                **tabulate_measures(self.sbr[name]),
            }
            for name, person in self.people.items()
            if person["label"] == 0
        ]

    @cached_property
    def ranges(self) -> dict[str, NormalRange]:
        """The normal range of each measure, from the normal cases."""
        return fit_ranges(self.normals)

    def ranges_without(self, subject: str, names: Iterable[str]) -> dict[str, NormalRange]:
        """Normal ranges of some measures, from the normal cases of other subjects."""
        others = [case for case in self.normals if case["subject"] != subject]
        if len(others) == len(self.normals):
            return self.ranges
        columns = ("age", "sex", *names)
        return fit_ranges([{name: case[name] for name in columns if name in case} for case in others])

    @cached_property
    def features(self) -> np.ndarray:
        """Semi-quantitative features of the test cases, see `tabulate_features`."""
        return tabulate_features([self.sbr[case["participant_id"]] for case in self.tested])

    def roc_of(self, classifier: str) -> dict:
        """The ROC curve of a classifier over the test cases, see `datxai.analysis.detection.trace_roc`."""
        scores = {
            "cnn": lambda: [case["margin"] for case in self.tested],
            "roi_relevance": lambda: [case["putamen_ipsilateral"] for case in self.tested],
            "sbr": lambda: -self.features[:, FEATURES.index("putamen_ipsilateral")],
            "cart": lambda: follow_tree(self.metrics["classifiers"]["cart"]["nodes"], self.features)[1],
        }[classifier]()
        return trace_roc([case["label"] == 1 for case in self.tested], scores)

    @cached_property
    def quality(self) -> Mapping[str, dict]:
        """qc.tsv by scan, including those left out: ``verdict``, its ``reason`` if not green, and measures (None if
        unknown)."""
        columns = {"participant_id": TEXT, "verdict": VERDICT, "reason": TEXT, "similarity": MEASURE}
        return ByCase(self.run.qc, read_columns(self.run.qc, columns, others=MEASURE))

    @cached_property
    def skipped(self) -> list[dict]:
        """skipped.tsv: the scans that were left out, and the ``reason``."""
        columns = {"participant_id": TEXT, "reason": TEXT}
        return read_columns(self.run.skipped, columns, may_be_empty=True)

    @cached_property
    def roi_relevance(self) -> Mapping[str, dict]:
        """roi_relevance.tsv by case: relevance in the ipsilateral putamen, and whether the map is consistent (None if
        unknown)."""
        columns = {"participant_id": TEXT, "putamen_ipsilateral": NUMBER, "consistent": FLAG.or_unknown()}
        rows = ByCase(self.run.roi_relevance, read_columns(self.run.roi_relevance, columns))
        for name, row in rows.items():
            rows[name] = {key: row[key] for key in ("putamen_ipsilateral", "consistent")}
        return rows

    @cached_property
    def map_measures(self) -> list[dict]:
        """roi_relevance.tsv: all measures of the map of each test case (None if unknown)."""
        columns = {"participant_id": TEXT, "group": one_of(*GROUPS).or_unknown()}
        return read_columns(self.run.roi_relevance, columns, others=MEASURE)

    @cached_property
    def table1(self) -> list[dict]:
        """Table 1: age by set, label and sex."""
        return read_columns(self.run.table1, TABLE1, may_be_empty=True)

    @cached_property
    def doubt(self) -> list[dict]:
        """doubt.tsv: whether each test case is misclassified, and scores that predict it (None if unknown)."""
        columns = {"participant_id": TEXT, "misclassified": FLAG}
        return read_columns(self.run.doubt, columns, others=MEASURE, may_be_empty=True)

    @cached_property
    def regions(self) -> list[dict]:
        """regions.tsv: relevance by region of the atlas, with intervals (None if unknown)."""
        return read_columns(self.run.regions, {"region": TEXT, "striatal": FLAG}, others=MEASURE)

    @cached_property
    def training(self) -> list[dict]:
        """model/history.tsv: the results of each training epoch."""
        return read_columns(self.run.model / "history.tsv", {"epoch": WHOLE}, others=MEASURE)

    @cached_property
    def metrics(self) -> dict:
        """metrics.json: classifiers, calibration, detection of errors, peaks."""
        return read_document(self.run.metrics, METRICS)

    @cached_property
    def shift(self) -> Shift | None:
        """shift.safetensors: the measures that compare a scan with the training cases; None for a run of a version that
        did not compute them."""
        path = self.run.shift
        if not path.is_file():
            return None
        try:
            return Shift.unpack(*read_arrays(path))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}: does not hold the measures of the training cases ({error!r}); delete it, and run "
                f"`{self.run.command('evaluate')}`, which makes it again."
            ) from error

    @cached_property
    def unlike(self) -> dict[str, bool]:
        """shift.tsv: whether each held-out case is unlike the training cases; empty if none was judged."""
        columns = {"participant_id": TEXT, "marked": FLAG}
        path = self.run.shift_cases
        rows = read_columns(path, columns, others=TEXT, may_be_empty=True) if path.is_file() else []
        return {row["participant_id"]: row["marked"] for row in rows}

    @cached_property
    def probabilities(self) -> dict[str, float]:
        """The calibrated probability of reduced of every case."""
        calibrated = self.calibrate([case["margin"] for case in self.predictions])
        return dict(zip((case["participant_id"] for case in self.predictions), calibrated.tolist()))

    def calibrate(self, margins: Sequence[float]) -> np.ndarray:
        """The calibrated probability of reduced from margins of logits."""
        return probability(margins, self.metrics["calibration"]["temperature"])

    @cached_property
    def half_width(self) -> float:
        """Half-width of the uncertain range of probabilities around 0.5; that of the applied run, if one was applied,
        and 0 without validation cases."""
        recorded = self.metrics["calibration"].get("half_width")
        if recorded is not None:
            return recorded
        validation = [case["margin"] for case in self.of_set("validation")]
        return choose_uncertain(self.calibrate(validation)) if validation else 0.0

    @cached_property
    def store(self) -> VolumeStore:
        """The preprocessed scans, see `datxai.cohort.dataset`."""
        from datxai.cohort.dataset import open_store

        return open_store(self.run.store)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The atlas used for the evaluation of the run, on its grid."""
        atlas = self.run.entry("evaluate", "report")["config"]["atlas"]
        return Anatomy(
            self.store.grid, atlas["labels"], atlas["names"], cache=self.run.anatomy, radiological=self.radiological
        )

    @cached_property
    def provenance(self) -> dict[str, str]:
        """When the maps were made, by which revision of datxai, and their fingerprint."""
        entry = self.run.entry("explain", "report")
        return {key: entry[key] for key in ("finished", "git_revision", "fingerprint")}

    def map_of(self, case: str) -> Volume:
        """The relevance map of a case."""
        return load(self.run.relevance_of(case), blank=True)

    def record_of_map(self, case: str) -> dict:
        """The record of the relevance map of a case: ``method``, ``seed``, ``sum``, ``ledger``."""
        return read_document(sidecar_path(self.run.relevance_of(case)), MAP_RECORD)

    def measures_of(self, case: str) -> dict:
        """The measures of a scan's preprocessing, see `datxai.case.Imaging.process`."""
        return read_document(sidecar_path(self.run.scan_of(case)), SCAN_RECORD)["measures"]

    def mean_of(self, name: str) -> np.ndarray | None:
        """A mean over test cases, such as ``TP_relevance``, or the ``heat_map``; None if it does not exist."""
        if name not in self._means:
            path = self.run.mean_of(name)
            self._means[name] = load(path, blank=True).data if path.is_file() else None
        return self._means[name]

    @cached_property
    def _means(self) -> dict[str, np.ndarray | None]:
        return {}

    @property
    def images(self) -> dict[str, np.ndarray | None]:
        """Mean image of each group, None for an empty one."""
        return {group: self.mean_of(f"{group}_spect") for group in GROUPS}

    @property
    def maps(self) -> dict[str, np.ndarray | None]:
        """Mean relevance map of each group, None for an empty one, and the ``heat`` map."""
        maps = {group: self.mean_of(f"{group}_relevance") for group in GROUPS}
        return {**maps, "heat": self.mean_of("heat_map")}

    def with_volumes(self, case: Mapping) -> dict:
        """A case with its ``image`` and ``relevance`` map."""
        name = case["participant_id"]
        return {**case, "case_id": name, "image": self.store.volume(name), "relevance": self.map_of(name).data}

    def average_ledger(self, cases: Sequence[str]) -> list[dict]:
        """Relevance by layer, from the output down: means over the relevance maps of ``cases``.

        The entries of each map are divided by the seed of its explanation, so that all maps have the same weight. Empty
        for methods without a ledger.
        """
        totals: dict[str, dict] = {}
        for case in cases:
            record = read_document(sidecar_path(self.run.relevance_of(case)), {"seed": list, "ledger": list})
            start = sum(record["seed"]) or 1.0
            for entry in record["ledger"]:
                row = totals.setdefault(entry["layer"], {name: entry[name] for name in ("layer", "type", "rule")})
                for name, value in entry.items():
                    if isinstance(value, float):
                        row[name] = row.get(name, 0.0) + value / start / len(cases)
        return list(totals.values())
