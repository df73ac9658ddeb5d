"""Confusion matrix and the five figures of the network with 95 % intervals, beside the paper's and other classifiers'.

    python examples/classification.py RUN_DIR [--out DIR]
"""

from nazari2021 import CNN, Row, main

from datxai.analysis.charts import plot_classification
from datxai.analysis.style import save_figure
from datxai.analysis.tables import MEASURES, format_percent
from datxai.stages.report import SHORT


def compare(name, paper, ours):
    """Rows for the confusion matrix and the five figures of a classifier in the paper and here."""
    counts = [f"TN {found['tn']}, FP {found['fp']}, FN {found['fn']}, TP {found['tp']}" for found in (paper, ours)]
    return [
        Row(f"{name}: confusion matrix", *counts),
        *(
            Row(
                f"{name}: {MEASURES[key]}",
                *(format_percent(found[key], found[f"{key}_ci95"]) for found in (paper, ours)),
            )
            for key in ("accuracy", "sensitivity", "specificity", "ppv", "npv")
        ),
    ]


def make(runs, out):
    classifiers = runs[0].metrics["classifiers"]
    shown = {"CNN of the paper": CNN, **{title: classifiers[name] for name, title in SHORT.items()}}
    save_figure(plot_classification(shown), out / "classification")
    both = CNN, classifiers["cnn"]
    margins = [format_percent(found["accuracy_margin"]) for found in both]
    sizes = " and ".join(f"{found['n']}" for found in both)
    return [
        *compare("CNN", CNN, classifiers["cnn"]),
        Row("CNN: margin of the accuracy, 1.96 sqrt(acc (1 − acc) / n)", *margins, f"n = {sizes}"),
    ]


if __name__ == "__main__":
    main(make, __doc__)
