"""A finished run, read back: what it says of its cases, each table and volume read when it is first asked for, once."""

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
UNLABELLED = "unlabelled"  # the set of the cases that a run was applied to, and of which nobody says what they are
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
    """What a run has found so far. A table that is missing, damaged or not of its columns is an `InputError`.

    ``radiological``: figures have the patient's left on the right.
    """

    run: Run
    radiological: bool = False

    @cached_property
    def cohort(self) -> list[dict]:
        """``participant_id``, ``set`` and ``label`` of every case, before anything is predicted."""
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
        the logit of reduced less that of normal."""
        return [
            {**row, "group": _find_group(row), "margin": margin_of(row)}
            for row in read_columns(self.run.predictions, PREDICTION)
        ]

    @cached_property
    def tested(self) -> list[dict]:
        """The test cases: predictions, and what was measured in their relevance maps."""
        return [case | self.roi_relevance[case["participant_id"]] for case in self.of_set("test")]

    def require_tested(self, needed_by: str) -> None:
        """Refuse a run that was applied to a cohort without labels, for what is about them (`InputError`)."""
        if not self.of_set("test"):
            raise InputError(
                f"{self.run.predictions}: no case has a label, and '{needed_by}' is about labelled test cases; give "
                f"labels to the cohort, or choose another run."
            )

    def of_set(self, name: str) -> list[dict]:
        """The predictions of the training, ``validation`` or ``test`` set, or of the `UNLABELLED`."""
        return [case for case in self.predictions if case["set"] == name]

    @property
    def misclassified(self) -> list[dict]:
        """The test cases that are."""
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
        """participants.tsv by case: ``age`` in years (None: not known), ``label``, and the rest as text."""
        columns = {"participant_id": TEXT, "label": LABEL.or_unknown()}
        rows = read_columns(self.run.participants, columns, others=TEXT, optional={"age": NUMBER.or_unknown()})
        return ByCase(self.run.participants, rows)

    @cached_property
    def sbr(self) -> Mapping[str, dict]:
        """Specific binding ratios of the patient's own sides, by case; those of the putamen's halves may be None, and
        are not in a run of an earlier version."""
        rows = read_columns(self.run.sbr, {"participant_id": TEXT}, others=MEASURE)
        ratios = ByCase(self.run.sbr, rows)
        for name, row in ratios.items():
            ratios[name] = {key: value for key, value in row.items() if key.endswith(("_left", "_right"))}
        return ratios

    @cached_property
    def normals(self) -> list[dict]:
        """The cases labelled normal: ``subject``, ``age`` in years and ``sex`` (None: not known), and what is measured,
        see `datxai.case.tabulate_measures`."""
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
        """What the normal cases let expect of each measure."""
        return fit_ranges(self.normals)

    def ranges_without(self, subject: str, names: Iterable[str]) -> dict[str, NormalRange]:
        """The same for some measures, of the normal cases of other people."""
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
        """qc.tsv by scan, those that were left out too: ``verdict``, ``reason`` for one that is not green, measures
        (None: not known)."""
        columns = {"participant_id": TEXT, "verdict": VERDICT, "reason": TEXT, "similarity": MEASURE}
        return ByCase(self.run.qc, read_columns(self.run.qc, columns, others=MEASURE))

    @cached_property
    def skipped(self) -> list[dict]:
        """skipped.tsv: the scans that were left out, and the ``reason``."""
        columns = {"participant_id": TEXT, "reason": TEXT}
        return read_columns(self.run.skipped, columns, may_be_empty=True)

    @cached_property
    def roi_relevance(self) -> Mapping[str, dict]:
        """roi_relevance.tsv by case: relevance in the ipsilateral putamen, and whether the map is consistent (None: not
        known)."""
        columns = {"participant_id": TEXT, "putamen_ipsilateral": NUMBER, "consistent": FLAG.or_unknown()}
        rows = ByCase(self.run.roi_relevance, read_columns(self.run.roi_relevance, columns))
        for name, row in rows.items():
            rows[name] = {key: row[key] for key in ("putamen_ipsilateral", "consistent")}
        return rows

    @cached_property
    def map_measures(self) -> list[dict]:
        """roi_relevance.tsv: all that was measured in the map of each test case (None: not known)."""
        columns = {"participant_id": TEXT, "group": one_of(*GROUPS).or_unknown()}
        return read_columns(self.run.roi_relevance, columns, others=MEASURE)

    @cached_property
    def table1(self) -> list[dict]:
        """Table 1: age by set, label and sex."""
        return read_columns(self.run.table1, TABLE1, may_be_empty=True)

    @cached_property
    def doubt(self) -> list[dict]:
        """doubt.tsv: whether each test case is misclassified, and the scores that speak for it (None: not known)."""
        columns = {"participant_id": TEXT, "misclassified": FLAG}
        return read_columns(self.run.doubt, columns, others=MEASURE, may_be_empty=True)

    @cached_property
    def regions(self) -> list[dict]:
        """regions.tsv: relevance by region of the atlas, with intervals (None: not known)."""
        return read_columns(self.run.regions, {"region": TEXT, "striatal": FLAG}, others=MEASURE)

    @cached_property
    def training(self) -> list[dict]:
        """model/history.tsv: what each epoch of training came to."""
        return read_columns(self.run.model / "history.tsv", {"epoch": WHOLE}, others=MEASURE)

    @cached_property
    def metrics(self) -> dict:
        """metrics.json: classifiers, calibration, detection of errors, peaks."""
        return read_document(self.run.metrics, METRICS)

    @cached_property
    def shift(self) -> Shift | None:
        """shift.safetensors: what a scan is held against to tell whether it is like the training cases; None for runs
        of versions that did not look."""
        path = self.run.shift
        if not path.is_file():
            return None
        try:
            return Shift.unpack(*read_arrays(path))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}: does not hold what scans are held against ({error!r}); delete it, and run "
                f"`{self.run.command('evaluate')}`, which makes it again."
            ) from error

    @cached_property
    def unlike(self) -> dict[str, bool]:
        """shift.tsv: whether each held-out case is unlike the training cases; empty where nothing is judged."""
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
        """Half the width of what is called uncertain about 0.5; 0 where there is no validation case, and that of the
        run that was applied where one was."""
        known = self.metrics["calibration"].get("half_width")
        if known is not None:
            return known
        validation = [case["margin"] for case in self.of_set("validation")]
        return choose_uncertain(self.calibrate(validation)) if validation else 0.0

    @cached_property
    def store(self) -> VolumeStore:
        """The preprocessed scans, see `datxai.cohort.dataset`."""
        from datxai.cohort.dataset import open_store

        return open_store(self.run.store)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The atlas that the run was evaluated with, on its grid."""
        atlas = self.run.entry("evaluate", "report")["config"]["atlas"]
        return Anatomy(
            self.store.grid, atlas["labels"], atlas["names"], cache=self.run.anatomy, radiological=self.radiological
        )

    def map_of(self, case: str) -> Volume:
        """The relevance map of a case."""
        return load(self.run.relevance_of(case), blank=True)

    def record_of_map(self, case: str) -> dict:
        """How the relevance map of a case was made: ``method``, ``seed``, ``sum``, ``ledger``."""
        return read_document(sidecar_path(self.run.relevance_of(case)), MAP_RECORD)

    def measures_of(self, case: str) -> dict:
        """What was measured when a scan was preprocessed, see `datxai.case.Imaging.process`."""
        return read_document(sidecar_path(self.run.scan_of(case)), SCAN_RECORD)["measures"]

    def mean_of(self, name: str) -> np.ndarray | None:
        """A mean over test cases, such as ``TP_relevance``, or the ``heat_map``; None where there is none."""
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
        """Where relevance went, layer by layer from the output down: means over the relevance maps of ``cases``.

        Each map's entries are taken relative to what its explanation started with, so that maps weigh the same. Empty
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
