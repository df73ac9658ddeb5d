"""Explain a decision: the relevance of every voxel for an output of a network, and where relevance was absorbed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain._zennit import canonizers as zennit_canonizers
from datxai.explain.answers import Answers
from datxai.explain.batches import WORTHWHILE
from datxai.explain.composite import RuleComposite, build_composite
from datxai.explain.graph import guide
from datxai.explain.layers import FoldedBatch, keeps_cases_apart
from datxai.explain.ledger import BETWEEN, Ledger
from datxai.explain.methods import METHODS as BY_CASE
from datxai.explain.methods import Decision, check_options, takes_parcels
from datxai.explain.network import (
    ONE_AT_A_TIME,
    answer,
    gradient,
    note_mixing,
    note_not_finite,
    noticing,
    require_explainable,
    require_rows_are_cases,
    require_way_back,
)
from datxai.explain.rules import Extreme
from datxai.explain.untouched import unchanged

NORMAL, REDUCED = 0, 1  # labels, and outputs of the network
_GRADIENT = {"match": ["*"], "rule": "gradient"}
_FIXED = {  # methods that are a fixed composite
    "gradient": [_GRADIENT],
    "input_x_gradient": [_GRADIENT],
    "guided_backprop": [_GRADIENT],
}
Method = Literal[
    "lrp", "gradient", "input_x_gradient", "guided_backprop", "integrated_gradients", "smoothgrad", "deep_lift",
    "grad_cam", "occlusion", "lime", "kernel_shap",
]  # fmt: skip
Start = Literal["logit", "one"]
Target = Literal["predicted", "normal", "reduced", "label", "difference", "decision"]
METHODS: tuple[Method, ...] = get_args(Method)
STARTS: tuple[Start, ...] = get_args(Start)
TARGETS: tuple[Target, ...] = get_args(Target)
_LOGIT_FLOOR = 0.05  # added to the scale of logits, which may be zero by chance
_CANONIZED_TOLERANCE = 1e-3  # relative change of the logits by canonizers; Zennit's merges leave an epsilon


@dataclass(frozen=True, eq=False)
class Explanation:
    """Attribution maps of a batch, with what led to them.

    Attributes
    ----------
    relevance : tensor like the input [batch, 1, X, Y, Z]
    logits : tensor [batch, outputs]
    seed : tensor [batch, outputs]
        Relevance that propagation starts with at each output; its sum over outputs is the total.
    ledgers : list [batch] of lists of dicts
        One row per layer with a rule other than pass, from the output to the input: layer, type, rule, relevance_in,
        relevance_out, absorbed = in - out, and its parts by_bias and by_stabiliser. If relevance was gained or lost
        outside these layers, a last row ``between layers``, whose absorbed is the sum of the seed minus that of the map
        and minus what the layers absorbed. Empty for methods other than LRP.
    """

    relevance: Tensor
    logits: Tensor
    seed: Tensor
    ledgers: list[list[dict]]

    @property
    def seeds(self) -> list[list[float]]:
        """The seed as a list, by case and output."""
        return self.seed.tolist()


def attribute(
    model: nn.Module,
    x: Tensor,
    method: Method = "lrp",
    composite: Sequence[Mapping] = (),
    canonizers: Sequence[str | zennit_canonizers.Canonizer] = (),
    target: Target | int | Sequence[int] | Tensor = "predicted",
    labels: Sequence[int] | None = None,
    start: Start | None = None,
    ledger: bool = True,
    rules: Literal["fast", "zennit"] = "fast",
    precision: Literal["float32", "bf16"] = "float32",
    at_once: int | None = None,
    parcels: Sequence | np.ndarray | Tensor | None = None,
    options: Mapping[str, object] | None = None,
    bias: bool = True,
    own_rules: Mapping[str, type] | None = None,
    answers: Answers | None = None,
) -> Explanation:
    """Attribute an output of ``model`` to the voxels of ``x``.

    The model runs in evaluation mode, without autocast and in full precision, and is restored afterwards, also after an
    exception. The attribution of a case depends neither on the other cases of the batch nor on PyTorch's default data
    type and device. Concurrent calls wait for one another, because the network has hooks while it is explained.

    Parameters
    ----------
    model
        Maps [batch, 1, X, Y, Z] (or any input) to logits [batch, outputs]. A single output is the log-odds of class 1;
        class 0 is its negative.
    x
        Input; the relevance has its shape, data type and device.
    method
        ``lrp``, by the rules of ``composite``; ``gradient``, ``input_x_gradient`` and ``guided_backprop``
        (Springenberg et al. 2015, arXiv 1412.6806), which are fixed composites; or one of
        `datxai.explain.methods.METHODS`, which explain case by case. All share the same targets and starts.
    composite, canonizers, rules, precision, bias, own_rules
        For ``lrp``, see `datxai.explain.composite.build_composite`. By default the bounds of the rule zbox are the
        range of each case in the layer's input.
    target
        The output to explain: ``predicted``, that of the largest logit; ``normal`` (0), ``reduced`` (1) or the index
        of any output, or one for each case [batch]; ``label``, that of each case's label; ``difference``, logit 1 minus
        logit 0; ``decision``, the logit of the predicted class minus that of the other.
    labels
        Labels [batch] for the target ``label``.
    start
        The seed is w_k times the ``logit`` l_k, or times ``one``, where w_k is 1 for the explained output and 0 for
        others; for the difference w = (-1, +1). The map is linear in the seed: with ``logit``, the map of the
        difference is l_1 times the map of output 1 (start one) minus l_0 times that of output 0, and starts with
        l_1 - l_0 in all; with ``one`` it starts with 1 - 1 = 0. None: ``logit`` for lrp, ``one`` for other methods,
        whose maps would change sign with the logit.
    ledger
        Whether to record the relevance of each layer.
    at_once
        Number of volumes processed together; None: the default of the device (`datxai.explain.batches.WORTHWHILE`).
    parcels
        Labels (X, Y, Z), or [batch, X, Y, Z] by case, of the regions that ``occlusion``, ``lime`` and ``kernel_shap``
        remove as a whole; 0 is never removed. None: the default of each method. Other methods ignore them.
    options
        Keyword arguments of the methods in `datxai.explain.methods`, such as ``{"n_steps": 50}``. A ``baseline`` is a
        number, or a tensor that broadcasts against ``x``, such as the mean scan.
    answers
        Cache of network outputs, used where a method needs no gradient. Saves time for several maps of the same inputs,
        of several outputs or of networks that share layers.

    Raises
    ------
    InputError
        For invalid settings; for an input that is not a batch; for a network that does not accept it, does not return
        one tensor of logits [batch, outputs] or is compiled; for canonizers that change the logits; for methods that do
        not apply to the network (no gradient reaches the input, no ReLU to guide, no layer whose units have a known
        place); and see `build_composite`.

    Warns
    -----
    UserWarning
        Once each: for numbers in ``x`` or in the map that are not finite, for batch norms without running statistics,
        and for a network that mixes the cases of a batch, draws random numbers in evaluation mode, or detaches values
        that affect its answer.
    """
    start = start or ("logit" if method == "lrp" else "one")
    options = {} if options is None else options
    _require_choices(method, start, precision, options, at_once)
    require_explainable(model, x, by_gradient=not takes_parcels(method))
    _require_axes(method, x)
    hooks = {"canonizers": canonizers, "rules": rules, "precision": precision, "bias": bias, "own_rules": own_rules}
    plan = _Plan(
        method=method,
        lines=(composite or ()) if method == "lrp" else _FIXED.get(method),
        hooks=hooks if method == "lrp" else {},
        target=_read_target(target, labels, len(x)),
        start=start,
        with_ledger=ledger and method == "lrp",
        at_once=at_once or WORTHWHILE.get(x.device.type, 1),
        parcels=parcels if takes_parcels(method) else None,
        options=options,
        answers=answers,
    )
    with ONE_AT_A_TIME, unchanged(model), _exact(x.device), noticing(model, x):
        explanation = _explain_batch(model, x, plan)
        note_not_finite(x, explanation.relevance)
    if method == "input_x_gradient":
        return replace(explanation, relevance=explanation.relevance * x.detach())
    return explanation


@dataclass(frozen=True, eq=False)
class _Plan:
    """The validated arguments of `attribute`, the same for every case."""

    method: str
    lines: Sequence[Mapping] | None  # of a composite; None for methods that explain case by case
    hooks: Mapping[str, Any]  # arguments of `build_composite`
    target: str | list[int]
    start: str
    with_ledger: bool
    at_once: int
    parcels: Sequence | np.ndarray | Tensor | None
    options: Mapping[str, Any]
    answers: Answers | None

    def seed(self, logits: Tensor, cases: slice) -> Tensor:
        """The relevance that propagation starts with, [batch, outputs]."""
        weights = _target_weights(logits, self.target if isinstance(self.target, str) else self.target[cases])
        return weights * logits + 0.0 if self.start == "logit" else weights  # no -0.0 in records


def _explain_batch(model: nn.Module, x: Tensor, plan: _Plan) -> Explanation:
    """Explain ``plan.at_once`` cases at a time, or one by one if layers fold the batch into other axes."""
    plan = replace(plan, parcels=_parcels_by_case(plan.parcels, x), options=_options_by_case(plan.options, x))
    explain = _explain_each if plan.lines is None else _propagate
    parts, start, at_once = [], 0, plan.at_once
    while start < len(x):
        cases = slice(start, start + at_once)
        try:
            parts.append(explain(model, x[cases].detach().clone(), plan, cases))
            start += at_once
        except FoldedBatch:
            at_once = 1
    return Explanation(
        torch.cat([part.relevance for part in parts]),
        torch.cat([part.logits for part in parts]),
        torch.cat([part.seed for part in parts]),
        [rows for part in parts for rows in part.ledgers],
    )


def _require_choices(method: str, start: str, precision: str, options: Mapping, at_once: int | None) -> None:
    """Raise InputError for settings that are invalid for any network and input."""
    if method not in METHODS:
        raise InputError(f"attribution.method={method}: expected one of {', '.join(METHODS)}.")
    if start not in STARTS:
        raise InputError(f"attribution.start={start}: expected logit or one.")
    if method != "lrp" and precision != "float32":
        raise InputError(f"attribution.precision={precision}: expected float32 for attribution.method={method}.")
    check_options(method, options)
    if at_once is not None and not (isinstance(at_once, int) and at_once >= 1):
        raise InputError(f"at_once={at_once}: expected one or more, or None.")


def _propagate(model: nn.Module, x: Tensor, plan: _Plan, cases: slice) -> Explanation:
    """Explain some cases by the rules of a composite."""
    bounds = tuple(Extreme(reduce, len(x)) for reduce in (torch.amin, torch.amax))
    hooks = build_composite(plan.lines or (), model, x_bounds=bounds, **plan.hooks)
    x, recorder, independent = x.requires_grad_(), Ledger(len(x)), keeps_cases_apart(model)
    try:
        hooks.register(model)
        if plan.with_ledger:
            recorder.open(hooks.ruled_layers.values())
        logits = answer(model, x)
        seed = plan.seed(logits.detach(), cases)
        if plan.method == "guided_backprop":
            require_way_back(logits.requires_grad)
            guide(logits)
        relevance = gradient(logits * seed, x)
    finally:
        recorder.close()
        canonized = hooks.is_canonized
        hooks.remove()
    first_two, answers = x[:2].detach(), logits.detach()  # representative of all; PyTorch runs two faster than one
    if canonized or (hooks.precision and not independent):
        with torch.no_grad():
            answers = answer(model, first_two)
    if canonized:
        _require_same_answer(logits[:2].detach(), answers, hooks)
    if not independent:
        note_mixing(model, first_two, answers)
    ledgers = recorder.rows(seed, relevance) if plan.with_ledger else [[] for _ in x]
    rules = hooks.ruled_layers.values()
    uses_extremes = any(isinstance(value, Extreme) for rule in rules for value in rule.parameters.values())
    if uses_extremes or any(row["layer"] == BETWEEN for rows in ledgers for row in rows):
        require_rows_are_cases(model, x.detach(), [rule.module for rule in rules])
    return Explanation(relevance, logits.detach(), seed, ledgers)


def _require_same_answer(logits: Tensor, plain: Tensor, hooks: RuleComposite) -> None:
    """Raise InputError if the logits of the canonized network differ from ``plain``, those of the network itself."""
    precision = torch.finfo(hooks.precision or logits.dtype).eps
    difference = (logits - plain).abs().max()
    if difference > max(_CANONIZED_TOLERANCE, precision**0.5) * (plain.abs().max() + _LOGIT_FLOOR):
        names = ", ".join(canonizer.name for canonizer in hooks.canonizers if canonizer.changed)
        raise InputError(
            f"canonizers {names}: the rewritten network gives other logits, {difference:.2g} apart, so its map is "
            f"not that of this network; batch norms are merged in the order of definition, which must be that of "
            f"calling. Leave the canonizer out, or pass one of zennit.canonizers that names the layers."
        )


def _explain_each(model: nn.Module, x: Tensor, plan: _Plan, cases: slice) -> Explanation:
    """Explain some cases one by one."""
    by_parcels = takes_parcels(plan.method)
    layers: list[Any] = list(model.modules())
    for layer in layers:
        if getattr(layer, "inplace", False):  # methods read what it would overwrite; `unchanged` restores it
            layer.inplace = False
    with torch.no_grad():
        logits = answer(model, x)
    if not by_parcels:
        note_mixing(model, x, logits)
    seed = plan.seed(logits, cases)
    maps = []
    for number in range(len(x)):
        case = cases.start + number  # index among all cases
        options = dict(plan.options)
        if isinstance(options.get("baseline"), Tensor):
            options["baseline"] = options["baseline"][case : case + 1]
        if by_parcels:
            options["parcels"] = None if plan.parcels is None else plan.parcels[case]
        decision = Decision(model, seed[number], plan.answers)
        maps.append(BY_CASE[plan.method](decision, x[number : number + 1], plan.at_once, **options))
    return Explanation(torch.cat(maps).detach(), logits, seed, [[] for _ in range(len(x))])


def _parcels_by_case(parcels: Sequence | np.ndarray | Tensor | None, x: Tensor) -> Any:
    """One array of parcels per case, from one for each or one for all."""
    if parcels is None:
        return None
    try:
        array = np.asarray(parcels.detach().cpu().double() if isinstance(parcels, Tensor) else parcels)
    except ValueError as error:
        raise InputError(f"parcels: expected an array of whole numbers ({error}).") from error
    if array.shape not in (x.shape[2:], (len(x), *x.shape[2:])):
        raise InputError(
            f"parcels are of shape {array.shape}, expected that of a case, {tuple(x.shape[2:])}, or one array "
            f"for each case."
        )
    return array if array.ndim == x.ndim - 1 else [array] * len(x)


def _options_by_case(options: Mapping[str, Any], x: Tensor) -> Mapping[str, Any]:
    """The options, with a tensor baseline expanded to the shape of ``x``."""
    baseline = options.get("baseline")
    if not isinstance(baseline, Tensor):
        return options
    try:
        return {**options, "baseline": baseline.detach().to(x).expand_as(x)}
    except RuntimeError as error:
        raise InputError(
            f"attribution.options.baseline is of shape {tuple(baseline.shape)}, expected a number, or a tensor that "
            f"broadcasts against the input, {tuple(x.shape)}."
        ) from error


def _require_axes(method: str, x: Tensor) -> None:
    if x.ndim < 3 and (takes_parcels(method) or method == "grad_cam"):
        raise InputError(
            f"attribution.method={method} is for inputs with axes behind their channels, [batch, channels, ...], but "
            f"this one is of shape {tuple(x.shape)}; give x[:, None] to a network that takes it, or choose another "
            f"method, such as integrated_gradients."
        )


def _read_target(target: str | int | Sequence[int] | Tensor, labels: Sequence[int] | None, n: int) -> str | list[int]:
    """One of `TARGETS`, or the index of an output for each of ``n`` cases."""
    if isinstance(target, str) and target == "label":
        if labels is None or len(labels) != n:
            raise InputError("target=label: the labels of the cases are not known; choose another target.")
        try:
            return [int(label) for label in labels]
        except (TypeError, ValueError) as error:
            raise InputError("labels: expected the number of an output for each case.") from error
    if isinstance(target, str) and target in TARGETS:
        return target
    try:
        indices: Any = target
        one_per_case = np.ndim(indices) == 1 and not isinstance(target, str)
        outputs = [operator.index(index) for index in indices] if one_per_case else [operator.index(indices)] * n
    except TypeError:
        outputs = []
    if isinstance(target, bool) or not outputs:
        raise InputError(
            f"target={target}: expected one of {', '.join(TARGETS)}, or the number of an output, or one for each case."
        )
    if len(outputs) != n:
        raise InputError(f"target has {len(outputs)} outputs for {n} cases, expected one for each.")
    return outputs


def _target_weights(logits: Tensor, target: str | Sequence[int]) -> Tensor:
    """Weights (1, -1 or 0) of the outputs [batch, outputs] in a target, given by name or as an output for each case."""
    batch, outputs = logits.shape
    classes = max(outputs, 2)
    if target in ("difference", "decision"):
        weights = (_one_hot([REDUCED] * batch, classes) - _one_hot([NORMAL] * batch, classes))[:, -outputs:].to(logits)
        if target == "decision":
            log_odds = logits[:, REDUCED] - logits[:, NORMAL] if outputs > 1 else logits[:, 0]
            weights = torch.where(log_odds > 0, 1, -1)[:, None] * weights
        return weights
    if target == "predicted":
        numbers = (logits.argmax(dim=1) if outputs > 1 else (logits[:, 0] > 0).long()).tolist()
    elif isinstance(target, str):
        numbers = [NORMAL if target == "normal" else REDUCED] * batch
    else:
        numbers = target
    outside = [number for number in numbers if not 0 <= number < classes]
    if outside:
        raise InputError(f"target={outside[0]}: there is no class {outside[0]}, the network has {classes} (from 0).")
    weights = _one_hot(numbers, classes)
    if outputs == 1:
        weights = weights[:, REDUCED:] - weights[:, :REDUCED]
    return weights.to(logits)


def _one_hot(numbers: Sequence[int], classes: int) -> Tensor:
    return nn.functional.one_hot(torch.tensor(numbers, device="cpu"), classes)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Enable gradients, disable autocast and compute float32 in full precision, whatever PyTorch's settings are."""
    precisions = _precisions()
    before = [getattr(backend, name) for backend, name, _ in precisions]
    try:
        for backend, name, exact in precisions:
            setattr(backend, name, exact)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (backend, name, _), value in zip(precisions, before):
            setattr(backend, name, value)


def _precisions() -> list[tuple[object, str, object]]:
    """PyTorch's settings for the precision of float32 products: object, attribute, and the value for full precision."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    if not hasattr(cuda.matmul, "fp32_precision"):  # before PyTorch 2.9
        return [(cuda.matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    backends = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return [(backend, "fp32_precision", "ieee") for backend in backends]
