"""The ledger of an explanation: relevance received, passed on, and absorbed by the bias and stabiliser of each layer.

A rule passes on less relevance than it receives (or more) for two reasons: the bias, an input of the layer that is not
part of the image, absorbs its share, and the stabiliser enlarges the denominators. A layer absorbs exactly the sum of
the two. Outputs without contributions of one sign count towards the stabiliser: with alpha 2, beta 1, an output
without negative contributions passes on twice its relevance, so that the stabiliser absorbs minus once the relevance.

Relevance that no layer absorbed but that is missing in the map (or the reverse) was lost or gained between layers with
rules: a last row shows it, if it exceeds rounding.
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
ROUNDING = 1e-4  # relative to the sum of magnitudes in a map and its ledger
_WITHOUT_BIAS = {"flat", "zbox", "norm"}  # Zennit zeroes it, it cancels, there is none


class Ledger:
    """Records relevance while a composite is registered; open it after registering, close it before removing.

    ``cases``: the number of cases. If a layer has several rows per case, such as slices or tokens, only a single case
    can be recorded; several raise `datxai.explain.layers.FoldedBatch`.
    """

    def __init__(self, cases: int):
        self.cases = cases
        self.entries: list[_Entry] = []

    def open(self, ruled_layers: Iterable[RuledLayer]) -> None:
        """Start recording all layers except those with the rule pass."""
        self.entries = [_Entry(rule, self.cases) for rule in ruled_layers if rule.rule != "pass"]

    def close(self) -> None:
        """Stop recording and keep the records."""
        for entry in self.entries:
            for handle in entry.handles:
                handle.remove()

    def rows(self, seed: Tensor, relevance: Tensor) -> list[list[dict]]:
        """Per case, one row per layer from the output to the input of the network, see `Explanation`.

        ``seed`` [batch, outputs] is the relevance at the outputs, ``relevance`` [batch, ...] the map.
        """
        columns = [entry.columns() for entry in reversed(self.entries) if entry.relevance_in is not None]
        if not columns:
            return [[] for _ in seed]
        rows = [
            [{key: value[case] if isinstance(value, list) else value for key, value in row.items()} for row in columns]
            for case in range(len(seed))
        ]
        sums = zip(rows, _sum_rows(seed).tolist(), _sum_rows(relevance).tolist(), _sum_rows(relevance.abs()).tolist())
        for case_rows, start, end, scale in sums:
            expected = start - sum(row["absorbed"] for row in case_rows)
            scale += abs(start) + sum(abs(row[key]) for row in case_rows for key in ("relevance_in", "relevance_out"))
            if abs(expected - end) > ROUNDING * scale:
                case_rows.append(_between_layers(expected, end))
        return rows


def _sum_rows(relevance: Tensor) -> Tensor:
    """Sums along all axes but the first, float64."""
    dtype, others = torch.promote_types(relevance.dtype, torch.float32), tuple(range(1, relevance.ndim))
    return (relevance.sum(dim=others, dtype=dtype) if others else relevance).double()


def _between_layers(expected: float, end: float) -> dict:
    """The row for relevance gained or lost without a rule, such as in additions and activations outside layers."""
    sums = {"relevance_in": expected, "relevance_out": end, "absorbed": expected - end}
    return {"layer": BETWEEN, "type": "", "rule": ""} | sums | {"by_bias": 0.0, "by_stabiliser": 0.0}


class _Entry:
    """Records one layer: sums of relevance [batch] at its output (in), its input (out) and its bias."""

    def __init__(self, ruled: RuledLayer, cases: int):
        self.ruled, self.cases = ruled, cases
        self.relevance_in: Tensor | None = None
        self.relevance_out: Tensor | None = None
        self.by_bias: Tensor | None = None
        self.input: tuple[Tensor, int] | None = None  # the input, and its version before the layer ran
        self.hook = getattr(ruled.hook, "fallback", None) or ruled.hook
        if isinstance(self.hook, rules.Rule):
            self.hook.on_bias = lambda relevance: self._add("by_bias", relevance)
        elif isinstance(self.hook, BasicHook) and ruled.rule not in _WITHOUT_BIAS:
            _record_bias(self.hook, ruled.module, lambda relevance: self._add("by_bias", relevance))
        self.handles = [
            ruled.module.register_forward_pre_hook(self._watch_input, prepend=True),
            ruled.module.register_forward_hook(self._watch_output),
        ]

    def _watch_input(self, module: nn.Module, args: tuple) -> tuple:
        if not args or not isinstance(args[0], Tensor):  # `Watch` raises
            return args
        x = args[0].view_as(args[0])  # its gradient is of this layer only, even if others share the input
        if x.requires_grad:
            self.input = x, x._version
            x.register_hook(lambda relevance: self._add("relevance_out", _sum_rows(relevance)))
        return (x, *args[1:])

    def _watch_output(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        recorded, self.input = self.input, None
        if recorded is not None and recorded[0]._version != recorded[1]:
            raise InputError(
                f"layer {self.ruled.name} ({type(module).__name__}), or a hook on it, writes into its input, where the "
                f"ledger cannot follow relevance; let it write into a copy, as in x = 2 * x for x *= 2, or give it the "
                f"rule gradient."
            )
        if output.requires_grad:
            output.register_hook(lambda relevance: self._add("relevance_in", _sum_rows(relevance)))

    def _add(self, column: str, rows: Tensor) -> None:
        total, sums = getattr(self, column), by_case(rows, self.cases)
        setattr(self, column, sums if total is None else total + sums)

    def columns(self) -> dict:
        """Name and values of every column: a list by case, or one value for all cases."""
        assert self.relevance_in is not None
        zeros = torch.zeros_like(self.relevance_in)
        relevance_out = zeros if self.relevance_out is None else self.relevance_out  # None: none left by the input
        by_bias = zeros if self.by_bias is None else self.by_bias.to(zeros)
        absorbed = self.relevance_in - relevance_out
        return {
            "layer": self.ruled.name,
            "type": type(self.ruled.module).__name__,
            "rule": self.ruled.rule,
            "relevance_in": self.relevance_in.tolist(),
            "relevance_out": relevance_out.tolist(),
            "absorbed": absorbed.tolist(),
            "by_bias": by_bias.tolist(),
            "by_stabiliser": (absorbed - by_bias).tolist(),
        }


def _record_bias(hook: Any, module: nn.Module, record: Callable[[Tensor], None]) -> None:
    """Make one of Zennit's hooks ``record`` the relevance of the bias, which acts as an input of constant one."""
    bias, mapper = getattr(module, "bias", None), hook.gradient_mapper
    if bias is None:
        return
    channels = -1 if isinstance(module, nn.Linear) else 1

    def recording_mapper(relevance: Tensor, outputs: list[Tensor]) -> list[Tensor] | Tensor:
        shares = mapper(relevance, outputs)
        ones, inputs, gradients = relevance.new_ones(len(relevance)), [], []
        branches = zip(hook.input_modifiers, hook.param_modifiers, [shares] if len(outputs) == 1 else shares)
        with torch.no_grad():
            for modify_input, modify_param, share in branches:
                contribution = zero_wrap(modify_param.zero_params)(modify_param.modifier)(bias.detach(), "bias")
                inputs.append(modify_input(ones))
                gradients.append((share.movedim(channels, -1) * contribution).flatten(1).sum(dim=1))
            record(hook.reducer(inputs, gradients))
        return shares

    hook.gradient_mapper = recording_mapper
