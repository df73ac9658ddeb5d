"""The ledger of an explanation: what each layer got, handed on, and lost to its bias and to the stabiliser.

A rule hands on less than it gets (or more) for two reasons: the bias, which is an input of the layer without a place
in the image, takes its share, and the stabiliser enlarges the denominators. What a layer absorbs is exactly the sum of
the two. Outputs without any contribution of the rule's sign belong to the second: with alpha 2, beta 1, an output
without negative contributions hands on twice its relevance, and the stabiliser's part is minus once.

What no layer absorbed, and yet is not in the map (or is there and was never handed on), came or went between the
layers with rules: a last row has it, where it is more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain import rules
from datxai.explain._zennit import BasicHook, zero_wrap
from datxai.explain.assignment import RuledLayer
from datxai.explain.layers import by_case

BETWEEN = "between layers"
ROUNDING = 1e-4  # of the magnitudes that a map and its ledger are sums of
_NOTHING_TO_BIAS = {"flat", "zbox", "norm"}  # Zennit zeroes it, it cancels, there is none


class Ledger:
    """Records relevance while a composite is registered; open it after registering, close it before removing.

    ``cases``: how many are explained. Where a layer works on several rows of each, such as slices or tokens, only one
    case at a time is known to have them all: else `datxai.explain.layers.FoldedBatch`.
    """

    def __init__(self, cases: int):
        self.cases = cases
        self.entries: list[_Entry] = []

    def open(self, ruled_layers: Iterable[RuledLayer]) -> None:
        """Start to record every layer but those that pass relevance on unchanged."""
        self.entries = [_Entry(rule, self.cases) for rule in ruled_layers if rule.rule != "pass"]

    def close(self) -> None:
        """Stop recording; what was recorded stays."""
        for entry in self.entries:
            for handle in entry.handles:
                handle.remove()

    def rows(self, seed: Tensor, relevance: Tensor) -> list[list[dict]]:
        """Per case, one row per layer from the output to the input of the network, see `Explanation`.

        ``seed`` [batch, outputs] is what went in, ``relevance`` [batch, ...] what came out.
        """
        columns = [entry.columns() for entry in reversed(self.entries) if entry.relevance_in is not None]
        if not columns:
            return [[] for _ in seed]
        rows = [
            [{key: value[case] if isinstance(value, list) else value for key, value in row.items()} for row in columns]
            for case in range(len(seed))
        ]
        sums = zip(rows, _sum_up(seed).tolist(), _sum_up(relevance).tolist(), _sum_up(relevance.abs()).tolist())
        for own, start, end, size in sums:
            arrived = start - sum(row["absorbed"] for row in own)
            size += abs(start) + sum(abs(row[side]) for row in own for side in ("relevance_in", "relevance_out"))
            if abs(arrived - end) > ROUNDING * size:
                own.append(_between_layers(arrived, end))
        return rows


def _sum_up(relevance: Tensor) -> Tensor:
    """Sums along all axes but the first, float64."""
    dtype, others = torch.promote_types(relevance.dtype, torch.float32), tuple(range(1, relevance.ndim))
    return (relevance.sum(dim=others, dtype=dtype) if others else relevance).double()


def _between_layers(arrived: float, end: float) -> dict:
    """What came or went where no rule was at work, such as additions and activations that are no layers."""
    nothing = {"by_bias": 0.0, "by_stabiliser": 0.0}
    sums = {"relevance_in": arrived, "relevance_out": end, "absorbed": arrived - end}
    return {"layer": BETWEEN, "type": "", "rule": ""} | sums | nothing


class _Entry:
    """One layer: sums of relevance [batch] at its output (in), its input (out) and its bias."""

    def __init__(self, ruled: RuledLayer, cases: int):
        self.ruled, self.cases = ruled, cases
        self.relevance_in: Tensor | None = None
        self.relevance_out: Tensor | None = None
        self.by_bias: Tensor | None = None
        self.given: tuple[Tensor, int] | None = None  # the input, and how often it had been written over
        self.hook = getattr(ruled.hook, "fallback", None) or ruled.hook
        if isinstance(self.hook, rules.Rule):
            self.hook.on_bias = lambda relevance: self._add("by_bias", relevance)
        elif isinstance(self.hook, BasicHook) and ruled.rule not in _NOTHING_TO_BIAS:
            _note_bias(self.hook, ruled.module, lambda charged: self._add("by_bias", charged))
        self.handles = [
            ruled.module.register_forward_pre_hook(self._watch_input, prepend=True),
            ruled.module.register_forward_hook(self._watch_output),
        ]

    def _watch_input(self, module: nn.Module, args: tuple) -> tuple:
        if not args or not isinstance(args[0], Tensor):  # `Watch` says so
            return args
        x = args[0].view_as(args[0])  # its gradient is this layer's part alone where others read the input too
        if x.requires_grad:
            self.given = x, x._version
            x.register_hook(lambda relevance: self._add("relevance_out", _sum_up(relevance)))
        return (x, *args[1:])

    def _watch_output(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        given, self.given = self.given, None
        if given is not None and given[0]._version != given[1]:
            raise InputError(
                f"layer {self.ruled.name} ({type(module).__name__}), or a hook on it, writes into its input, where the "
                f"ledger cannot follow relevance; let it write into a copy, as in x = 2 * x for x *= 2, or give it the "
                f"rule gradient."
            )
        if output.requires_grad:
            output.register_hook(lambda relevance: self._add("relevance_in", _sum_up(relevance)))

    def _add(self, column: str, rows: Tensor) -> None:
        noted, sums = getattr(self, column), by_case(rows, self.cases)
        setattr(self, column, sums if noted is None else noted + sums)

    def columns(self) -> dict:
        """Name and values of every column; values differ by case where they are lists."""
        assert self.relevance_in is not None
        nothing = torch.zeros_like(self.relevance_in)
        handed_on = nothing if self.relevance_out is None else self.relevance_out  # None: on another way than its input
        by_bias = nothing if self.by_bias is None else self.by_bias.to(nothing)
        absorbed = self.relevance_in - handed_on
        return {
            "layer": self.ruled.name,
            "type": type(self.ruled.module).__name__,
            "rule": self.ruled.rule,
            "relevance_in": self.relevance_in.tolist(),
            "relevance_out": handed_on.tolist(),
            "absorbed": absorbed.tolist(),
            "by_bias": by_bias.tolist(),
            "by_stabiliser": (absorbed - by_bias).tolist(),
        }


def _note_bias(hook: Any, module: nn.Module, book: Callable[[Tensor], None]) -> None:
    """Let one of Zennit's hooks note in ``book`` what its rule gives to the bias, an input of constant one."""
    bias, mapper = getattr(module, "bias", None), hook.gradient_mapper
    if bias is None:
        return
    channels = -1 if isinstance(module, nn.Linear) else 1

    def noting_mapper(relevance: Tensor, outputs: list[Tensor]) -> list[Tensor] | Tensor:
        shares = mapper(relevance, outputs)
        one, inputs, gradients = relevance.new_ones(len(relevance)), [], []
        branches = zip(hook.input_modifiers, hook.param_modifiers, [shares] if len(outputs) == 1 else shares)
        with torch.no_grad():
            for modify_input, modify, share in branches:
                contribution = zero_wrap(modify.zero_params)(modify.modifier)(bias.detach(), "bias")
                inputs.append(modify_input(one))
                gradients.append((share.movedim(channels, -1) * contribution).flatten(1).sum(dim=1))
            book(hook.reducer(inputs, gradients))
        return shares

    hook.gradient_mapper = noting_mapper
