"""How good a relevance map is, in three dimensions: any network, any method, tensors and arrays.

`METRICS` holds every metric by name; each takes a `Case` and returns named numbers, NaN where one is not defined for
this map. ``docs/metrics.md`` explains them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from datxai.metrics.flipping import parcel_flipping, patch_flipping
from datxai.metrics.inputs import Case
from datxai.metrics.localisation import pointing_game, relevance_mass, relevance_rank
from datxai.metrics.randomisation import parameter_randomisation, random_logit
from datxai.metrics.sparseness import sparseness
from datxai.metrics.stability import max_sensitivity

__all__ = ["METRICS", "Case", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A metric, which is called with a case.

    Attributes
    ----------
    measure : function from a case to named numbers
    title : name in tables
    headline : name of the number by which methods are ranked
    higher_is_better : whether a high headline is good
    meaning : what the headline measures, in a few words
    """

    measure: Callable[[Case], dict[str, float]]
    title: str
    headline: str
    higher_is_better: bool
    meaning: str = ""

    def __call__(self, case: Case) -> dict[str, float]:
        return self.measure(case)


METRICS = {
    "patch_flipping": Metric(
        patch_flipping, "Flipping of patches", "abpc", True,
        "how much more the decision falls when cubes are taken away most relevant first than when they are taken away "
        "least relevant first",
    ),
    "parcel_flipping": Metric(
        parcel_flipping, "Flipping of parcels", "abpc", True, "the same with the parcels of the atlas"
    ),
    "relevance_mass": Metric(
        relevance_mass, "Relevance mass", "striatum", True,
        "share of the positive relevance that lies in the striatum",
    ),
    "relevance_rank": Metric(
        relevance_rank, "Relevance rank", "striatum", True,
        "share of the most relevant voxels, as many as the striatum has, that lie in it",
    ),
    "pointing_game": Metric(
        pointing_game, "Pointing game", "striatum", True,
        "whether the most relevant voxel lies in the striatum, or next to it",
    ),
    "parameter_randomisation": Metric(
        parameter_randomisation, "Parameter randomisation", "spearman_abs", False,
        "similarity of the map to those of networks with random weights: low if it depends on what was learned",
    ),
    "random_logit": Metric(
        random_logit, "Random logit", "spearman", False,
        "similarity of the map to that of another output: low if it depends on which output is explained",
    ),
    "max_sensitivity": Metric(
        max_sensitivity, "Max-sensitivity", "max_sensitivity", False,
        "how much the map changes at most under a little noise",
    ),
    "sparseness": Metric(
        sparseness, "Sparseness", "gini", True, "how few voxels hold the relevance (Gini index)"
    ),
}  # fmt: skip
