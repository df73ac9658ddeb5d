"""The most relevant voxel of every test case: inside the striatum, or its distance from it.

    python examples/peaks.py RUN_DIR [--out DIR]
"""

from nazari2021 import Row, main

from datxai.analysis.classification import wilson_interval
from datxai.files import write_table
from datxai.pages.tables import format_percent


def make(runs, out):
    columns = ["participant_id", "group", "peak_x", "peak_y", "peak_z", "peak_distance_mm", "peak_inside"]
    cases = runs[0].map_measures
    write_table(out / "peaks.tsv", [{name: case[name] for name in columns} for case in cases], columns)
    peaks = runs[0].metrics["peaks"]
    right = [case["peak_distance_mm"] for case in cases if case["group"] in ("TN", "TP")]
    near = sum(distance is not None and distance <= peaks["near_mm"] for distance in right)
    share = format_percent(near / len(right), wilson_interval(near, len(right))) if right else "n/a"
    return [
        Row("most relevant voxel in the striatum", "in or near it in all", f"{peaks['inside']} of {peaks['n']}"),
        Row(f"at most {peaks['near_mm']:.0f} mm from the striatum", "", f"{peaks['near']} of {peaks['n']}"),
        Row(
            "the same, correctly classified cases",
            "",
            f"{near} of {len(right)}, {share}",
        ),
    ]


if __name__ == "__main__":
    main(make, __doc__)
