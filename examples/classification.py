"""Confusion matrix and the five figures of the network with 95 % intervals, with the paper's and other classifiers'.

    python examples/classification.py RUN_DIR [--out DIR]
"""

from nazari2021 import CNN, Row, main

from datxai.pages.charts import plot_classification
from datxai.pages.style import save_figure
from datxai.pages.tables import MEASURES, format_percent
from datxai.run_figures import CLASSIFIERS


def compare(name, paper, ours):
    """Rows for the confusion matrix and the five figures of a classifier in the paper and here. One of two reasons:
    the interval of one contains the value of the other, so the difference may be chance, or neither does."""
    cells = ("tn", "fp", "fn", "tp")
    counts = [", ".join(f"{cell.upper()} {figures[cell]}" for cell in cells) for figures in (paper, ours)]
    return [
        Row(f"{name}: confusion matrix", *counts),
        *(
            Row(
                f"{name}: {MEASURES[key]}",
                *(format_percent(figures[key], figures[f"{key}_ci95"]) for figures in (paper, ours)),
                _say_why(key, paper, ours),
            )
            for key in ("accuracy", "sensitivity", "specificity", "ppv", "npv")
        ),
    ]


def _say_why(key, paper, ours):
    """Whether two estimates differ by more than chance, judging by their intervals."""
    if None in (paper[key], ours[key]):
        return ""
    (low, high), (least, most) = (figures[f"{key}_ci95"] for figures in (paper, ours))
    if low <= ours[key] <= high or least <= paper[key] <= most:
        return "within chance: an interval holds the other value"
    return "neither interval holds the other value: the cohorts differ"


def make(runs, out):
    classifiers = runs[0].metrics["classifiers"]
    shown = {"CNN of the paper": CNN, **{title: classifiers[name] for name, title in CLASSIFIERS.items()}}
    save_figure(plot_classification(shown), out / "classification")
    both = CNN, classifiers["cnn"]
    margins = [format_percent(figures["accuracy_margin"]) for figures in both]
    sizes = " and ".join(f"{figures['n']}" for figures in both)
    return [
        *compare("CNN", CNN, classifiers["cnn"]),
        Row("CNN: margin of the accuracy, 1.96 sqrt(acc (1 − acc) / n)", *margins, f"n = {sizes}"),
    ]


if __name__ == "__main__":
    main(make, __doc__)
