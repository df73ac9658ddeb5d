"""The conventional classifiers: a cutoff on the putaminal SBR, and a classification tree (CART), drawn.

    python examples/comparison.py RUN_DIR [--out DIR]
"""

from nazari2021 import CNN, Row, main

from datxai.analysis.tables import format_percent
from datxai.stages.report import draw


def make(runs, out):
    draw("sbr", runs[0], out)
    draw("cart", runs[0], out)
    found = runs[0].metrics["classifiers"]
    cnn = format_percent(CNN["accuracy"])
    rows = [
        Row(
            f"accuracy of {name}",
            f"similar to the CNN ({cnn})",
            format_percent(found[key]["accuracy"], found[key]["accuracy_ci95"]),
            why,
        )
        for key, name, why in (
            ("sbr", "the SBR cutoff", f"cutoff {found['sbr']['cutoff']:.2f}, chosen on the training cases"),
            ("cart", "CART", "depth at most 3, leaves of at least 5 training cases"),
        )
    ]
    low, high = found["sbr"]["accuracy_ci95"]
    place = "within" if low <= found["cnn"]["accuracy"] <= high else "outside"
    return [*rows, Row("accuracy of the CNN", cnn, f"{place} the interval of the SBR cutoff's")]


if __name__ == "__main__":
    main(make, __doc__)
