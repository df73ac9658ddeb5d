"""Formatting of numbers and tables in figures and reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

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
UNITLESS = {"auc"} | {
    f"{name}_{kind}" for name in ("brier", "log_loss", "ece") for kind in ("raw", "scaled")
}  # measures that are not shares
NAMES = {  # of measures and columns whose name alone is not clear
    "participant_id": "scan", "putamen_ipsilateral": "putamen ipsilateral", "p_reduced": "softmax output for reduced",
    "probability": "probability of reduced", "likeness_to_mean_TN": "correlation with the mean map of true negatives",
    "likeness_to_mean_TP": "correlation with the mean map of true positives", "consistent": "map consistent",
    "similarity": "correlation with the template", "overlap": "overlap with the template's head",
    "drift_mm": "drift of a further fit, mm", "determinant": "volume of the head over the template's",
    "zoom_min": "smallest zoom of the head", "zoom_max": "largest zoom of the head",
    "rotation_deg": "rotation of the head, \u00b0", "shear": "shear of the head",
    "coverage": "part of the brain in the field of view", "reference": "reference value over the brain's mean",
    "contrast": "largest binding ratio", "wrapped_cm2": "area that exceeds its type, cm\u00b2",
    "plateau_ml": "volume cut off at the largest value, ml", "levels": "levels of grey up to the brain's",
    "reference_value": "reference value, as stored", "mirrored": "mirrored for the network",
    "caudate_putamen_ratio": "caudate / putamen",
    "caudate_putamen_ratio_left": "caudate / putamen, left", "caudate_putamen_ratio_right": "caudate / putamen, right",
    "putamen_asymmetry": "putaminal asymmetry, right \u2212 left, %", "git_revision": "revision",
    "folder": "run",
}  # fmt: skip
PARTS = re.compile(  # words in the names of parcels
    "caudal|rostral|anterior|posterior|medial|lateral|superior|inferior|middle|transverse|isthmus|pars|frontal|temporal|"
    "parietal|occipital|orbitofrontal|cingulate|pole|opercularis|orbitalis|triangularis"
)
PARCELS = {"bankssts": "banks of the superior temporal sulcus"}
SEX_NAMES = {"F": "females", "M": "males", None: "sex unknown"}


def format_percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A fraction as "95.8 %" or, with an interval, "95.8 % (92.8 to 97.6)"; "n/a" for None."""
    if value is None:
        return "n/a"
    text = f"{100 * value:.1f} %".replace("-", "\u2212")
    return text if interval is None else f"{text} ({format_interval('accuracy', interval)})"


def format_measure(name: str, value: float | None, interval: Sequence[float] | None = None) -> str:
    """A measure of `MEASURES` with its interval: shares in percent, the `UNITLESS`, such as the AUC, as "0.984"."""
    if value is None or name not in UNITLESS:
        return format_percent(value, interval)
    text = f"{value:.3f}".replace("-", "\u2212")
    return text if interval is None else f"{text} ({format_interval(name, interval)})"


def format_interval(name: str, interval: Sequence[float]) -> str:
    """The limits of the interval of a measure, in its unit."""
    low, high = (f"{end:.3f}" if name in UNITLESS else f"{100 * end:.1f}" for end in interval)
    return f"{low} to {high}".replace("-", "\u2212")


def format_probability(value: float | None) -> str:
    """A probability with three decimals, never 0.000 or 1.000; "n/a" for None."""
    if value is None:
        return "n/a"
    return "< 0.001" if value < 0.0005 else "> 0.999" if value > 0.9995 else f"{value:.3f}"


def with_decimals(n: int) -> Callable[[float], str]:
    """A function that formats a number with ``n`` decimals."""
    return lambda value: f"{value:.{n}f}".replace("-", "\u2212")


def format_number(value: float) -> str:
    """A number with three significant digits; below a thousandth as "\u22124.36e\u22124"."""
    digits = f"{value:.3g}"
    rounded = float(digits)
    if rounded and abs(rounded) < 1e-3:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{mantissa}e{int(power)}".replace("-", "\u2212")
    return (digits if abs(rounded) < 1000 else f"{value:.0f}").replace("-", "\u2212") if rounded else "0"


def format_cell(value: object) -> str:
    """A table cell: `format_number` for floats, yes or no for bools, "n/a" for None."""
    if value is None or value == "":
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_number(value) if isinstance(value, float) else str(value)


def name_in_words(name: str) -> str:
    """The readable name of a measure, a column or an atlas region, such as "medial orbitofrontal left"."""
    return NAMES.get(name) or " ".join(_split_parcel(part) for part in name.split("_"))


def _split_parcel(word: str) -> str:
    """The name of a parcel of Desikan and Killiany, written as one word, split into its parts."""
    return " ".join(PARTS.findall(word)) if re.fullmatch(f"(?:{PARTS.pattern})+", word) else PARCELS.get(word, word)


def describe_output(target: object, predicted: int | None) -> str:
    """The output that a map of this target explains."""
    called = "the class called" if predicted is None else LABEL_NAMES[predicted]
    descriptions = {
        "predicted": f"{called} (the class called)" if predicted is not None else called,
        "normal": "normal",
        "reduced": "reduced",
        "label": "the class of the label",
        "difference": "reduced rather than normal",
        "decision": f"{called} rather than the other class",
    }
    return descriptions.get(str(target), "the explained output")


def arrange_table1(rows: Sequence[Mapping]) -> list[list[str]]:
    """Table 1 in the layout of Nazari et al. 2022: a header, then a line per set; a column per label and sex.

    Each row holds ``set`` (whole, train, validation, test), ``label``, ``sex`` (F, M or None), ``n``,
    ``age_mean`` and ``age_sd`` in years (None if unknown).
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
