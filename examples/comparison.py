"""The conventional classifiers: a cutoff on the putaminal SBR, and a classification tree (CART), plotted.

    python examples/comparison.py RUN_DIR [--out DIR]
"""

from nazari2021 import CNN, Row, main
from scipy.stats import binomtest

from datxai.pages.tables import format_percent
from datxai.run_figures import draw


def make(runs, out):
    draw("sbr", runs[0], out)
    draw("cart", runs[0], out)
    classifiers = runs[0].metrics["classifiers"]
    cnn = format_percent(CNN["accuracy"])
    rows = [
        Row(
            f"accuracy of {name}",
            f"similar to the CNN ({cnn})",
            format_percent(classifiers[key]["accuracy"], classifiers[key]["accuracy_ci95"]),
            why,
        )
        for key, name, why in (
            ("sbr", "the SBR cutoff", f"cutoff {classifiers['sbr']['cutoff']:.2f}, chosen on the training cases"),
            ("cart", "CART", "depth at most 3, leaves of at least 5 training cases"),
        )
    ]
    ratios, cutoff = runs[0].sbr, classifiers["sbr"]["cutoff"]
    alone = [0, 0]  # cases that only the CNN, or only the cutoff, classifies correctly
    for case in runs[0].of_set("test"):
        low = min(ratios[case["participant_id"]][f"putamen_{side}"] for side in ("left", "right")) < cutoff
        by_cnn, by_cutoff = case["predicted"] == case["label"], low == bool(case["label"])
        alone[0] += by_cnn and not by_cutoff
        alone[1] += by_cutoff and not by_cnn
    p = binomtest(alone[0], sum(alone)).pvalue if sum(alone) else 1.0
    return [
        *rows,
        Row(
            "CNN and SBR cutoff on the same cases",
            "",
            f"{alone[0]} right by the CNN alone, {alone[1]} by the cutoff alone; p = {p:.2g}",
            "exact test of McNemar",
        ),
    ]


if __name__ == "__main__":
    main(make, __doc__)
