"""Test results of a cohort: its cases one by one, and statistics over them that can be shared without the cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datxai.analysis.calibration import probability
from datxai.analysis.classification import follow_tree, tabulate_features
from datxai.analysis.cohorts import describe_calibration, describe_calls, describe_share
from datxai.findings import UNLABELLED, Findings

DECADE = 10  # years in an age group
NETWORK, SIGN, CUTOFF, TREE = CLASSIFIERS = ("cnn", "roi_relevance", "sbr", "cart")


@dataclass(frozen=True, eq=False)
class Tested:
    """The test cases of a cohort as judged by a run, with its ``calibration`` and ``classifiers`` of binding ratios.

    ``classifiers`` holds cutoff and tree as in metrics.json; one that is missing makes no calls."""

    findings: Findings
    calibration: Mapping
    classifiers: Mapping

    @cached_property
    def judged(self) -> list[dict]:
        """Test cases and cases without a label, each with whether it is ``uncertain``."""
        cases = [*self.findings.of_set("test"), *self.findings.of_set(UNLABELLED)]
        p = probability([case["margin"] for case in cases], self.calibration["temperature"])
        uncertain = np.abs(p - 0.5) <= self.calibration["half_width"]
        return [{**case, "uncertain": bool(doubt)} for case, doubt in zip(cases, uncertain)]

    @cached_property
    def cases(self) -> list[dict]:
        """The test cases with the call and the score of each classifier."""
        cases = [case for case in self.judged if case["set"] == "test"]
        names = [case["participant_id"] for case in cases]
        features = tabulate_features([self.findings.sbr[name] for name in names])
        relevance = np.array([self.findings.roi_relevance[name]["putamen_ipsilateral"] for name in names])
        calls = {
            NETWORK: ([case["predicted"] for case in cases], [case["margin"] for case in cases]),
            SIGN: (relevance > 0, relevance),
        }
        if CUTOFF in self.classifiers:
            calls[CUTOFF] = (features[:, 0] < self.classifiers[CUTOFF]["cutoff"], -features[:, 0])
        if TREE in self.classifiers:
            calls[TREE] = follow_tree(self.classifiers[TREE]["nodes"], features)
        return [
            {**case, **{name: (int(called[index]), scores[index]) for name, (called, scores) in calls.items()}}
            for index, case in enumerate(cases)
        ]

    def group_of(self, case: Mapping, column: str) -> str:
        """The value of a column of the participants' table, for age the decade; n/a if unknown."""
        value = self.findings.people[case["participant_id"]].get(column)
        if column == "age" and value is not None:
            first = DECADE * math.floor(value / DECADE)
            value = f"{first} to {first + DECADE - 1}"
        return "n/a" if value is None else str(value)

    def describe(self, columns: Sequence[str], least: int = 1) -> dict:
        """Statistics over the test cases, as plain values for JSON.

        ``shares``: `describe_share` of binary properties. If there are labelled cases, also ``calls``:
        `describe_calls` of each classifier; ``calibration``: `describe_calibration`; and ``groups``: `describe_calls`
        of the network, by ``COLUMN: VALUE``, for groups of at least ``least`` cases.
        """
        shares = {
            "called_reduced": describe_share([bool(case["predicted"]) for case in self.judged]),
            "uncertain": describe_share([case["uncertain"] for case in self.judged]),
        }
        names, unlike = [case["participant_id"] for case in self.judged], self.findings.unlike
        if unlike.keys() >= {*names}:
            shares["unlike_training"] = describe_share([unlike[name] for name in names])
        if not self.cases:
            return {"shares": shares, "calls": {}, "calibration": {}, "groups": {}}
        is_right = [case["label"] == case["predicted"] for case in self.cases if not case["uncertain"]]
        fit, labels, margins = self.calibration, *self._gather("label", "margin")
        return {
            "shares": {**shares, "accuracy_of_the_rest": describe_share(is_right)},
            "calls": {name: _describe_calls(self.cases, name) for name in CLASSIFIERS if name in self.cases[0]},
            "calibration": describe_calibration(labels, margins, fit["temperature"] if fit["determined"] else None),
            "groups": {
                f"{column}: {value}": _describe_calls(cases, NETWORK)
                for column in columns
                for value, cases in self._group_by(column).items()
                if len(cases) >= least
            },
        }

    def _gather(self, *keys: str) -> list[list]:
        return [[case[key] for case in self.cases] for key in keys]

    def _group_by(self, column: str) -> dict[str, list[dict]]:
        """The test cases by the value of a column, sorted by value."""
        groups: dict[str, list[dict]] = {}
        for case in self.cases:
            groups.setdefault(self.group_of(case, column), []).append(case)
        return dict(sorted(groups.items()))


def _describe_calls(cases: Sequence[Mapping], classifier: str) -> dict:
    called, scores = zip(*(case[classifier] for case in cases))
    return describe_calls([case["label"] for case in cases], called, scores)
