"""Attribution methods beside those that are rules of a composite: paths, noise, feature maps, and what is taken away.

Each explains one case: a `Decision` and its input ``x`` [1, channels, X, Y, Z] (any number of axes) to a map of that
shape. Keyword arguments are the options that a user may choose. Volumes go through the network ``at_once`` at a time,
`LIGHTER` times as many where no gradient is taken, which changes nothing but speed. What draws random numbers does so
from its own ``seed``, the same for every case.

A *baseline* is the intensity that stands for absence: 0 is no counts at all; in a volume scaled by its reference
region, 1 is non-specific uptake. It may be a whole input as well, such as the mean scan: a tensor like ``x``. Methods
that take parcels away share a parcel's attribution evenly among its voxels, so that a map's sum over any set of parcels
is what these parcels did.
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

LIGHTER = 4  # times as many inputs take the same memory where no gradient needs what the layers handed on
_EXACT = {"dtype": torch.float64, "device": "cpu"}  # said wherever a tensor is made: defaults are the process's


class Decision(nn.Module):
    """What is explained: sum_k seed_k times output k of ``model``, one number per input [batch].

    ``answers``, where given, are asked in the place of the network wherever no gradient is taken.
    """

    def __init__(self, model: nn.Module, seed: Tensor, answers: Answers | None = None):
        super().__init__()
        self.model, self.seed, self.answers = model, seed, answers

    def forward(self, x: Tensor) -> Tensor:
        """The decision [batch]."""
        ask = answer if self.answers is None or torch.is_grad_enabled() else self.answers
        outputs = ask(self.model, x)
        return outputs.reshape(len(x), -1) @ self.seed


def integrate_gradients(
    decision: Decision, x: Tensor, at_once: int, *, n_steps: int = 32, baseline: float | Tensor = 0.0
) -> Tensor:
    """(x - baseline) times the mean gradient along the straight way from the baseline (Sundararajan et al. 2017).

    arXiv 1703.01365. The mean is taken by Gauss-Legendre quadrature at ``n_steps`` points. The map's sum approaches
    the decision's difference between input and baseline.
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
        drawn = [torch.randn(x.shape[1:], generator=generator, dtype=x.dtype, device="cpu") for _ in range(count)]
        total += _gradients(decision, x + deviation * torch.stack(drawn).to(x.device)).sum(dim=0, keepdim=True)
    return total / n_samples


def propagate_differences(decision: Decision, x: Tensor, at_once: int, *, baseline: float | Tensor = 0.0) -> Tensor:
    """DeepLIFT's rescale rule (Shrikumar et al. 2017, arXiv 1704.02685), by captum.

    The map's sum is the decision's difference between input and baseline. Captum sees activations and pooling that
    are modules used once; a network for which the sum does not come out is refused.
    """
    try:
        from captum.attr import DeepLift
    except ImportError as error:
        raise InputError(
            "attribution.method=deep_lift needs captum, which is not installed: pip install 'datxai[methods]'."
        ) from error
    for name, module in decision.model.named_modules():
        known = type(module) in (*ELEMENTWISE, *types.MaxPool.__subclass__)  # captum goes by the class
        if known and (has_hooks(module) or not computes_as_defined(module)):
            raise InputError(
                f"attribution.method=deep_lift: layer {name} ({type(module).__name__}) has hooks or a forward of its "
                f"own, and captum goes by its class; choose another method, such as integrated_gradients."
            )
    reference = _absent(baseline, x)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting forward, backward hooks")  # `attribute` undoes them
            relevance = DeepLift(decision).attribute(x.detach().requires_grad_(), reference).detach()
    except Exception as error:  # captum's own, of many kinds, for what it cannot follow
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
        if missing <= torch.finfo(x.dtype).eps ** 0.5 * relevance.abs().sum():  # of rounding, and no more
            return relevance
    raise InputError(
        "attribution.method=deep_lift: its multipliers do not account for the decision. The network has activations or "
        "pooling that are no modules, are used more than once, or have multipliers in captum that do not add up (GELU, "
        "SiLU, max pooling from some baselines), or multiplies what depends on the input; choose another method, such "
        "as integrated_gradients."
    )


def weigh_feature_maps(decision: Decision, x: Tensor, at_once: int, *, layer: str | None = None) -> Tensor:
    """Grad-CAM: feature maps weighted by their mean gradients, rectified (Selvaraju et al. 2017).

    doi 10.1109/ICCV.2017.74. ``layer`` is a module's name; by default the last convolution with the batch norm and
    activation behind it, or where branches pass that by, the module in which they have met. The map of a layer is
    brought to the voxels linearly, each unit at the centre of its receptive field (`datxai.explain.graph`): unpadded
    convolutions hand on less than the whole input, over which a map must not be stretched. Beyond the outermost units,
    half a step further out, it is zero. InputError for a layer of which that is not known.
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
    placed = [number for number, (_, place) in enumerate(features.atoms) if place]
    cam = output * slope.mean(dim=placed, keepdim=True)
    channels = [number for number in range(len(sizes)) if number not in placed]
    cam = (cam.sum(dim=channels) if channels else cam).relu()
    order = [place.axis for _, place in features.atoms if place]
    cam = cam.permute([order.index(axis) for axis in sorted(order)])
    for axis, length in enumerate(x.shape[2:], start=2):
        place = features.place_of(axis)
        cam = cam.unsqueeze(axis - 2) if place is None else _spread_units(cam, axis - 2, length, place)
    return cam.expand_as(x)


def _spread_units(cam: Tensor, axis: int, length: int, place: graph.Place) -> Tensor:
    """A map of units brought to the ``length`` voxels of one axis, linearly between the units' centres."""
    n, exact = cam.shape[axis], {"dtype": torch.float64, "device": cam.device}
    at = (torch.arange(length, **exact) - place.start) / place.step
    tent = (1 - (at.clamp(0, n - 1)[:, None] - torch.arange(n, **exact)).abs()).relu()
    tent *= ((at >= -0.5) & (at <= n - 0.5))[:, None]
    return (cam.movedim(axis, -1) @ tent.T.to(cam.dtype)).movedim(-1, axis)


def _refuse_layer(layer: str | None, layers: Mapping[str, _Layer]) -> NoReturn:
    """Say why a layer has no map over the voxels, or none was chosen, and which have."""
    names = [name for name, traced in layers.items() if not traced.reason]
    if layer is not None and layer in layers:
        reason = f"of {layer}, {layers[layer].reason}"
    elif layer is None and names:
        reason = "no convolution is the last that all of the decision passes through in a place that is known"
    else:
        reason = "expected a layer that hands on maps over the input's axes"
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
    """What the decision loses when a parcel is set to the baseline (Zeiler and Fergus 2014).

    doi 10.1007/978-3-319-10590-1_53. Without parcels: blocks of ``block`` voxels along each axis.
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

    doi 10.1145/2939672.2939778; of DAT-SPECT: Magesh et al. 2020, doi 10.1016/j.compbiomed.2020.104041. As in the
    authors' package, the first subset is the whole, a parcel is kept with probability one half, a subset weighs
    sqrt(exp(-(d / kernel_width)^2)) with its cosine distance d from the whole, and the fit has an L2 penalty ``ridge``.
    Without parcels: supervoxels of the case.
    """
    from sklearn.linear_model import Ridge

    index, sizes = _choose_parts(parcels, x, n_supervoxels)
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

    Exact where ``n_samples`` allows for every subset of parcels. Otherwise subsets are drawn from the Shapley kernel,
    each with its complement (Covert and Lee 2021, arXiv 2012.01536). That the values sum up to the decision's
    difference between input and baseline holds by construction. Without parcels: supervoxels of the case.
    """
    index, sizes = _choose_parts(parcels, x, n_supervoxels)
    n = len(sizes) - 1
    if n < 2 or n_samples < 2 * n:
        raise InputError(
            f"attribution.method=kernel_shap: expected two parcels or more and at least twice as many samples, there "
            f"are {n} parcels and n_samples={n_samples}."
        )
    kept, weights = _draw_coalitions(n, n_samples, seed)
    ends = torch.tensor([[False] * n, [True] * n], device="cpu")
    scores = _score_coalitions(decision, x, index, torch.cat([ends, kept]), baseline, at_once)
    nothing, whole, scores = scores[0], scores[1], scores[2:]
    z, root = kept.double(), weights.sqrt()[:, None]
    target = scores - nothing - z[:, -1] * (whole - nothing)
    design = (z[:, :-1] - z[:, -1:]) * root
    values = torch.linalg.lstsq(design, target[:, None] * root, driver="gelsd").solution[:, 0]
    return _spread(torch.cat([values, (whole - nothing - values.sum())[None]]), index, sizes, x)


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
    """The options of a method, with their defaults; none for the methods that are rules of a composite."""
    if method not in METHODS:
        return {}
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "parcels"}


def takes_parcels(method: str) -> bool:
    """Whether the method takes parts of the input away."""
    return method in METHODS and "parcels" in inspect.signature(METHODS[method]).parameters


def check_options(method: str, options: Mapping) -> None:
    """Refuse what the method does not know, and values of another kind than the defaults."""
    known = options_of(method)
    if not isinstance(options, Mapping):
        raise InputError(f"attribution.options={options}: expected names with values, as in {{n_samples: 50}}.")
    for name, value in options.items():
        where = f"attribution.options.{name}={value}"
        if name not in known:
            expected = f"some of {', '.join(known)}" if known else "no options"
            raise InputError(f"{where}: attribution.method={method} takes {expected}.")
        default = known[name]
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
    """Uniform numbers, the same whatever PyTorch's default type and device are."""
    return torch.rand(rows, columns, generator=generator, dtype=torch.float32, device="cpu")


def _like(values: Tensor, x: Tensor) -> Tensor:
    """Values [n] that broadcast against inputs [n, ...]."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _absent(baseline: float | Tensor, x: Tensor) -> Tensor:
    """The input of which everything is absent, like ``x`` [1, ...]."""
    return baseline.clone() if isinstance(baseline, Tensor) else torch.full_like(x, baseline)


def _counts(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def _choose_parts(parcels: ArrayLike | None, x: Tensor, n_supervoxels: int) -> tuple[Tensor, Tensor]:
    """What LIME and Kernel SHAP take away, as `_index` has it: the parcels, or without any the case's supervoxels."""
    if parcels is None:
        mean = x[0].mean(dim=0)
        parcels = make_supervoxels(mean.to(torch.promote_types(mean.dtype, torch.float32)).cpu().numpy(), n_supervoxels)
    return _index(parcels, x)


def _index(parcels: ArrayLike, x: Tensor) -> tuple[Tensor, Tensor]:
    """Which parcel each voxel belongs to, [X, Y, Z], numbered from 1 on without gaps; and how many voxels each has."""
    given = np.asarray(parcels)
    if given.shape != x.shape[2:]:
        raise InputError(f"parcels are of shape {given.shape}, expected {tuple(x.shape[2:])}, the input's.")
    whole = given.dtype.kind in "biuf" and np.isfinite(given).all() and (given == np.round(given)).all()
    labels = torch.from_numpy(given.astype(np.int64) if whole else np.full(given.shape, -1))  # below zero: refused
    numbers, index = torch.unique(labels, return_inverse=True)
    if numbers[0] < 0 or not (numbers > 0).any():
        raise InputError("parcels: expected whole numbers, 0 for no parcel, and at least one parcel.")
    index = index + (numbers[0] > 0)
    return index.to(x.device), torch.bincount(index.flatten(), minlength=2)


def _score_coalitions(
    decision: Decision, x: Tensor, index: Tensor, kept: Tensor, baseline: float | Tensor, at_once: int
) -> Tensor:
    """The decision [n], float64, for each set of parcels ``kept`` [n, parcels]; the others are at the baseline."""
    kept = nn.functional.pad(kept, (1, 0), value=True).to(x.device)
    absent = _absent(baseline, x)
    parts = kept.split(LIGHTER * at_once)
    with torch.no_grad():
        scores = [decision(torch.where(some[:, index].unsqueeze(1), x, absent)) for some in parts]
        alone = decision(x)
    scores = torch.cat(scores)
    if not scores.isfinite().all():
        raise InputError(
            "the network's answers without some parcels are not finite, and neither would a map be; look for NaN or "
            "infinity in the input and in the weights."
        )
    if not are_close(scores[kept.all(dim=1)], alone, scores, x.dtype):
        note(MIXES)
    return scores.double().cpu()


def _score_without_each(decision: Decision, x: Tensor, index: Tensor, baseline: float | Tensor, at_once: int) -> Tensor:
    """The decision [1 + parcels], float64, of the case as it is, and with each parcel in turn at the baseline.

    Layers whose units see a few voxels are run around the parcel alone, if that is the same for the case as it is and
    for one parcel, the largest.
    """
    n = int(index.max())
    whole = torch.ones(1, n, dtype=torch.bool, device="cpu")
    without = ~torch.eye(n, dtype=torch.bool, device="cpu")
    first, rest, reach = _split_local(decision.model, x.ndim - 2)
    if len(first):
        largest = int(torch.bincount(index.flatten())[1:].argmax())
        proof = _score_coalitions(decision, x, index, torch.cat([whole, without[[largest]]]), baseline, at_once)
        scores = _score_around_each(first, Decision(rest, decision.seed), reach, x, index, baseline, at_once)
        if are_close(scores[[0, 1 + largest]].to(x.dtype), proof.to(x.dtype), proof.to(x.dtype)):
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
    """`_score_without_each`, if units of ``first`` see no farther than ``reach`` voxels from their own place on."""
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
    """Layers whose units see a few voxels, from their own place on; what comes after these; and how far they see.

    Unpadded convolutions of stride one and activations, as far as a `torch.nn.Sequential` begins with them.
    """
    if not (isinstance(model, nn.Sequential) and is_plain(model, nn.Sequential)):
        return nn.Sequential(), model, []
    n = len(list(takewhile(_is_local, model)))
    first, rest = model[:n], model[n:]
    assert isinstance(first, nn.Sequential)  # as every slice of one is
    kernels = [layer for layer in first if isinstance(layer, _LOCAL_CONVOLUTIONS)]
    reach = [sum(layer.dilation[axis] * (layer.kernel_size[axis] - 1) for layer in kernels) for axis in range(axes)]
    return first, rest, reach


def _is_local(layer: Any) -> bool:
    if is_plain(layer, *_LOCAL_CONVOLUTIONS):
        padded = layer.padding != "valid" and any(layer.padding)
        return not padded and set(layer.stride) == {1}
    return is_plain(layer, *ELEMENTWISE)


def _spread(values: Tensor, index: Tensor, sizes: Tensor, x: Tensor) -> Tensor:
    """A map like ``x`` in which each parcel's value is shared by its voxels, in all channels alike."""
    by_voxel = torch.cat([torch.zeros(1, **_EXACT), values.double() / sizes[1:].cpu()]) / x.shape[1]
    return by_voxel.to(x)[index].expand_as(x)


def _draw_coalitions(n: int, n_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sets of parcels [samples, n], neither empty nor whole, and their weights [samples]: the Shapley kernel's."""
    if 2**n - 2 <= n_samples:
        kept = torch.tensor(list(product([False, True], repeat=n))[1:-1], device="cpu")
        weights = [(n - 1) / (math.comb(n, k) * k * (n - k)) for k in kept.sum(dim=1).tolist()]
        return kept, torch.tensor(weights, **_EXACT)
    generator = _generator(seed)
    sizes = torch.arange(1, n, **_EXACT)
    drawn = 1 + torch.multinomial(1 / (sizes * (n - sizes)), n_samples // 2, replacement=True, generator=generator)
    ranks = _draw(n_samples // 2, n, generator).argsort(dim=1).argsort(dim=1)
    kept = ranks < drawn[:, None]
    return torch.cat([kept, ~kept]), torch.ones(2 * len(kept), **_EXACT)


@dataclass(frozen=True)
class _Layer:
    """What a layer handed on last, and where its units lie; ``reason`` says why that is not known."""

    output: Tensor
    atoms: tuple[graph.Atom, ...]
    reason: str = ""

    def place_of(self, axis: int) -> graph.Place | None:
        return next((place for _, place in self.atoms if place and place.axis == axis), None)


def _trace_layers(decision: Decision, x: Tensor) -> tuple[Tensor, dict[str, _Layer]]:
    """The decision; and the layers that handed on one tensor made of ``x``, by name, in order of execution."""
    outputs: dict[str, list[Tensor]] = {}

    def keep(name: str, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        outputs[name] = [*outputs.pop(name, []), output]
        return output.clone()  # what comes next may write into it

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
    return score, {name: _place(name, made, x, locate) for name, made in outputs.items()}


def _place(name: str, outputs: list[Tensor], x: Tensor, locate: Callable[[Tensor], graph.Axes | None]) -> _Layer:
    """A layer by its outputs: the last, if that is made of the others."""
    *earlier, last = outputs
    axes = locate(last) or ()
    atoms = tuple(atom for axis in axes for atom in axis)
    places = [place.axis for _, place in atoms if place]
    wanted = [axis for axis, length in enumerate(x.shape) if axis > 1 and length > 1]
    if len(places) != len(set(places)) or not set(wanted) <= set(places):
        return _Layer(last, atoms, "where its units lie in the input cannot be told")
    if not all(graph.leads_to(output, last) for output in earlier):
        return _Layer(last, atoms, "it runs in several places side by side")
    return _Layer(last, atoms)


def _choose_layer(decision: Decision, score: Tensor, x: Tensor, traced: Mapping[str, _Layer]) -> str | None:
    """The last convolution with the batch norm and activation behind it, if the decision rests on that alone.

    Where branches pass it by, the first module behind them that is made of layers.
    """
    modules = dict(decision.model.named_modules())
    known = [
        name
        for name, layer in traced.items()
        if not layer.reason and graph.passes_everything(score, x, layer.output)
    ]
    kinds = (types.Convolution, types.BatchNorm, *ELEMENTWISE)
    layers = [name for name in known if isinstance(modules[name], kinds)]
    blocks = [name for name in known if any(isinstance(part, types.Convolution) for part in modules[name].modules())]
    return next(iter([*reversed(layers), *blocks]), None)
