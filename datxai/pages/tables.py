"""How numbers and tables read, in figures and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LABEL_NAMES = {0: "normal", 1: "reduced"}
SET_NAMES = {
    "whole": "Whole sample",
    "train": "Training set",
    "validation": "Validation set",
    "test": "Test set",
}
MEASURES = {
    "accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "sensitivity": "Sensitivity",
    "specificity": "Specificity", "ppv": "PPV", "npv": "NPV", "auc": "AUC",
}  # fmt: skip
SEX_NAMES = {"F": "females", "M": "males", None: "sex unknown"}


def format_percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A fraction as "95.8 %" or, with an interval, "95.8 % (92.8 to 97.6)"; "n/a" for None."""
    if value is None:
        return "n/a"
    text = f"{100 * value:.1f} %"
    return text if interval is None else f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def format_cell(value: object) -> str:
    """A table cell: floats with four significant digits, yes and no, "n/a" for None."""
    if value is None or value == "":
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value + 0.0:.4g}".replace("-", "\u2212")  # + 0.0 makes -0.0 plain
    return str(value)


def arrange_table1(rows: Sequence[Mapping]) -> list[list[str]]:
    """Table 1 as Nazari et al. 2022 print it: a header, then a line per set; a column per label and sex.

    Each row holds ``set`` (whole, train, validation, test), ``label``, ``sex`` (F, M or None), ``n``,
    ``age_mean`` and ``age_sd`` in years (None where not known).
    """
    groups = list(dict.fromkeys((row["label"], row["sex"]) for row in rows))
    cells = {(row["set"], row["label"], row["sex"]): _age(row) for row in rows}
    sizes = {name: sum(row["n"] for row in rows if row["set"] == name) for name in SET_NAMES}
    header = ["Age in years", *(f"{LABEL_NAMES[label]}, {SEX_NAMES[sex]}" for label, sex in groups)]
    return [
        header,
        *(
            [f"{title} (n = {sizes[name]})", *(cells[name, *group] for group in groups)]
            for name, title in SET_NAMES.items()
            if sizes[name]
        ),
    ]


def _age(row: Mapping) -> str:
    mean, sd = row["age_mean"], row["age_sd"]
    age = "n/a" if mean is None else f"{mean:.1f}" + (f" \u00b1 {sd:.1f}" if sd is not None else "")
    return f"{age} (n = {row['n']})"
