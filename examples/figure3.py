"""Fig. 3: mean image and mean relevance map of the TN and TP cases, template, heat map; one slice.

    python examples/figure3.py RUN_DIR [--out DIR]
"""

import numpy as np
from nazari2021 import Row, main

from datxai.run_figures import draw


def make(runs, out):
    draw("fig3", runs[0], out)
    metrics = runs[0].metrics
    if "heat_map_peak" not in metrics:
        return [Row("mean maps of TN and TP", "sign flip", "n/a", "a group is empty")]
    peak = metrics["heat_map_peak"]
    place = "inside" if peak["inside"] else f"{peak['distance_mm']:.1f} mm from"
    atlas = runs[0].anatomy.atlas
    index = np.rint(atlas.labels.grid.mm_to_index([peak[axis] for axis in "xyz"])).astype(int)
    region = atlas.names.get(int(atlas.labels.data[tuple(index)]), "no region")
    region = region.replace("_left", ", ipsilateral").replace("_right", ", contralateral").replace("_", " ")
    return [
        Row(
            "correlation of the mean maps of TN and TP",
            "about −1 (sign flip)",
            f"{metrics['mean_map_correlation']:.2f}".replace("-", "−"),
            f"explained output: {metrics['target']}, start: {metrics['attribution']['start']}; see the sign below",
        ),
        Row(
            "hottest region of the heat map (TP − TN)",
            "ipsilateral putamen",
            f"x = {peak['x']:.0f}, y = {peak['y']:.0f}, z = {peak['z']:.0f} mm, {place} the ipsilateral "
            f"striatum; in the atlas: {region}".replace("-", "−"),
        ),
    ]


if __name__ == "__main__":
    main(make, __doc__)
