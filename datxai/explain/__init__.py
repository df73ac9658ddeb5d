"""Find the voxels that a decision is based on: layer-wise relevance propagation with Zennit, for any network.

`attribute` explains a batch, `describe_composite` shows which layer gets which rule. The rules of
`datxai.explain.rules` can be used in any Zennit composite.
"""

from datxai.explain.assignment import RULES
from datxai.explain.attribution import METHODS, TARGETS, Explanation, attribute
from datxai.explain.composite import build_composite, describe_composite

__all__ = [
    "METHODS",
    "RULES",
    "TARGETS",
    "Explanation",
    "attribute",
    "build_composite",
    "describe_composite",
]
