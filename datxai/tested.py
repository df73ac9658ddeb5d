"""What the test of a cohort came to: its cases one by one, and numbers over them that may be handed on without any."""

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

DECADE = 10  # years of a group by age
NETWORK, SIGN, CUTOFF, TREE = CLASSIFIERS = ("cnn", "roi_relevance", "sbr", "cart")


@dataclass(frozen=True, eq=False)
class Tested:
    """The test cases of a cohort, and what a run holds against them: its ``calibration``, and its ``classifiers`` of
    binding ratios, a cutoff and a tree as metrics.json has them; without these two, nothing is said of them."""

    findings: Findings
    calibration: Mapping
    classifiers: Mapping

    @cached_property
    def judged(self) -> list[dict]:
        """Test cases, and those without a label, with whether they are ``uncertain``."""
        cases = [*self.findings.of_set("test"), *self.findings.of_set(UNLABELLED)]
        p = probability([case["margin"] for case in cases], self.calibration["temperature"])
        uncertain = np.abs(p - 0.5) <= self.calibration["half_width"]
        return [{**case, "uncertain": bool(doubt)} for case, doubt in zip(cases, uncertain)]

    @cached_property
    def cases(self) -> list[dict]:
        """The test cases, with what each classifier says of them: a call, and a score."""
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
            {**case, **{name: (int(called[place]), scores[place]) for name, (called, scores) in calls.items()}}
            for place, case in enumerate(cases)
        ]

    def group_of(self, case: Mapping, column: str) -> str:
        """The value of a column of the table of participants, of an age the decade; n/a where it is not known."""
        value = self.findings.people[case["participant_id"]].get(column)
        if column == "age" and value is not None:
            first = DECADE * math.floor(value / DECADE)
            value = f"{first} to {first + DECADE - 1}"
        return "n/a" if value is None else str(value)

    def describe(self, columns: Sequence[str], least: int = 1) -> dict:
        """The test in numbers over its cases, as JSON has them.

        ``shares``: `describe_share` of what holds for some of them; of the labelled ones, if there are any, ``calls``:
        `describe_calls` of each classifier, ``calibration``: `describe_calibration`, and ``groups``: `describe_calls`
        of the network, by ``COLUMN: VALUE``, in groups of ``least`` cases or more.
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
        rest = [case["label"] == case["predicted"] for case in self.cases if not case["uncertain"]]
        fit, labels, margins = self.calibration, *self._gather("label", "margin")
        return {
            "shares": {**shares, "accuracy_of_the_rest": describe_share(rest)},
            "calls": {name: _describe_calls(self.cases, name) for name in CLASSIFIERS if name in self.cases[0]},
            "calibration": describe_calibration(labels, margins, fit["temperature"] if fit["determined"] else None),
            "groups": {
                f"{column}: {value}": _describe_calls(cases, NETWORK)
                for column in columns
                for value, cases in self._part(column).items()
                if len(cases) >= least
            },
        }

    def _gather(self, *keys: str) -> list[list]:
        return [[case[key] for case in self.cases] for key in keys]

    def _part(self, column: str) -> dict[str, list[dict]]:
        """The test cases by the value of a column, in order."""
        parts: dict[str, list[dict]] = {}
        for case in self.cases:
            parts.setdefault(self.group_of(case, column), []).append(case)
        return dict(sorted(parts.items()))


def _describe_calls(cases: Sequence[Mapping], classifier: str) -> dict:
    called, scores = zip(*(case[classifier] for case in cases))
    return describe_calls([case["label"] for case in cases], called, scores)
