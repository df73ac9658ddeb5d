"""Table 1: ages by set, label and sex.

    python examples/table1.py RUN_DIR [--out DIR]
"""

from nazari2021 import TABLE1, Row, main

from datxai.pages.tables import LABEL_NAMES, SET_NAMES, SEX_NAMES
from datxai.run_figures import draw

NOTE = "The phantom draws age and sex as in Table 1 of the paper."


def make(runs, out):
    draw("table1", runs[0], out)
    rows = []
    for row in runs[0].table1:
        mean, sd, n = TABLE1.get((row["set"], row["label"], row["sex"]), (None, None, None))
        rows.append(
            Row(
                f"{SET_NAMES[row['set']]}, {LABEL_NAMES[row['label']]}, {SEX_NAMES[row['sex']]}: age in years",
                "n/a" if mean is None else f"{mean:.1f} ± {sd:.1f} (n = {n})",
                "n/a" if row["age_sd"] is None else f"{row['age_mean']:.1f} ± {row['age_sd']:.1f} (n = {row['n']})",
                "drawn from the paper's means",
            )
        )
    return rows


if __name__ == "__main__":
    main(make, __doc__)
