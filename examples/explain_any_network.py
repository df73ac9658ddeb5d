"""LRP on any network: any module, any tensor, no run folder.

    python examples/explain_any_network.py
"""

import torch
from torch import nn

from datxai.explain import attribute

network = nn.Sequential(
    nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
    nn.Conv3d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 3),
)  # fmt: skip
scans = torch.rand(4, 1, 24, 24, 24)

explained = attribute(
    network,
    scans,
    composite=[
        {"match": ["type:Convolution[0]"], "rule": "flat"},
        {"match": ["type:Convolution"], "rule": "gamma", "parameters": {"gamma": 0.25}},
        {"match": ["type:Linear"], "rule": "epsilon", "parameters": {"epsilon": 1e-6}},
        {"match": ["type:Activation", "type:BatchNorm"], "rule": "pass"},
        {"match": ["type:AvgPool"], "rule": "norm"},
    ],
    canonizers=["sequential_merge_batch_norm"],
    target=2,
)
print("relevance", tuple(explained.relevance.shape), "starts with", [round(seed[2], 4) for seed in explained.seeds])
for row in explained.ledgers[0]:
    print(f"  {row['layer']:>2} {row['rule']:8} got {row['relevance_in']:+.4f}, handed on {row['relevance_out']:+.4f}")
