"""Repeats: the same split, different initial weights; whether sensitivity or specificity is larger.

    datxai -m base=RUN_DIR run=DIR training.seed=1,2,3,4
    python examples/repeats.py RUN_DIR DIR/*/ [--out DIR]
"""

from nazari2021 import Row, main

from datxai.files import write_table
from datxai.pages.charts import plot_repeats
from datxai.pages.style import save_figure
from datxai.pages.tables import format_percent


def make(runs, out):
    if len(runs) == 1:
        return [Row("repeats", "several", "none given")]
    networks = {str(number): run.metrics["classifiers"]["cnn"] for number, run in enumerate(runs, start=1)}
    save_figure(plot_repeats(networks), out / "repeats")
    columns = ["initialisation", "n", "tn", "fp", "fn", "tp", "accuracy", "sensitivity", "specificity"]
    write_table(out / "repeats.tsv", [{"initialisation": name, **row} for name, row in networks.items()], columns)
    accuracies = [row["accuracy"] for row in networks.values()]
    differences = [row["sensitivity"] - row["specificity"] for row in networks.values()]
    order = [sum(d > 0 for d in differences), sum(d < 0 for d in differences), sum(d == 0 for d in differences)]
    return [
        Row(
            f"accuracy over {len(runs)} initialisations",
            "very similar",
            f"{format_percent(min(accuracies))} to {format_percent(max(accuracies))}",
        ),
        Row(
            "sensitivity larger, specificity larger, equal",
            "both occur",
            "{} / {} / {} initialisations".format(*order),
        ),
    ]


if __name__ == "__main__":
    main(make, __doc__)
