"""How good a relevance map is, in three dimensions: any network, any method, tensors and arrays.

`METRICS` holds every metric by name; each takes a `Case` and returns named numbers, NaN where one is not defined for
this map. ``docs/metrics.md`` says what they mean.
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
    """A metric, called with a case.

    Attributes
    ----------
    measure : from a case to named numbers
    title : for a table
    headline : the number of these by which methods are ranked
    higher_is_better : whether a high one is good
    """

    measure: Callable[[Case], dict[str, float]]
    title: str
    headline: str
    higher_is_better: bool

    def __call__(self, case: Case) -> dict[str, float]:
        return self.measure(case)


METRICS = {
    "patch_flipping": Metric(patch_flipping, "Flipping of patches", "abpc", True),
    "parcel_flipping": Metric(parcel_flipping, "Flipping of parcels", "abpc", True),
    "relevance_mass": Metric(relevance_mass, "Relevance mass", "striatum", True),
    "relevance_rank": Metric(relevance_rank, "Relevance rank", "striatum", True),
    "pointing_game": Metric(pointing_game, "Pointing game", "striatum", True),
    "parameter_randomisation": Metric(parameter_randomisation, "Parameter randomisation", "spearman_abs", False),
    "random_logit": Metric(random_logit, "Random logit", "spearman", False),
    "max_sensitivity": Metric(max_sensitivity, "Max-sensitivity", "max_sensitivity", False),
    "sparseness": Metric(sparseness, "Sparseness", "gini", True),
}
