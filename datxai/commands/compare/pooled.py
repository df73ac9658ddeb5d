"""Several networks combined: an ensemble on the test cases they share, and pooled folds with different test cases."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from datxai.analysis.calibration import choose_uncertain, measure_reliability, measure_uncertain
from datxai.analysis.classification import summarise
from datxai.commands.compare.member import PERSON, Member, find_common

_FOLD_OPTION = re.compile(r"split\.(?:fold|repeat|test)=(?:\[[^]]*\]|[^,]*),?")  # in the name of a sweep's job


def combine(members: Sequence[Member], people: Sequence[tuple]) -> dict | None:
    """The mean of the networks' calibrated probabilities, and two ways to call a case uncertain."""
    if len(members) < 2 or not people:
        return None
    probabilities = np.stack([member.probabilities(people) for member in members])
    mean, votes = probabilities.mean(axis=0), (probabilities > 0.5).sum(axis=0)
    labels = np.array([members[0].cases[person]["label"] for person in people])
    predicted = (mean > 0.5).astype(int)
    uncertain = {"disagree": (votes > 0) & (votes < len(members))}
    validation, _ = find_common(members, "validation")
    half_width = None
    if validation:
        half_width = choose_uncertain(np.mean([member.probabilities(validation) for member in members], axis=0))
        uncertain["interval"] = np.abs(mean - 0.5) <= half_width
    reliability = measure_reliability(mean, labels)
    return {
        "members": len(members),
        "classification": summarise(labels, predicted, mean),
        "ece": reliability["ece"],
        "ece_if_calibrated": reliability["ece_if_calibrated"],
        "brier": float(((mean - labels) ** 2).mean()),
        "interval": None if half_width is None else [0.5 - half_width, 0.5 + half_width],
        "validation_cases": len(validation),
        "uncertain": {name: measure_uncertain(cases, predicted != labels) for name, cases in uncertain.items()},
        "cases": [
            {
                "participant_id": person[0],
                "label": labels[number],
                "predicted": predicted[number],
                "p_reduced": mean[number],
                "votes_reduced": votes[number],
                **{f"uncertain_{name}": bool(is_uncertain[number]) for name, is_uncertain in uncertain.items()},
            }
            for number, person in enumerate(people)
        ],
    }


def pool_folds(members: Sequence[Member]) -> dict[str, dict]:
    """Pool out-of-fold predictions: each case is predicted by the networks that were not trained with it.

    There is one entry for each group of runs that differ only in their test cases and seeds. A case that several of
    them test (repeats) gets the mean of their calibrated probabilities.
    """
    groups: dict[str, list[Member]] = {}
    for member in members:
        if "fold" in member.split or member.split.get("test"):
            groups.setdefault(member.apart_from_fold, []).append(member)
    poolable = [group for group in groups.values() if len(group) > 1]
    pooled = {}
    for number, group in enumerate(poolable, start=1):
        settings = _FOLD_OPTION.sub("", group[0].name).strip(",")
        name = "pooled" if len(poolable) == 1 else f"pooled {settings or number}"
        pooled[name] = _pool(group) | {"remarks": _name_missing_folds(name, group)}
    return pooled


def _pool(group: Sequence[Member]) -> dict:
    tested: dict[tuple, list[tuple[str, float]]] = {}
    for member in group:
        people = sorted(member.of_set("test"), key=str)
        for person, value in zip(people, member.probabilities(people)):
            tested.setdefault(person, []).append((member.name, float(value)))
    people = sorted(tested, key=str)
    labels = np.array([person[PERSON.index("label")] for person in people])
    mean = np.array([np.mean([value for _, value in tested[person]]) for person in people])
    predicted = (mean > 0.5).astype(int)
    accuracies = [member.metrics["classifiers"]["cnn"]["accuracy"] for member in group]
    return {
        "runs": [member.name for member in group],
        "classification": summarise(labels, predicted, mean),
        "accuracy_of_runs": {"mean": float(np.mean(accuracies)), "sd": float(np.std(accuracies, ddof=1))},
        "cases": [
            {
                "participant_id": person[0],
                "label": label,
                "predicted": call,
                "p_reduced": value,
                "runs": " ".join(run for run, _ in tested[person]),
            }
            for person, label, call, value in zip(people, labels, predicted, mean)
        ],
    }


def _name_missing_folds(name: str, group: Sequence[Member]) -> list[str]:
    """A remark if some of the folds have not been evaluated."""
    if "fold" not in group[0].split:
        return []
    evaluated = {(member.split["repeat"], member.split["fold"]) for member in group}
    repeats, folds = sorted({repeat for repeat, _ in evaluated}), range(group[0].split["folds"])
    missing = [
        f"{fold} of repeat {repeat}" if len(repeats) > 1 else str(fold)
        for repeat in repeats
        for fold in folds
        if (repeat, fold) not in evaluated
    ]
    return [f"The folds {', '.join(missing)} of {name} are missing; its cases are of the others."] if missing else []
