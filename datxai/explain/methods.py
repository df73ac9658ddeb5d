"""Attribution methods that are not composites of rules: path, noise, feature map and perturbation methods.

Each explains one case: from a `Decision` and its input ``x`` [1, channels, X, Y, Z] (any number of axes), it computes a
map of the same shape. Keyword arguments are the options that a user may choose. The network processes ``at_once``
volumes at a time, `LIGHTER` times as many without gradients, which affects only the speed. Random numbers are drawn
from the method's ``seed``, the same for every case.

A *baseline* is the intensity that stands for absence: 0 is no counts at all; in a volume scaled by its reference
region, 1 is non-specific uptake. It may also be a whole input, such as the mean scan: a tensor like ``x``. Methods that
remove parcels share a parcel's attribution evenly among its voxels, so that the sum of a map over any set of parcels is
the attribution of these parcels.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product, takewhile
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain import graph
from datxai.explain._zennit import types
from datxai.explain.answers import Answers
from datxai.explain.layers import ELEMENTWISE, computes_as_defined, has_hooks, is_plain, keeps_cases_apart
from datxai.explain.network import MIXES, answer, are_close, gradient, note, note_mixing, require_way_back, run
from datxai.explain.parcels import make_blocks, make_supervoxels

LIGHTER = 4  # without gradients, activations are not kept: this many times as many inputs take the same memory
_DOUBLE_CPU = {"dtype": torch.float64, "device": "cpu"}  # explicit, as the user may have changed PyTorch's defaults


class Decision(nn.Module):
    """The score that is explained: the sum over k of seed_k times output k of ``model``, one number per input [batch].

    ``answers``, if given, replaces calls of the network when no gradient is taken.
    """

    def __init__(self, model: nn.Module, seed: Tensor, answers: Answers | None = None):
        super().__init__()
        self.model, self.seed, self.answers = model, seed, answers

    def forward(self, x: Tensor) -> Tensor:
        """The decision [batch]."""
        predict = answer if self.answers is None or torch.is_grad_enabled() else self.answers
        outputs = predict(self.model, x)
        return outputs.reshape(len(x), -1) @ self.seed


def integrate_gradients(
    decision: Decision, x: Tensor, at_once: int, *, n_steps: int = 32, baseline: float | Tensor = 0.0
) -> Tensor:
    """(x - baseline) times the mean gradient along the straight path from the baseline (Sundararajan et al. 2017).

    arXiv 1703.01365. The mean is computed by Gauss-Legendre quadrature at ``n_steps`` points. The sum of the map
    approaches the difference of the decision between input and baseline.
    """
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    nodes, weights = (torch.as_tensor(values, dtype=x.dtype, device=x.device) / 2 for values in (nodes, weights))
    total = torch.zeros_like(x)
    for node, weight in zip((0.5 + nodes).split(at_once), weights.split(at_once)):
        gradients = _gradients(decision, baseline + _like(node, x) * (x - baseline))
        total += (_like(weight, x) * gradients).sum(dim=0, keepdim=True)
    return (x - baseline) * total


def smooth_gradients(
    decision: Decision, x: Tensor, at_once: int, *, n_samples: int = 25, noise: float = 0.1, seed: int = 0
) -> Tensor:
    """Mean gradient over inputs with Gaussian noise of ``noise`` times the case's range (Smilkov et al. 2017).

    arXiv 1706.03825.
    """
    deviation, total = noise * (x.max() - x.min()), torch.zeros_like(x)
    generator = _generator(seed)
    for count in _counts(n_samples, at_once):
        draws = [torch.randn(x.shape[1:], generator=generator, dtype=x.dtype, device="cpu") for _ in range(count)]
        total += _gradients(decision, x + deviation * torch.stack(draws).to(x.device)).sum(dim=0, keepdim=True)
    return total / n_samples


def propagate_differences(decision: Decision, x: Tensor, at_once: int, *, baseline: float | Tensor = 0.0) -> Tensor:
    """DeepLIFT's rescale rule (Shrikumar et al. 2017, arXiv 1704.02685), by captum.

    The sum of the map is the difference of the decision between input and baseline. Captum supports activations and
    pooling that are modules used once; raises InputError for a network whose map does not have that sum.
    """
    try:
        from captum.attr import DeepLift
    except ImportError as error:
        raise InputError(
            "attribution.method=deep_lift needs captum, which is not installed: pip install 'datxai[methods]'."
        ) from error
    for name, module in decision.model.named_modules():
        replaced = type(module) in (*ELEMENTWISE, *types.MaxPool.__subclass__)  # captum goes by the class
        if replaced and (has_hooks(module) or not computes_as_defined(module)):
            raise InputError(
                f"attribution.method=deep_lift: layer {name} ({type(module).__name__}) has hooks or its own "
                f"forward, but captum goes by its class; choose another method, such as integrated_gradients."
            )
    reference = _absent(baseline, x)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting forward, backward hooks")  # `attribute` undoes them
            relevance = DeepLift(decision).attribute(x.detach().requires_grad_(), reference).detach()
    except Exception as error:  # captum raises many types for networks that it does not support
        require_way_back(decision(x.detach().requires_grad_()).requires_grad)
        if isinstance(error, InputError):
            raise
        if "used more than once" not in str(error):
            raise InputError(
                f"attribution.method=deep_lift: captum cannot follow this network ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); choose another method, such as integrated_gradients."
            ) from error
        relevance = None
    if relevance is not None:
        with torch.no_grad():
            expected = decision(x) - decision(reference)
        missing = (relevance.sum() - expected).abs()
        if missing <= torch.finfo(x.dtype).eps ** 0.5 * relevance.abs().sum():  # rounding only
            return relevance
    raise InputError(
        "attribution.method=deep_lift: the map does not sum to the difference of the decision. The network has "
        "activations or pooling that are not modules, are used more than once, or have multipliers in captum that do "
        "not add up (GELU, SiLU, max pooling with some baselines), or it multiplies values that depend on the input; "
        "choose another method, such as integrated_gradients."
    )


def weigh_feature_maps(decision: Decision, x: Tensor, at_once: int, *, layer: str | None = None) -> Tensor:
    """Grad-CAM: feature maps weighted by their mean gradients, rectified (Selvaraju et al. 2017).

    doi 10.1109/ICCV.2017.74. ``layer`` is a module's name; by default the last convolution with its batch norm and
    activation, or, if branches bypass that, the module in which they meet. The map of the layer is interpolated
    linearly, with each unit at the centre of its receptive field (`datxai.explain.graph`): the units of unpadded
    convolutions do not span the whole input, so their map must not be stretched over it. Half a step beyond the
    outermost units the map is zero. Raises InputError if the position of the layer's units is unknown.
    """
    x = x.detach().requires_grad_()
    score, layers = _trace_layers(decision, x)
    require_way_back(score.requires_grad)
    name = layer or _choose_layer(decision, score, x, layers)
    if name is None or name not in layers or layers[name].reason:
        _refuse_layer(layer, layers)
    features = layers[name]
    slope = gradient(score, features.output)
    sizes = [n for n, _ in features.atoms]
    output, slope = (tensor.detach().reshape(sizes) for tensor in (features.output, slope))
    spatial = [number for number, (_, place) in enumerate(features.atoms) if place]
    cam = output * slope.mean(dim=spatial, keepdim=True)
    channels = [number for number in range(len(sizes)) if number not in spatial]
    cam = (cam.sum(dim=channels) if channels else cam).relu()
    order = [place.axis for _, place in features.atoms if place]
    cam = cam.permute([order.index(axis) for axis in sorted(order)])
    for axis, length in enumerate(x.shape[2:], start=2):
        place = features.place_of(axis)
        cam = cam.unsqueeze(axis - 2) if place is None else _spread_units(cam, axis - 2, length, place)
    return cam.expand_as(x)


def _spread_units(cam: Tensor, axis: int, length: int, place: graph.Place) -> Tensor:
    """Interpolate a map of units linearly to the ``length`` voxels of one axis, between the units' centres."""
    n, double = cam.shape[axis], {"dtype": torch.float64, "device": cam.device}
    position = (torch.arange(length, **double) - place.start) / place.step  # of each voxel, in units
    weights = (1 - (position.clamp(0, n - 1)[:, None] - torch.arange(n, **double)).abs()).relu()
    weights *= ((position >= -0.5) & (position <= n - 0.5))[:, None]
    return (cam.movedim(axis, -1) @ weights.T.to(cam.dtype)).movedim(-1, axis)


def _refuse_layer(layer: str | None, layers: Mapping[str, _Layer]) -> NoReturn:
    """Raise an InputError that says why a layer has no map over the voxels, or none was chosen, and which have one."""
    names = [name for name, traced in layers.items() if not traced.reason]
    if layer is not None and layer in layers:
        reason = layers[layer].reason
    elif layer is None and names:
        reason = "no convolution is the last that the whole decision passes through at a known place"
    else:
        reason = "expected a layer that outputs maps over the input's axes"
    advice = f"name one such as {', '.join(names[-8:])}." if names else "this network has none."
    raise InputError(f"attribution.options.layer={layer}: {reason}; {advice}")


def occlude(
    decision: Decision,
    x: Tensor,
    at_once: int,
    *,
    parcels: ArrayLike | None,
    block: int = 5,
    baseline: float | Tensor = 0.0,
) -> Tensor:
    """The drop of the decision when a parcel is set to the baseline (Zeiler and Fergus 2014).

    doi 10.1007/978-3-319-10590-1_53. Without parcels: blocks with an edge of ``block`` voxels.
    """
    index, sizes = _index(make_blocks(x.shape[2:], block) if parcels is None else parcels, x)
    scores = _score_without_each(decision, x, index, baseline, at_once)
    return _spread(scores[0] - scores[1:], index, sizes, x)


def fit_surrogate(
    decision: Decision,
    x: Tensor,
    at_once: int,
    *,
    parcels: ArrayLike | None,
    n_samples: int = 500,
    n_supervoxels: int = 150,
    kernel_width: float = 0.25,
    ridge: float = 1.0,
    baseline: float | Tensor = 0.0,
    seed: int = 0,
) -> Tensor:
    """LIME: the weights of a linear surrogate over random subsets of parcels (Ribeiro et al. 2016).

    doi 10.1145/2939672.2939778; in DAT-SPECT: Magesh et al. 2020, doi 10.1016/j.compbiomed.2020.104041. As in the
    authors' package, the first subset has all parcels, others have each with probability one half, a subset's weight is
    sqrt(exp(-(d / kernel_width)^2)) with its cosine distance d from the full set, and the fit has an L2 penalty
    ``ridge``. Without parcels: supervoxels of the case.
    """
    from sklearn.linear_model import Ridge

    index, sizes = _choose_parcels(parcels, x, n_supervoxels)
    n = len(sizes) - 1
    kept = _draw(n_samples, n, _generator(seed)) < 0.5
    kept[0] = True
    scores = _score_coalitions(decision, x, index, kept, baseline, at_once)
    distance = 1 - np.sqrt(kept.numpy().mean(axis=1))
    weights = np.sqrt(np.exp(-((distance / kernel_width) ** 2)))
    surrogate = Ridge(alpha=ridge).fit(kept.double().numpy(), scores.numpy(), sample_weight=weights)
    return _spread(torch.from_numpy(surrogate.coef_), index, sizes, x)


def estimate_shapley_values(
    decision: Decision,
    x: Tensor,
    at_once: int,
    *,
    parcels: ArrayLike | None,
    n_samples: int = 500,
    n_supervoxels: int = 150,
    baseline: float | Tensor = 0.0,
    seed: int = 0,
) -> Tensor:
    """Kernel SHAP: Shapley values of parcels, by weighted least squares (Lundberg and Lee 2017, arXiv 1705.07874).

    Exact if ``n_samples`` suffices for every subset of parcels. Otherwise subsets are drawn from the Shapley kernel,
    each with its complement (Covert and Lee 2021, arXiv 2012.01536). The values sum to the difference of the decision
    between input and baseline by construction. Without parcels: supervoxels of the case.
    """
    index, sizes = _choose_parcels(parcels, x, n_supervoxels)
    n = len(sizes) - 1
    if n < 2 or n_samples < 2 * n:
        raise InputError(
            f"attribution.method=kernel_shap: expected two or more parcels and at least twice as many samples, got "
            f"{n} parcels and n_samples={n_samples}."
        )
    kept, weights = _draw_coalitions(n, n_samples, seed)
    empty_and_full = torch.tensor([[False] * n, [True] * n], device="cpu")
    scores = _score_coalitions(decision, x, index, torch.cat([empty_and_full, kept]), baseline, at_once)
    empty, full, scores = scores[0], scores[1], scores[2:]
    z, root = kept.double(), weights.sqrt()[:, None]
    target = scores - empty - z[:, -1] * (full - empty)
    design = (z[:, :-1] - z[:, -1:]) * root
    values = torch.linalg.lstsq(design, target[:, None] * root, driver="gelsd").solution[:, 0]
    return _spread(torch.cat([values, (full - empty - values.sum())[None]]), index, sizes, x)


METHODS: dict[str, Callable[..., Tensor]] = {
    "integrated_gradients": integrate_gradients,
    "smoothgrad": smooth_gradients,
    "deep_lift": propagate_differences,
    "grad_cam": weigh_feature_maps,
    "occlusion": occlude,
    "lime": fit_surrogate,
    "kernel_shap": estimate_shapley_values,
}
_POSITIVE = {"n_steps", "n_samples", "n_supervoxels", "block", "noise", "kernel_width"}
_NOT_NEGATIVE = {"seed", "ridge"}


def options_of(method: str) -> dict:
    """The options of a method with their defaults; methods that are composites of rules have none."""
    if method not in METHODS:
        return {}
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "parcels"}


def takes_parcels(method: str) -> bool:
    """Whether the method removes parcels of the input."""
    return method in METHODS and "parcels" in inspect.signature(METHODS[method]).parameters


def check_options(method: str, options: Mapping) -> None:
    """Raise InputError for options that the method does not have, and for values of another type than the default."""
    defaults = options_of(method)
    if not isinstance(options, Mapping):
        raise InputError(f"attribution.options={options}: expected names with values, as in {{n_samples: 50}}.")
    for name, value in options.items():
        where = f"attribution.options.{name}={value}"
        if name not in defaults:
            expected = f"some of {', '.join(defaults)}" if defaults else "no options"
            raise InputError(f"{where}: attribution.method={method} takes {expected}.")
        default = defaults[name]
        if name == "baseline" and isinstance(value, Tensor):
            if value.is_complex() or not torch.isfinite(value).all():
                raise InputError("attribution.options.baseline: expected finite numbers.")
        elif default is None:
            if value is not None and not isinstance(value, str):
                raise InputError(f"{where}: expected a layer's name.")
        elif isinstance(value, bool) or not isinstance(value, (int, type(default))) or not math.isfinite(value):
            raise InputError(f"{where}: expected a {'whole ' if isinstance(default, int) else ''}number.")
        elif (name in _POSITIVE and value <= 0) or (name in _NOT_NEGATIVE and value < 0):
            raise InputError(f"{where}: expected more than zero{'' if name in _POSITIVE else ', or zero'}.")


def _gradients(decision: Decision, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    score = decision(x)
    if not keeps_cases_apart(decision.model):
        note_mixing(decision, x.detach(), score.detach())
    return gradient(score, x)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _draw(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniform random numbers that do not depend on PyTorch's default data type and device."""
    return torch.rand(rows, columns, generator=generator, dtype=torch.float32, device="cpu")


def _like(values: Tensor, x: Tensor) -> Tensor:
    """Values [n], shaped to broadcast against inputs [n, ...]."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _absent(baseline: float | Tensor, x: Tensor) -> Tensor:
    """The input with all voxels at the baseline, like ``x`` [1, ...]."""
    return baseline.clone() if isinstance(baseline, Tensor) else torch.full_like(x, baseline)


def _counts(total: int, at_once: int) -> list[int]:
    return [min(at_once, total - start) for start in range(0, total, at_once)]


def _choose_parcels(parcels: ArrayLike | None, x: Tensor, n_supervoxels: int) -> tuple[Tensor, Tensor]:
    """The `_index` of what LIME and Kernel SHAP remove: the parcels, or by default supervoxels of the case."""
    if parcels is None:
        mean = x[0].mean(dim=0)
        parcels = make_supervoxels(mean.to(torch.promote_types(mean.dtype, torch.float32)).cpu().numpy(), n_supervoxels)
    return _index(parcels, x)


def _index(parcels: ArrayLike, x: Tensor) -> tuple[Tensor, Tensor]:
    """Parcel of each voxel [X, Y, Z], numbered from 1 without gaps (0: none), and the number of voxels of each."""
    array = np.asarray(parcels)
    if array.shape != x.shape[2:]:
        raise InputError(f"parcels are of shape {array.shape}, expected {tuple(x.shape[2:])}, the input's.")
    whole = array.dtype.kind in "biuf" and np.isfinite(array).all() and (array == np.round(array)).all()
    labels = torch.from_numpy(array.astype(np.int64) if whole else np.full(array.shape, -1))  # negative: refused below
    numbers, index = torch.unique(labels, return_inverse=True)
    if numbers[0] < 0 or not (numbers > 0).any():
        raise InputError("parcels: expected whole numbers, 0 for no parcel, and at least one parcel.")
    index = index + (numbers[0] > 0)
    return index.to(x.device), torch.bincount(index.flatten(), minlength=2)


def _score_coalitions(
    decision: Decision, x: Tensor, index: Tensor, kept: Tensor, baseline: float | Tensor, at_once: int
) -> Tensor:
    """The decision [n], float64, for each set of parcels ``kept`` [n, parcels], with the others at the baseline."""
    kept = nn.functional.pad(kept, (1, 0), value=True).to(x.device)
    absent = _absent(baseline, x)
    batches = kept.split(LIGHTER * at_once)
    with torch.no_grad():
        scores = [decision(torch.where(batch[:, index].unsqueeze(1), x, absent)) for batch in batches]
        alone = decision(x)
    scores = torch.cat(scores)
    if not scores.isfinite().all():
        raise InputError(
            "the network's answers without some parcels are not finite, so the map would not be either; look for NaN "
            "or infinity in the input and in the weights."
        )
    if not are_close(scores[kept.all(dim=1)], alone, scores, x.dtype):
        note(MIXES)
    return scores.double().cpu()


def _score_without_each(decision: Decision, x: Tensor, index: Tensor, baseline: float | Tensor, at_once: int) -> Tensor:
    """The decision [1 + parcels], float64, for the unchanged case, then with each parcel in turn at the baseline.

    Layers whose units see only a few voxels run only around the parcel, provided that this gives the same decision for
    the unchanged case and for the largest parcel.
    """
    n = int(index.max())
    whole = torch.ones(1, n, dtype=torch.bool, device="cpu")
    without = ~torch.eye(n, dtype=torch.bool, device="cpu")
    first, rest, reach = _split_local(decision.model, x.ndim - 2)
    if len(first):
        largest = int(torch.bincount(index.flatten())[1:].argmax())
        reference = _score_coalitions(decision, x, index, torch.cat([whole, without[[largest]]]), baseline, at_once)
        scores = _score_around_each(first, Decision(rest, decision.seed), reach, x, index, baseline, at_once)
        if are_close(scores[[0, 1 + largest]].to(x.dtype), reference.to(x.dtype), reference.to(x.dtype)):
            return scores
    return _score_coalitions(decision, x, index, torch.cat([whole, without]), baseline, at_once)


def _score_around_each(
    first: nn.Module,
    rest: Decision,
    reach: list[int],
    x: Tensor,
    index: Tensor,
    baseline: float | Tensor,
    at_once: int,
) -> Tensor:
    """`_score_without_each`, where unit i of ``first`` sees voxels i to i + ``reach`` along each axis."""
    from scipy.ndimage import find_objects

    absent = _absent(baseline, x)

    def without(number: int, box: tuple[slice, ...]) -> Tensor:
        around = tuple(slice(max(side.start - far, 0), side.stop + far) for side, far in zip(box, reach))
        changed = run(first, torch.where(index[around] == number, absent[(..., *around)], x[(..., *around)]))
        place = (slice(side.start, side.start + n) for side, n in zip(around, changed.shape[2:]))
        features = whole.clone()
        features[(..., *place)] = changed
        return features

    boxes = list(enumerate(find_objects(index.cpu().numpy()), start=1))
    with torch.no_grad():
        whole = run(first, x)
        scores = [rest(whole)]
        for start in range(0, len(boxes), LIGHTER * at_once):
            scores.append(rest(torch.cat([without(*box) for box in boxes[start : start + LIGHTER * at_once]])))
    return torch.cat(scores).double().cpu()


_LOCAL_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _split_local(model: nn.Module, axes: int) -> tuple[nn.Sequential, nn.Module, list[int]]:
    """Split a network into local layers and the rest, and return the reach of the local layers along each axis.

    Local layers are the unpadded convolutions of stride one and the activations that a `torch.nn.Sequential` begins
    with. Their unit i sees voxels i to i + reach.
    """
    if not (isinstance(model, nn.Sequential) and is_plain(model, nn.Sequential)):
        return nn.Sequential(), model, []
    n = len(list(takewhile(_is_local, model)))
    first, rest = model[:n], model[n:]
    assert isinstance(first, nn.Sequential)  # so is every slice of one
    kernels = [layer for layer in first if isinstance(layer, _LOCAL_CONVOLUTIONS)]
    reach = [sum(layer.dilation[axis] * (layer.kernel_size[axis] - 1) for layer in kernels) for axis in range(axes)]
    return first, rest, reach


def _is_local(layer: Any) -> bool:
    if is_plain(layer, *_LOCAL_CONVOLUTIONS):
        padded = layer.padding != "valid" and any(layer.padding)
        return not padded and set(layer.stride) == {1}
    return is_plain(layer, *ELEMENTWISE)


def _spread(values: Tensor, index: Tensor, sizes: Tensor, x: Tensor) -> Tensor:
    """A map like ``x`` in which each parcel's value is shared equally among its voxels and channels."""
    by_voxel = torch.cat([torch.zeros(1, **_DOUBLE_CPU), values.double() / sizes[1:].cpu()]) / x.shape[1]
    return by_voxel.to(x)[index].expand_as(x)


def _draw_coalitions(n: int, n_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sets of parcels [samples, n], neither empty nor full, and their Shapley kernel weights [samples]."""
    if 2**n - 2 <= n_samples:
        kept = torch.tensor(list(product([False, True], repeat=n))[1:-1], device="cpu")
        weights = [(n - 1) / (math.comb(n, k) * k * (n - k)) for k in kept.sum(dim=1).tolist()]
        return kept, torch.tensor(weights, **_DOUBLE_CPU)
    generator = _generator(seed)
    sizes = torch.arange(1, n, **_DOUBLE_CPU)
    n_kept = 1 + torch.multinomial(1 / (sizes * (n - sizes)), n_samples // 2, replacement=True, generator=generator)
    ranks = _draw(n_samples // 2, n, generator).argsort(dim=1).argsort(dim=1)
    kept = ranks < n_kept[:, None]
    return torch.cat([kept, ~kept]), torch.ones(2 * len(kept), **_DOUBLE_CPU)


@dataclass(frozen=True)
class _Layer:
    """The last output of a layer, and where its units lie; ``reason``: why that is unknown."""

    output: Tensor
    atoms: tuple[graph.Atom, ...]
    reason: str = ""

    def place_of(self, axis: int) -> graph.Place | None:
        return next((place for _, place in self.atoms if place and place.axis == axis), None)


def _trace_layers(decision: Decision, x: Tensor) -> tuple[Tensor, dict[str, _Layer]]:
    """The decision, and the layers by name that output one tensor which depends on ``x``, in order of execution."""
    outputs: dict[str, list[Tensor]] = {}

    def keep(name: str, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        outputs[name] = [*outputs.pop(name, []), output]
        return output.clone()  # the next layer may modify it in place

    named = [(name, module) for name, module in decision.model.named_modules() if name]
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: keep(name, output))
        for name, module in named
    ]
    try:
        score = decision(x)
    finally:
        for handle in handles:
            handle.remove()
    if not score.requires_grad:
        return score, {}
    locate = graph.locate(score, x)
    return score, {name: _locate_layer(tensors, x, locate) for name, tensors in outputs.items()}


def _locate_layer(outputs: list[Tensor], x: Tensor, locate: Callable[[Tensor], graph.Axes | None]) -> _Layer:
    """A layer from its outputs; only the last is used, and the others must lead to it."""
    *earlier, last = outputs
    axes = locate(last) or ()
    atoms = tuple(atom for axis in axes for atom in axis)
    located = [place.axis for _, place in atoms if place]
    required = [axis for axis, length in enumerate(x.shape) if axis > 1 and length > 1]
    if len(located) != len(set(located)) or not set(required) <= set(located):
        return _Layer(last, atoms, "it is unknown where its units lie in the input")
    if not all(graph.leads_to(output, last) for output in earlier):
        return _Layer(last, atoms, "it runs in several branches")
    return _Layer(last, atoms)


def _choose_layer(decision: Decision, score: Tensor, x: Tensor, traced: Mapping[str, _Layer]) -> str | None:
    """The last convolution with its batch norm and activation, if the decision depends on the input only through it.

    If branches bypass it, the first module after them that contains convolutions.
    """
    modules = dict(decision.model.named_modules())
    usable = [
        name for name, layer in traced.items() if not layer.reason and graph.passes_everything(score, x, layer.output)
    ]
    layer_types = (types.Convolution, types.BatchNorm, *ELEMENTWISE)
    layers = [name for name in usable if isinstance(modules[name], layer_types)]
    blocks = [name for name in usable if any(isinstance(part, types.Convolution) for part in modules[name].modules())]
    return next(iter([*reversed(layers), *blocks]), None)
