"""Relevance by region of the atlas with intervals over cases, extrastriatal regions ranked.

    python examples/regions.py RUN_DIR [--out DIR]
"""

from nazari2021 import Row, main

from datxai.analysis.classification import FEATURES
from datxai.run_figures import draw

SHOWN = 6
ROIS = FEATURES[:4]  # putamen and caudate of both sides
NOTE = """Density: a region's share of the brain's absolute relevance over its share of the volume. The flat rule on
two layers spreads relevance over five voxels along each axis, so regions near the striatum include some of its
relevance. The same group (Nazari et al. 2021, doi:10.1038/s41598-021-02385-x) found insula, amygdala, ventromedial
prefrontal cortex, thalamus, anterior temporal cortex, superior frontal lobe and pons."""


def make(runs, out):
    draw("regions", runs[0], out)
    rows = runs[0].regions
    inside = sum(row["share"] for row in rows if row["striatal"])
    volume = sum(row["volume_ml"] for row in rows if row["striatal"]) / sum(row["volume_ml"] for row in rows)
    first = [row for row in rows if not row["striatal"]][:SHOWN]
    striatal = [f"{row['region'].replace('_', ' ')} {row['density']:.1f}" for row in rows if row["striatal"]]
    reduced = [row for row in runs[0].map_measures if row["group"] == "TP"]
    leading = sum(max(ROIS, key=lambda roi: abs(row[roi])) == "putamen_ipsilateral" for row in reduced)
    return [
        Row(
            "reduced scans in which the ipsilateral putamen is most relevant",
            "all",
            f"{leading} of {len(reduced)} true positives",
            "hottest voxels of caudate and putamen, absolute value",
        ),
        Row(
            "striatum, by density of absolute relevance",
            "putamen ipsilateral, putamen contralateral, caudate ipsilateral",
            ", ".join(striatal),
            "all test cases",
        ),
        Row(
            "share of the brain's absolute relevance in the striatum",
            "much more than outside",
            f"{100 * inside:.1f} % in {100 * volume:.1f} % of the volume",
        ),
        *(
            Row(
                f"extrastriatal region {place}: {row['region'].replace('_', ' ')}",
                "",
                f"density {row['density']:.2f} ({row['density_low']:.2f} to {row['density_high']:.2f}), brain 1",
                f"{row['distance_mm']:.0f} mm from the striatum",
            )
            for place, row in enumerate(first, start=1)
            if row["density_low"] is not None
        ),
    ]


if __name__ == "__main__":
    main(make, __doc__)
