"""What a run has found so far, read back from its tables with numbers as numbers."""

from __future__ import annotations

from datxai.files import read_json, read_table
from datxai.run import Run
from datxai.volume import sidecar_path

GROUPS = ("TN", "FP", "FN", "TP")


def read_cases(run: Run) -> list[dict]:
    """``participant_id``, ``set`` and ``label`` of every case of the cohort."""
    sets = {row["participant_id"]: row["set"] for row in read_table(run.split)}
    return [
        {"participant_id": row["participant_id"], "set": sets[row["participant_id"]], "label": int(row["label"])}
        for row in read_table(run.participants)
    ]


def read_predictions(run: Run) -> list[dict]:
    """predictions.tsv, each case with its ``group``: TN, FP, FN or TP."""
    rows = []
    for row in read_table(run.predictions):
        label, predicted = int(row["label"]), int(row["predicted"])
        logits = {name: float(row[name]) for name in ("p_reduced", "logit_normal", "logit_reduced")}
        group = (("TN", "FP"), ("FN", "TP"))[label][predicted]
        rows.append({**row, "label": label, "predicted": predicted, **logits, "group": group})
    return rows


def read_sbr(run: Run) -> dict[str, dict]:
    """Specific binding ratios of the patient's own sides, by case."""
    return {
        row["participant_id"]: {name: float(row[name]) for name in row if name.endswith(("_left", "_right"))}
        for row in read_table(run.sbr)
    }


def read_normals(run: Run) -> list[dict]:
    """The cases labelled normal: ``subject``, ``age`` in years (None: not known), and their binding ratios."""
    ratios = read_sbr(run)
    return [
        {
            "subject": row.get("subject", row["participant_id"]),
            "age": None if row.get("age", "n/a") == "n/a" else float(row["age"]),
            **ratios[row["participant_id"]],
        }
        for row in read_table(run.participants)
        if row["label"] == "0"
    ]


def read_ledger(run: Run, cases: list[str]) -> list[dict]:
    """Where relevance went, layer by layer from the output down: means over the relevance maps of ``cases``.

    Each map's entries are taken relative to what its explanation started with, so that maps weigh the same. Empty
    for methods without a ledger.
    """
    totals: dict[str, dict] = {}
    for case in cases:
        record = read_json(sidecar_path(run.relevance_of(case)))
        start = sum(record["seed"]) or 1.0
        for entry in record["ledger"]:
            row = totals.setdefault(entry["layer"], {name: entry[name] for name in ("layer", "type", "rule")})
            for name, value in entry.items():
                if isinstance(value, float):
                    row[name] = row.get(name, 0.0) + value / start / len(cases)
    return list(totals.values())


def read_roi_relevance(run: Run) -> dict[str, dict]:
    """Relevance in the ipsilateral putamen, and whether the map is consistent (None: not known), by case."""
    truth = {"true": True, "false": False}
    return {
        row["participant_id"]: {
            "putamen_ipsilateral": float(row["putamen_ipsilateral"]),
            "consistent": truth.get(row["consistent"]),
        }
        for row in read_table(run.roi_relevance)
    }


def read_table1(run: Run) -> list[dict]:
    """Table 1: age by set, label and sex."""
    numbers = {"label": int, "n": int, "age_mean": float, "age_sd": float, "set": str, "sex": str}
    return [
        {name: None if row[name] == "n/a" else convert(row[name]) for name, convert in numbers.items()}
        for row in read_table(run.table1)
    ]


def read_doubt(run: Run) -> list[dict]:
    """doubt.tsv: whether each test case is misclassified, and the scores that speak for it (None: not known)."""
    return [_to_numbers(row, text=("participant_id",)) for row in read_table(run.doubt)]


def read_regions(run: Run) -> list[dict]:
    """regions.tsv: relevance by region of the atlas, with intervals (None: not known)."""
    return [_to_numbers(row, text=("region",)) for row in read_table(run.regions)]


def read_quality(run: Run) -> list[dict]:
    """qc.tsv: ``verdict`` of each scan, ``reason`` for one that is not green, measures (None: not known)."""
    return [_to_numbers(row, text=("participant_id", "verdict", "reason")) for row in read_table(run.qc)]


def _to_numbers(row: dict[str, str], text: tuple[str, ...]) -> dict:
    words = {"true": True, "false": False, "n/a": None}
    return {
        name: value if name in text else words[value] if value in words else float(value) for name, value in row.items()
    }
