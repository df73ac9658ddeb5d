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

import numpy as np
import torch
from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain._zennit import types
from datxai.explain.answers import Answers
from datxai.explain.parcels import make_blocks, make_supervoxels

LIGHTER = 4  # times as many inputs take the same memory where no gradient needs what the layers handed on
INCOMPLETE = 0.01  # of the magnitudes: what DeepLIFT's multipliers may fail to account for


class Decision(nn.Module):
    """What is explained: sum_k seed_k times output k of ``model``, one number per input [batch].

    ``answers``, where given, are asked in the place of the network wherever no gradient is taken.
    """

    def __init__(self, model: nn.Module, seed: Tensor, answers: Answers | None = None):
        super().__init__()
        self.model, self.seed, self.answers = model, seed, answers

    def forward(self, x: Tensor) -> Tensor:
        known = self.answers is not None and not torch.is_grad_enabled()
        outputs = self.answers(self.model, x) if known else self.model(x)
        return outputs.reshape(len(x), -1) @ self.seed


def integrate_gradients(
    decision: Decision, x: Tensor, at_once: int, *, n_steps: int = 32, baseline: float | Tensor = 0.0
) -> Tensor:
    """(x - baseline) times the mean gradient along the straight way from the baseline (Sundararajan et al. 2017).

    arXiv 1703.01365. The mean is taken by Gauss-Legendre quadrature at ``n_steps`` points. The map's sum approaches
    the decision's difference between input and baseline.
    """
    nodes, shares = np.polynomial.legendre.leggauss(n_steps)
    nodes, shares = (torch.as_tensor(values, dtype=x.dtype, device=x.device) / 2 for values in (nodes, shares))
    total = torch.zeros_like(x)
    for node, share in zip((0.5 + nodes).split(at_once), shares.split(at_once)):
        gradients = _gradients(decision, baseline + _like(node, x) * (x - baseline))
        total += (_like(share, x) * gradients).sum(dim=0, keepdim=True)
    return (x - baseline) * total


def smooth_gradients(
    decision: Decision, x: Tensor, at_once: int, *, n_samples: int = 25, noise: float = 0.1, seed: int = 0
) -> Tensor:
    """Mean gradient over inputs with Gaussian noise of ``noise`` times the case's range (Smilkov et al. 2017).

    arXiv 1706.03825.
    """
    deviation, total = noise * (x.max() - x.min()), torch.zeros_like(x)
    generator = torch.Generator().manual_seed(seed)
    for count in _counts(n_samples, at_once):
        drawn = [torch.randn(x.shape[1:], generator=generator, dtype=x.dtype) for _ in range(count)]
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
    reference = _absent(baseline, x)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting forward, backward hooks")  # `attribute` undoes them
            relevance = DeepLift(decision).attribute(x.detach().requires_grad_(), reference).detach()
    except RuntimeError as error:
        if "used more than once" not in str(error):
            raise
        relevance = None
    if relevance is not None:
        with torch.no_grad():
            expected = decision(x) - decision(reference)
        missing = (relevance.sum() - expected).abs()
        if missing <= INCOMPLETE * relevance.abs().sum():
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
    activation behind it. The map of a layer is brought to the voxels linearly, each unit at the centre of its
    receptive field: unpadded convolutions hand on less than the whole input, over which a map must not be stretched.
    Beyond the outermost units, half a step further out, it is zero.
    """
    score, found = _trace_features(decision, x.detach().requires_grad_())
    if layer is None:
        layer = next((name for name in reversed(found) if found[name].is_feature), None)
    if layer not in found:
        raise InputError(
            f"attribution.options.layer={layer}: expected a layer that hands on maps over the input's axes"
            + (f", such as {', '.join(list(found)[-4:])}." if found else "; this network has none.")
        )
    features = found[layer]
    spatial = tuple(range(2, x.ndim))
    (gradient,) = torch.autograd.grad(score.sum(), features.output)
    cam = (features.output.detach() * gradient.mean(dim=spatial, keepdim=True)).sum(dim=1, keepdim=True).relu()
    for axis, (length, step, start) in enumerate(zip(x.shape[2:], features.steps, features.starts), start=2):
        n = cam.shape[axis]
        place = (torch.arange(length, dtype=x.dtype, device=x.device) - start) / step
        tent = (1 - (place.clamp(0, n - 1)[:, None] - torch.arange(n, device=x.device)).abs()).relu()
        tent *= ((place >= -0.5) & (place <= n - 0.5))[:, None]
        cam = (cam.movedim(axis, -1) @ tent.T).movedim(-1, axis)
    return cam.expand_as(x)


def occlude(
    decision: Decision,
    x: Tensor,
    at_once: int,
    *,
    parcels: Tensor | None,
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
    parcels: Tensor | None,
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
    kept = torch.rand(n_samples, n, generator=torch.Generator().manual_seed(seed)) < 0.5
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
    parcels: Tensor | None,
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
    ends = torch.stack([torch.zeros(n), torch.ones(n)]).bool()
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
    return method in METHODS and "parcels" in inspect.signature(METHODS[method]).parameters


def check_options(method: str, options: Mapping) -> None:
    """Refuse what the method does not know, and values of another kind than the defaults."""
    known = options_of(method)
    for name, value in options.items():
        where = f"attribution.options.{name}={value}"
        if name not in known:
            expected = f"some of {', '.join(known)}" if known else "no options"
            raise InputError(f"{where}: attribution.method={method} takes {expected}.")
        default = known[name]
        if name == "baseline" and isinstance(value, Tensor):
            if not torch.isfinite(value).all():
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
    return torch.autograd.grad(decision(x).sum(), x)[0]


def _like(values: Tensor, x: Tensor) -> Tensor:
    """Values [n] that broadcast against inputs [n, ...]."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _absent(baseline: float | Tensor, x: Tensor) -> Tensor:
    """The input of which everything is absent, like ``x`` [1, ...]."""
    return baseline.clone() if isinstance(baseline, Tensor) else torch.full_like(x, baseline)


def _counts(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def _choose_parts(parcels: object, x: Tensor, n_supervoxels: int) -> tuple[Tensor, Tensor]:
    """What LIME and Kernel SHAP take away, as `_index` has it: the parcels, or without any the case's supervoxels."""
    if parcels is None:
        parcels = make_supervoxels(x[0].mean(dim=0).cpu().numpy(), n_supervoxels)
    return _index(parcels, x)


def _index(parcels: object, x: Tensor) -> tuple[Tensor, Tensor]:
    """Which parcel each voxel belongs to, [X, Y, Z], numbered from 1 on without gaps; and how many voxels each has."""
    labels = torch.as_tensor(np.asarray(parcels)).to(torch.int64)
    if labels.shape != x.shape[2:]:
        raise InputError(f"parcels are of shape {tuple(labels.shape)}, expected {tuple(x.shape[2:])}, the input's.")
    found, index = torch.unique(labels, return_inverse=True)
    if found[0] < 0 or not (found > 0).any():
        raise InputError("parcels: expected whole numbers, 0 for no parcel, and at least one parcel.")
    index = index + (found[0] > 0)
    return index.to(x.device), torch.bincount(index.flatten(), minlength=2)


def _score_coalitions(
    decision: Decision, x: Tensor, index: Tensor, kept: Tensor, baseline: float | Tensor, at_once: int
) -> Tensor:
    """The decision [n], float64, for each set of parcels ``kept`` [n, parcels]; the others are at the baseline."""
    kept = torch.cat([torch.ones(len(kept), 1, dtype=torch.bool), kept], dim=1).to(x.device)
    absent = _absent(baseline, x)
    parts = kept.split(LIGHTER * at_once)
    with torch.no_grad():
        scores = [decision(torch.where(some[:, index].unsqueeze(1), x, absent)) for some in parts]
    return torch.cat(scores).double().cpu()


def _score_without_each(decision: Decision, x: Tensor, index: Tensor, baseline: float | Tensor, at_once: int) -> Tensor:
    """The decision [1 + parcels], float64, of the case as it is, and with each parcel in turn at the baseline.

    What first layers make of a parcel reaches no farther than their kernels: they are run around the parcel alone.
    """
    from scipy.ndimage import find_objects

    first, rest, reach = _split_local(decision.model, x.ndim - 2)
    absent = _absent(baseline, x)

    def without(number: int, box: tuple[slice, ...]) -> Tensor:
        around = tuple(slice(max(side.start - far, 0), side.stop + far) for side, far in zip(box, reach))
        changed = first(torch.where(index[around] == number, absent[(..., *around)], x[(..., *around)]))
        place = (slice(side.start, side.start + n) for side, n in zip(around, changed.shape[2:]))
        features = whole.clone()
        features[(..., *place)] = changed
        return features

    boxes = list(enumerate(find_objects(index.cpu().numpy()), start=1))
    with torch.no_grad():
        whole, last = first(x), Decision(rest, decision.seed)
        scores = [last(whole)]
        for start in range(0, len(boxes), LIGHTER * at_once):
            scores.append(last(torch.cat([without(*box) for box in boxes[start : start + LIGHTER * at_once]])))
    return torch.cat(scores).double().cpu()


def _split_local(model: nn.Module, axes: int) -> tuple[nn.Module, nn.Module, list[int]]:
    """Layers whose units see a few voxels, from their own place on; what comes after these; and how far they see.

    Unpadded convolutions of stride one and activations, as far as a `torch.nn.Sequential` begins with them.
    """
    layers = model if type(model) is nn.Sequential else nn.Sequential(model)
    n = len(list(takewhile(_is_local, layers)))
    kernels = [layer for layer in layers[:n] if isinstance(layer, types.Convolution)]
    reach = [sum(layer.dilation[axis] * (layer.kernel_size[axis] - 1) for layer in kernels) for axis in range(axes)]
    return layers[:n], layers[n:], reach


def _is_local(layer: nn.Module) -> bool:
    if isinstance(layer, types.Convolution):
        padded = layer.padding != "valid" and any(layer.padding)
        return not (padded or layer.transposed) and set(layer.stride) == {1}
    return isinstance(layer, types.Activation)


def _spread(values: Tensor, index: Tensor, sizes: Tensor, x: Tensor) -> Tensor:
    """A map like ``x`` in which each parcel's value is shared by its voxels, in all channels alike."""
    shares = torch.cat([torch.zeros(1, dtype=torch.float64), values.double() / sizes[1:].cpu()]) / x.shape[1]
    return shares.to(x)[index].expand_as(x)


def _draw_coalitions(n: int, n_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sets of parcels [samples, n], neither empty nor whole, and their weights [samples]: the Shapley kernel's."""
    if 2**n - 2 <= n_samples:
        kept = torch.tensor(list(product([False, True], repeat=n))[1:-1])
        weights = [(n - 1) / (math.comb(n, k) * k * (n - k)) for k in kept.sum(dim=1).tolist()]
        return kept, torch.tensor(weights, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, n, dtype=torch.float64)
    drawn = 1 + torch.multinomial(1 / (sizes * (n - sizes)), n_samples // 2, replacement=True, generator=generator)
    ranks = torch.rand(n_samples // 2, n, generator=generator).argsort(dim=1).argsort(dim=1)
    kept = ranks < drawn[:, None]
    return torch.cat([kept, ~kept]), torch.ones(2 * len(kept), dtype=torch.float64)


@dataclass(frozen=True)
class _Features:
    """What a layer hands on, and where its units lie: voxel ``start + step * number`` along each axis."""

    output: Tensor
    steps: tuple[float, ...]
    starts: tuple[float, ...]
    is_feature: bool


def _trace_features(decision: Decision, x: Tensor) -> tuple[Tensor, dict[str, _Features]]:
    """The decision; and the outputs of layers that lie over the axes of the input, by name, in order of execution.

    A layer whose input is not as large as what the layer before it handed on is a parallel branch, such as a residual
    block's shortcut, and moves no unit.
    """
    steps, starts, size = [1.0] * (x.ndim - 2), [0.0] * (x.ndim - 2), x.shape[2:]
    names = {module: name for name, module in decision.model.named_modules()}
    found: dict[str, _Features] = {}

    def follow(module: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal size
        if not args or not isinstance(args[0], Tensor):
            raise InputError(
                f"attribution.method=grad_cam: layer {names[module]} ({type(module).__name__}) is not called with a "
                f"tensor as its first argument; call it as layer(x), not layer(input=x)."
            )
        if not isinstance(output, Tensor) or output.ndim != x.ndim or not output.requires_grad:
            return
        if args[0].shape[2:] == size:
            for axis, (before, after) in enumerate(zip(size, output.shape[2:])):
                stride, shift = _geometry(module, axis, before, after)
                starts[axis] += steps[axis] * shift
                steps[axis] *= stride
            size = output.shape[2:]
        if output.shape[2:] == size:
            found.pop(names[module], None)
            is_feature = isinstance(module, (types.Convolution, types.BatchNorm, types.Activation))
            found[names[module]] = _Features(output, tuple(steps), tuple(starts), is_feature)

    handles = [module.register_forward_hook(follow) for module in names if not list(module.children())]
    try:
        score = decision(x)
    finally:
        for handle in handles:
            handle.remove()
    return score, found


def _geometry(module: nn.Module, axis: int, before: int, after: int) -> tuple[float, float]:
    """A layer's stride along an axis, and how far inside the input the centre of its first unit's reach lies."""
    kernel = getattr(module, "kernel_size", None)
    if kernel is None or getattr(module, "transposed", False):
        ratio = before / after
        return ratio, (ratio - 1) / 2
    kernel, stride, padding, dilation = (
        value[axis] if isinstance(value, tuple) else value
        for value in (kernel, module.stride, module.padding, getattr(module, "dilation", 1))
    )
    reach = dilation * (kernel - 1)
    if isinstance(padding, str):
        padding = reach // 2 if padding == "same" else 0
    return stride, reach / 2 - padding
