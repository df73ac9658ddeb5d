"""Fig. 5: the putamen ROI on the mean TN image, and the relevance in the ipsilateral putamen by TN, TP, FN and FP.

    python examples/figure5.py RUN_DIR [--out DIR]
"""

from classification import compare
from nazari2021 import ROI_RELEVANCE, main

from datxai.run_figures import draw


def make(runs, out):
    draw("fig5", runs[0], out)
    figures = runs[0].metrics["classifiers"]["roi_relevance"]
    return compare("relevance in the ipsilateral putamen above zero", ROI_RELEVANCE, figures)


if __name__ == "__main__":
    main(make, __doc__)
