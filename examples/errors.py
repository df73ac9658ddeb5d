"""Can misclassified cases be detected? ROC of the map's inconsistency, the margin, the SBR and an ensemble.

    python examples/errors.py RUN_DIR [REPEAT_DIR ...] [--out DIR]
"""

import numpy as np
from nazari2021 import Row, main

from datxai.analysis.detection import DOUBTS, pool_repeats, trace_all
from datxai.files import write_table
from datxai.pages.charts import plot_detection
from datxai.pages.style import save_figure

NOTE = """Area under the ROC curve for detecting misclassified cases, with 95 % interval (variance of Hanley and
McNeil). Where there are several networks, their cases are pooled by their ranks within each network, and the interval
is a bootstrap over subjects: the networks see the same cases and make
much the same errors. With fewer than five misclassified subjects there is none."""


def make(runs, out):
    cases = [[dict(row) for row in run.doubt] for run in runs]
    curves = trace_all(cases[0])
    if len(runs) > 1:
        outputs = np.array([[case["p_reduced"] for case in run.of_set("test")] for run in runs])
        for rows in cases:
            for row, spread in zip(rows, outputs.std(axis=0, ddof=1), strict=True):
                row["members"] = float(spread)
        people, wrong, *scores = (
            [[row[name] for row in rows] for rows in cases] for name in ("participant_id", "misclassified", *DOUBTS)
        )
        curves = {name: pool_repeats(people, wrong, of) for name, of in zip(DOUBTS, scores)}
    save_figure(plot_detection({DOUBTS[name]: curve for name, curve in curves.items()}), out / "errors")
    columns = ["score", "n", "errors", "auc", "auc_low", "auc_high"]
    rows = []
    for name, curve in curves.items():
        low, high = curve["auc_ci95"] or (None, None)
        rows.append({"score": name, **curve, "auc_low": low, "auc_high": high})
    write_table(out / "errors.tsv", [{name: row[name] for name in columns} for row in rows], columns)
    return [
        Row(
            f"AUC for finding errors: {DOUBTS[row['score']]}",
            "left open",
            f"{_show(row)}, {row['errors']} errors in {row['n']}",
        )
        for row in rows
    ]


def _show(row) -> str:
    if row["auc"] is None:
        return "n/a"
    interval = "no interval" if row["auc_low"] is None else f"{row['auc_low']:.2f} to {row['auc_high']:.2f}"
    return f"{row['auc']:.2f} ({interval})"


if __name__ == "__main__":
    main(make, __doc__)
