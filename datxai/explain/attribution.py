"""Explaining a decision: the relevance of every voxel for an output of a network, and where relevance was lost."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain._zennit import canonizers as zennits
from datxai.explain._zennit import types
from datxai.explain.answers import Answers
from datxai.explain.batches import WORTHWHILE
from datxai.explain.composite import RuleComposite, build_composite
from datxai.explain.ledger import Ledger
from datxai.explain.methods import METHODS as BY_CASE
from datxai.explain.methods import Decision, check_options, takes_parcels
from datxai.explain.untouched import unchanged

NORMAL, REDUCED = 0, 1  # labels, and outputs of the network
_GRADIENT = {"match": ["*"], "rule": "gradient"}
_FIXED = {  # methods that are a composite of their own
    "gradient": [_GRADIENT],
    "input_x_gradient": [_GRADIENT],
    "guided_backprop": [{"match": ["type:ReLU"], "rule": "guided_backprop"}, _GRADIENT],
}
METHODS = ("lrp", *_FIXED, *BY_CASE)
STARTS = ("logit", "one")
CANONIZED = 1e-3  # relative: how far a network's logits may move when it is rewritten; Zennit's merges leave an epsilon
TARGETS = ("predicted", "normal", "reduced", "label", "difference", "decision")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Attribution maps of a batch and how they came about.

    Attributes
    ----------
    relevance : tensor like the input [batch, 1, X, Y, Z]
    logits : tensor [batch, outputs]
    seed : tensor [batch, outputs]
        The relevance that each output started with; its sum over outputs is what went into the network.
    ledgers : list [batch] of lists of dicts
        Per layer with a rule other than pass, from the output to the input: layer, type, rule, relevance_in,
        relevance_out, absorbed = in - out, and of that by_bias and by_stabiliser. Where relevance came or went outside
        of these layers, a last row ``between layers``, whose absorbed is the seed less the map and all other absorbed.
        Empty but for LRP.
    """

    relevance: Tensor
    logits: Tensor
    seed: Tensor
    ledgers: list[list[dict]]

    @property
    def seeds(self) -> list[list[float]]:
        """The seed as numbers: per case, what each output started with."""
        return self.seed.tolist()


def attribute(
    model: nn.Module,
    x: Tensor,
    method: str = "lrp",
    composite: Sequence[Mapping] = (),
    canonizers: Sequence[str | zennits.Canonizer] = (),
    target: str | int | Sequence[int] | Tensor = "predicted",
    labels: Sequence[int] | None = None,
    start: str | None = None,
    ledger: bool = True,
    rules: str = "fast",
    precision: str = "float32",
    at_once: int | None = None,
    parcels: Sequence | None = None,
    options: Mapping[str, object] | None = None,
    bias: bool = True,
    own_rules: Mapping[str, type] | None = None,
    answers: Answers | None = None,
) -> Explanation:
    """Attribute an output of ``model`` to the voxels of ``x``.

    The model runs in evaluation mode, without autocast and without TF32, and is afterwards as it was before, also
    after an exception. The attribution of a case does not depend on the other cases of the batch.

    Parameters
    ----------
    model
        From [batch, 1, X, Y, Z] (or any input) to logits [batch, outputs]. One output alone is the log-odds of
        class 1: class 0 is its negative.
    x
        Input; the relevance has its shape, type and device.
    method
        ``lrp``, through the rules of ``composite``; ``gradient``, ``input_x_gradient`` and ``guided_backprop``
        (Springenberg et al. 2015, arXiv 1412.6806), which are composites of their own; or one of
        `datxai.explain.methods.METHODS`, which explain case by case. Targets and starts are the same for all.
    composite, canonizers, rules, precision, bias, own_rules
        Of ``lrp``, see `datxai.explain.composite.build_composite`. The rule zbox takes each case's own range if none
        is given.
    target
        The output explained: ``predicted``, that of the largest logit; ``normal`` (0), ``reduced`` (1) or any
        number of an output, or one for each case [batch]; ``label``, that of each case's label; ``difference``, logit
        1 minus logit 0; ``decision``, the difference in favour of what was decided: the larger of both logits minus
        the smaller.
    labels
        [batch], for the target ``label``.
    start
        The seed is w_k times the ``logit`` l_k, or times ``one``, where w_k is 1 for the explained output and 0 for
        others; for the difference w = (-1, +1). The map is linear in the seed: with ``logit``, the map of the
        difference is l_1 times the map of output 1 (start one) minus l_0 times that of output 0, and starts with
        l_1 - l_0 in all; with ``one`` it starts with 1 - 1 = 0. None: ``logit`` for lrp, ``one`` for other methods,
        whose signs would turn with that of the logit.
    ledger
        Whether to record what each layer hands on.
    at_once
        How many volumes are worked on together; None: as many as bring something (`datxai.explain.batches`).
    parcels
        Whole numbers (X, Y, Z), or per case [batch, X, Y, Z], 0 for what belongs to no parcel and is left alone: what
        ``occlusion``, ``lime`` and ``kernel_shap`` take away as a whole. None: parts of each method's own choice.
        Other methods do not look at them.
    options
        Of the methods in `datxai.explain.methods`: its keyword arguments, such as ``{"n_steps": 50}``. A ``baseline``
        is a number, or a tensor that broadcasts against ``x``, such as the mean scan.
    answers
        What networks have answered so far; where a method asks a network without a gradient for an input that is among
        it, the answer is taken from there. For maps of the same inputs, of other outputs or of networks that share
        layers.

    Raises
    ------
    InputError
        For settings that are not among those above, for an input that is no batch, a network that does not answer
        with one tensor of logits or that is compiled, for canonizers that change what the network says, and see
        `build_composite`.
    """
    if method not in METHODS:
        raise InputError(f"attribution.method={method}: expected one of {', '.join(METHODS)}.")
    start = start or ("logit" if method == "lrp" else "one")
    if start not in STARTS:
        raise InputError(f"attribution.start={start}: expected logit or one.")
    _require_explainable(model, x)
    target = _read_target(target, labels, len(x))
    if method != "lrp" and precision != "float32":
        raise InputError(f"attribution.precision={precision}: expected float32 for attribution.method={method}.")
    options = dict(options or {})
    check_options(method, options)
    _require_axes(method, x)
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once={at_once}: expected one or more, or None.")
    at_once = at_once or WORTHWHILE.get(x.device.type, 1)
    lines = composite if method == "lrp" else _FIXED.get(method)
    with_ledger = ledger and method == "lrp"
    found = []
    with unchanged(model), _exact(x.device):
        for begin in range(0, len(x), at_once):
            cases = slice(begin, begin + at_once)
            some = x[cases].detach().clone()

            def seed_of(logits: Tensor, cases: slice = cases) -> Tensor:
                weights = _target_weights(logits, target if isinstance(target, str) else target[cases])
                return weights * logits + 0.0 if start == "logit" else weights  # no -0.0 in records

            if lines is None:
                chosen = _choose_parcels(parcels, x, cases) if takes_parcels(method) else None
                found.append(
                    _explain_each(model, some, method, seed_of, at_once, chosen, _of_cases(options, x, cases), answers)
                )
            else:
                bounds = tuple(_per_case(some, extreme) for extreme in (torch.amin, torch.amax))
                chosen = (canonizers, bounds, rules, precision, bias, own_rules) if method == "lrp" else ()
                found.append(_propagate(model, some, build_composite(lines, model, *chosen), seed_of, with_ledger))
    relevance, logits, seed = (torch.cat(tensors) for tensors in list(zip(*found))[:3])
    if method == "input_x_gradient":
        relevance = relevance * x.detach()
    return Explanation(relevance, logits, seed, [rows for *_, ledgers in found for rows in ledgers])


def _propagate(
    model: nn.Module, x: Tensor, hooks: RuleComposite, seed_of: Callable[[Tensor], Tensor], with_ledger: bool
) -> tuple[Tensor, Tensor, Tensor, list[list[dict]]]:
    """Relevance, logits, seed and ledgers of some cases, through the rules of a composite."""
    x, book = x.requires_grad_(), Ledger()
    try:
        hooks.register(model)
        if with_ledger:
            book.open(hooks.layer_rules.values())
        logits = _answer(model, x)
        seed = seed_of(logits.detach())
        (relevance,) = torch.autograd.grad((logits * seed).sum(), x)  # given a seed, PyTorch would import SymPy first
    finally:
        book.close()
        canonized = hooks.is_canonized
        hooks.remove()
    if canonized:
        _require_same_answer(model, x.detach(), logits.detach(), hooks)
    return relevance, logits.detach(), seed, book.rows(seed, relevance) if with_ledger else [[] for _ in x]


def _require_same_answer(model: nn.Module, x: Tensor, logits: Tensor, hooks: RuleComposite) -> None:
    """Refuse canonizers that made another network than ``model``, which is by now as it was, of that explained."""
    with torch.no_grad():
        plain = _answer(model, x)
    precision = torch.finfo(hooks.precision or logits.dtype).eps
    apart = (logits - plain).abs().max()
    if apart > max(CANONIZED, precision**0.5) * (plain.abs().max() + 1):  # logits may be zero by chance
        names = ", ".join(canonizer.name for canonizer in hooks.canonizers if canonizer.changed)
        raise InputError(
            f"canonizers {names}: the network that they make gives other logits, {apart:.2g} apart, so its map is not "
            f"that of this network; batch norms are merged in the order of definition, which must be that of calling. "
            f"Leave the canonizer out, or hand over one of zennit.canonizers that names the layers."
        )


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    """Logits [batch, outputs] of ``model``."""
    try:
        output = model(x)
    except InputError:
        raise
    except Exception as error:
        layer = next((module for module in model.modules() if isinstance(module, types.Convolution)), None)
        if layer is None or x.ndim != len(layer.kernel_size) + 1:
            raise
        raise InputError(
            f"the network cannot take an input of shape {tuple(x.shape)} ({error}); expected [batch, channels, ...]: "
            f"add the axis of the batch, as in x[None]."
        ) from error
    if not isinstance(output, Tensor):
        raise InputError(
            f"the network answers with a {type(output).__name__}, expected one tensor of logits [batch, outputs]; "
            f"wrap it in a module that hands on its logits alone."
        )
    if output.ndim == 0 or len(output) != len(x):
        raise InputError(
            f"the network answers with shape {tuple(output.shape)} to {len(x)} cases, expected [batch, outputs]."
        )
    return output.reshape(len(x), -1)


def _explain_each(
    model: nn.Module,
    x: Tensor,
    method: str,
    seed_of: Callable[[Tensor], Tensor],
    at_once: int,
    parcels: Sequence | None,
    options: Mapping[str, object],
    answers: Answers | None,
) -> tuple[Tensor, Tensor, Tensor, list[list[dict]]]:
    """Attribution, logits, seed and empty ledgers of some cases, each explained by itself."""
    for module in model.modules():
        if getattr(module, "inplace", False):  # methods look at what it would write over; `unchanged` sets it back
            module.inplace = False
    with torch.no_grad():
        logits = _answer(model, x)
    seed = seed_of(logits)
    maps = []
    for case in range(len(x)):
        chosen = {"parcels": None if parcels is None else parcels[case]} if takes_parcels(method) else {}
        decision = Decision(model, seed[case], answers)
        own = _of_cases(options, x, slice(case, case + 1))
        maps.append(BY_CASE[method](decision, x[case : case + 1], at_once, **chosen, **own))
    return torch.cat(maps).detach(), logits, seed, [[] for _ in range(len(x))]


def _choose_parcels(parcels: Sequence | None, x: Tensor, cases: slice) -> Sequence | None:
    """The parcels of some cases, one array each; those given may be one array for all."""
    if parcels is None:
        return None
    shape = tuple(np.shape(parcels))
    if shape not in (x.shape[2:], (len(x), *x.shape[2:])):
        raise InputError(
            f"parcels are of shape {shape}, expected that of a case, {tuple(x.shape[2:])}, or one of these for each."
        )
    return parcels[cases] if len(shape) == x.ndim - 1 else [parcels] * len(x[cases])


def _of_cases(options: Mapping[str, object], x: Tensor, cases: slice) -> dict[str, object]:
    """Options for some cases of ``x``: a baseline that is a tensor may be another one for each."""
    baseline = options.get("baseline")
    if not isinstance(baseline, Tensor):
        return dict(options)
    try:
        return {**options, "baseline": baseline.detach().to(x).expand_as(x)[cases]}
    except RuntimeError as error:
        raise InputError(
            f"attribution.options.baseline is of shape {tuple(baseline.shape)}, expected a number, or a tensor that "
            f"broadcasts against the input, {tuple(x.shape)}."
        ) from error


def _require_explainable(model: nn.Module, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        what = f"a {x.dtype} tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(f"the input is {what}, expected a tensor of floating point numbers [batch, ...].")
    if not len(x):
        raise InputError(f"the input, of shape {tuple(x.shape)}, holds no case; expected one or more.")
    for module in model.modules():
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None)
        if compiled or isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                "the network is compiled (torch.compile or torch.jit), and its layers take no rules; hand over the "
                "network that was compiled, which torch.compile keeps as model._orig_mod."
            )


def _require_axes(method: str, x: Tensor) -> None:
    if x.ndim < 3 and (takes_parcels(method) or method == "grad_cam"):
        raise InputError(
            f"attribution.method={method} is for inputs with axes behind their channels, [batch, channels, ...], this "
            f"one is of shape {tuple(x.shape)}; give x[:, None] to a network that takes it, or choose another method, "
            f"such as integrated_gradients."
        )


def _read_target(
    target: str | int | Sequence[int] | Tensor, labels: Sequence[int] | None, n: int
) -> str | list[int]:
    """One of `TARGETS`, or the number of an output for each of ``n`` cases."""
    if isinstance(target, str) and target == "label":
        if labels is None or len(labels) != n:
            raise InputError("target=label: the labels of the cases are not known; choose another target.")
        return [int(label) for label in labels]
    if isinstance(target, str) and target in TARGETS:
        return target
    try:
        several = np.ndim(target) == 1 and not isinstance(target, str)
        chosen = [operator.index(number) for number in target] if several else [operator.index(target)] * n
    except TypeError:
        chosen = []
    if isinstance(target, bool) or not chosen:
        raise InputError(
            f"target={target}: expected one of {', '.join(TARGETS)}, or the number of an output, or one for each case."
        )
    if len(chosen) != n:
        raise InputError(f"target has {len(chosen)} outputs for {n} cases, expected one for each.")
    return chosen


def _target_weights(logits: Tensor, target: str | Sequence[int]) -> Tensor:
    """How much each output [batch, outputs] counts in the target, by its name or by case: 1, -1 or 0."""
    batch, outputs = logits.shape
    classes = max(outputs, 2)
    if target in ("difference", "decision"):
        weights = (_one_hot([REDUCED] * batch, classes) - _one_hot([NORMAL] * batch, classes))[:, -outputs:].to(logits)
        if target == "decision":
            log_odds = logits[:, REDUCED] - logits[:, NORMAL] if outputs > 1 else logits[:, 0]
            weights = torch.where(log_odds > 0, 1, -1)[:, None] * weights
        return weights
    if target == "predicted":
        target = (logits.argmax(dim=1) if outputs > 1 else (logits[:, 0] > 0).long()).tolist()
    elif target in ("normal", "reduced"):
        target = [NORMAL if target == "normal" else REDUCED] * batch
    outside = [number for number in target if not 0 <= number < classes]
    if outside:
        raise InputError(f"target={outside[0]}: there is no class {outside[0]}, the network has {classes} (from 0).")
    weights = _one_hot(target, classes)
    if outputs == 1:
        weights = weights[:, REDUCED:] - weights[:, :REDUCED]
    return weights.to(logits)


def _one_hot(chosen: Sequence[int], classes: int) -> Tensor:
    return nn.functional.one_hot(torch.tensor(chosen), classes)


def _per_case(x: Tensor, extreme) -> Tensor:
    return extreme(x, dim=tuple(range(1, x.ndim)), keepdim=True)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast and TF32 off."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before):
            backend.allow_tf32 = allowed
