"""Fig. 4: image and relevance map of every misclassified case with the TN and TP means; inconsistent ones marked.

    python examples/figure4.py RUN_DIR [--out DIR]
"""

from nazari2021 import CNN, INCONSISTENT_FN, Row, main

from datxai.run_figures import draw

NOTE = """In the paper, maps are judged inconsistent by eye. Here a map is inconsistent if it correlates more with the
mean map of the class that was not predicted; a case is left out of the mean that it is compared with."""


def make(runs, out):
    draw("fig4", runs[0], out)
    rows = []
    for group, name, paper in (
        ("FN", "false negative", f"{INCONSISTENT_FN} of {CNN['fn']}"),
        ("FP", "false positive", f"n/a of {CNN['fp']}"),
    ):
        cases = [case for case in runs[0].misclassified if case["group"] == group]
        inconsistent = sum(case["consistent"] is False for case in cases)
        rows.append(
            Row(
                f"{name} cases with an inconsistent map",
                paper,
                f"{inconsistent} of {len(cases)}",
                "by eye there, by correlation here",
            )
        )
    return rows


if __name__ == "__main__":
    main(make, __doc__)
