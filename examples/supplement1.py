"""Supplementary Fig. 1: all slices of the mean relevance maps and of the heat map.

    python examples/supplement1.py RUN_DIR [--out DIR]
"""

from nazari2021 import main

from datxai.run_figures import draw


def make(runs, out):
    draw("fig3_all_slices", runs[0], out)
    return []


if __name__ == "__main__":
    main(make, __doc__)
