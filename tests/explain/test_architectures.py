"""Many small networks by every method: the map is that of an independent implementation, or the network is refused.

Nothing in between: what a table entry does not name as refused has to be right, and what it names has to be refused.
The networks are those in which maps go wrong without a word: branches, gates, functions in the place of modules, axes
that are not where they are expected, layers that do more than their class says.
"""

import copy
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from datxai.errors import InputError
from datxai.explain import attribute
from datxai.explain._zennit import Composite
from datxai.explain._zennit import layer as zennit_layer
from datxai.explain._zennit import rules as zennit_rules
from datxai.explain._zennit import types as zennit_types

SAME = 1e-6  # relative L2, float64
BASELINE = 0.25
FEW = {"integrated_gradients": {"n_steps": 3, "baseline": BASELINE}, "smoothgrad": {"n_samples": 2},
       "deep_lift": {"baseline": BASELINE}, "occlusion": {"baseline": BASELINE},
       "lime": {"n_samples": 20, "baseline": BASELINE},
       "kernel_shap": {"n_samples": 14, "baseline": BASELINE}}  # fmt: skip
PERTURBING = ("occlusion", "lime", "kernel_shap")
GRADIENTS = ("gradient", "input_x_gradient", "integrated_gradients", "smoothgrad")
LRP = ("lrp fast", "lrp zennit")
METHODS = (*LRP, *GRADIENTS, "guided_backprop", "deep_lift", "grad_cam", *PERTURBING)
DIFFERENTIATING = tuple(method for method in METHODS if method not in PERTURBING)
LINES = [
    {"match": ["type:Convolution"], "rule": "alpha_beta", "parameters": {"alpha": 2}},
    {"match": ["type:Linear"], "rule": "epsilon", "parameters": {"epsilon": 1e-2}},
    {"match": ["type:Activation", "type:BatchNorm"], "rule": "pass"},
    {"match": ["type:GroupNorm", "type:LayerNorm", "type:InstanceNorm2d"], "rule": "pass"},
    {"match": ["type:AvgPool", "type:Sum"], "rule": "norm"},
]  # fmt: skip


# --- networks -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, made in layers.items():
            setattr(self, name, made)
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


def sequence(*layers):
    """Layers one after the other, and a linear layer for what they hand on of 12 x 12 pixels."""
    body = nn.Sequential(*layers, nn.Flatten())
    with torch.no_grad():
        features = copy.deepcopy(body).eval()(torch.rand(1, 1, 12, 12)).shape[1]
    return nn.Sequential(*body, nn.Linear(features, 2))


def conv(into=1, out=3, kernel=3, **how):
    return nn.Conv2d(into, out, kernel, **how)


def with_activation(act):
    return lambda: sequence(conv(), act(), conv(3, 2), act())


def normed(norm):
    return lambda: sequence(conv(1, 4), norm(), nn.ReLU(), conv(4, 2))


def functional(act):
    return lambda: Net(
        lambda m, x: m.out(act(m.b(act(m.a(x)))).flatten(1)), a=conv(), b=conv(3, 2), out=nn.Linear(128, 2)
    )


def pooled(pool):
    return lambda: Net(
        lambda m, x: m.out(pool(F.relu(m.b(pool(F.relu(m.a(x)))))).flatten(1)),
        a=conv(), b=conv(3, 4, 2), out=nn.Linear(16, 2),
    )  # fmt: skip


def made_by(wrap):
    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, of its older weight norm
            return nn.Sequential(wrap(conv()), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(300, 2)))

    return make


def settled(model):
    """The same with its weights as parameters."""
    plain = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(300, 2)).double()
    model(torch.rand(1, 1, 12, 12).double())
    with torch.no_grad():
        for place in (0, 3):
            plain[place].weight.copy_(model[place].weight)
            plain[place].bias.copy_(model[place].bias)
    return plain


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


class Padding(nn.Conv2d):
    """Says that it is not padded."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), value=0.5))


class LookingAround(nn.ReLU):
    def forward(self, x):
        return super().forward(x - x.mean(dim=(-1, -2), keepdim=True))


class GroupNormAlone(nn.GroupNorm):
    """Before version 1, Zennit's pass fails on what autograd counts as one of three outputs."""

    def forward(self, x):
        return super().forward(x) * 1.0


class Scaling(nn.Linear):
    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


class Mixing(nn.Module):
    """Two inputs and a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, y):
        return x + self.weight * y


def hooked(place, kind):
    def make():
        model = sequence(conv(), nn.ReLU(), conv(3, 2), nn.ReLU())
        if kind == "output":
            model[place].register_forward_hook(lambda module, args, output: 2 * output)
        elif kind == "input":
            model[place].register_forward_pre_hook(lambda module, args: (2 * args[0],))
        else:
            model[place].register_forward_hook(lambda module, args, output: None)
        return model

    return make


def looking_around():
    """An activation whose forward was replaced."""
    model = sequence(conv(), nn.ReLU(), conv(3, 2), nn.ReLU())
    plain = model[1].forward
    model[1].forward = lambda x: plain(x - x.mean(dim=(-1, -2), keepdim=True))
    return model


def residual(add=None):
    def forward(m, x):
        y = m.relu(m.stem(x))
        z = m.b(m.relu(m.a(y)))
        y = y + z if add is None else m.add(torch.stack([y, z], dim=-1))
        return m.out(m.relu(y).flatten(1))

    layers = {"add": zennit_layer.Sum()} if add else {}
    return Net(forward, stem=conv(), a=conv(3, 3, padding=1), b=conv(3, 3, padding=1), relu=nn.ReLU(), **layers,
               out=nn.Linear(300, 2))  # fmt: skip


def block_of_branches():
    inner = Net(
        lambda m, x: torch.cat([F.relu(m.a(x)), F.relu(m.b(x))], dim=1), a=conv(3, 2, 1), b=conv(3, 2, 3, padding=1)
    )
    return Net(lambda m, x: m.out(m.block(F.relu(m.stem(x))).flatten(1)), stem=conv(stride=2, padding=1), block=inner,
               out=nn.Linear(144, 2))  # fmt: skip


def squeeze_and_excite():
    def forward(m, x):
        y = m.relu(m.conv(x))
        gate = m.sigmoid(m.fc(m.pool(y)))
        return m.out((y * gate).flatten(1))

    return Net(forward, conv=conv(1, 4, 3, stride=2, padding=1), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1),
               fc=nn.Conv2d(4, 4, 1), sigmoid=nn.Sigmoid(), out=nn.Linear(144, 2))  # fmt: skip


def unet():
    def forward(m, x):
        a = m.relu(m.down(x))
        b = m.relu(m.deep(F.max_pool2d(a, 2)))
        return m.out(m.relu(m.up(torch.cat([a, F.interpolate(b, scale_factor=2)], dim=1))).flatten(1))

    return Net(forward, down=conv(1, 2, padding=1), deep=conv(2, 3, padding=1), up=conv(5, 2, padding=1),
               relu=nn.ReLU(), out=nn.Linear(288, 2))  # fmt: skip


def decoder(by_keyword):
    def forward(m, x):
        y = m.relu(m.down(x))
        return m.out((m.up(y, output_size=x.shape[2:]) if by_keyword else m.up(y)).flatten(1))

    up = nn.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=0 if by_keyword else 1)
    return Net(forward, down=conv(stride=2, padding=1), relu=nn.ReLU(), up=up, out=nn.Linear(288, 2))


def channels_last():
    def forward(m, x):
        y = m.relu(m.conv(x)).permute(0, 2, 3, 1)
        return m.out(m.act(m.mix(m.norm(y))).flatten(1))

    return Net(forward, conv=conv(1, 4, stride=2), relu=nn.ReLU(), norm=nn.LayerNorm(4), mix=nn.Linear(4, 3),
               act=nn.Tanh(), out=nn.Linear(75, 2))  # fmt: skip


def slices():
    def forward(m, v):
        y = m.relu(m.conv(v.transpose(1, 2).flatten(0, 1)))
        return m.out(y.flatten(1)).view(len(v), -1, 2).mean(1)

    return Net(forward, conv=conv(1, 2), relu=nn.ReLU(), out=nn.Linear(200, 2))


def tokens(first):
    """Patches as tokens: [batch, tokens, features], or tokens first."""

    def forward(m, x):
        y = m.embed(x).flatten(2).transpose(1, 2)
        y = m.relu(m.mix(y.transpose(0, 1) if first else y))
        return m.out(y.mean(dim=0 if first else 1))

    return Net(forward, embed=nn.Conv2d(1, 5, 6, stride=6 if not first else (6, 12)), mix=nn.Linear(5, 6),
               relu=nn.ReLU(), out=nn.Linear(6, 2))  # fmt: skip


def attention():
    def forward(m, x):
        y = m.embed(x).flatten(2).transpose(1, 2)
        return m.out(m.attn(y, y, y, need_weights=False)[0].mean(dim=1))

    return Net(forward, embed=nn.Conv2d(1, 4, 4, stride=4), attn=nn.MultiheadAttention(4, 2, batch_first=True),
               out=nn.Linear(4, 2))  # fmt: skip


def cut(how):
    steps = {"threshold": lambda x: (x > 0.5).to(x), "round": torch.round, "sign": lambda x: (x - 0.5).sign()}

    def forward(m, x):
        x = steps.get(how, lambda x: x)(x)
        with torch.set_grad_enabled(how != "no_grad" and torch.is_grad_enabled()):
            y = m.relu(m.conv(x))
        return m.out((y.detach() if how == "detach" else y).flatten(1))

    return lambda: Net(forward, conv=conv(), relu=nn.ReLU(), out=nn.Linear(300, 2))


def recomputing(reentrant):
    def forward(m, x):
        y = m.inner(x) if reentrant is None else checkpoint(m.inner, x, use_reentrant=reentrant)
        return m.out(y.flatten(1))

    return lambda: Net(forward, inner=nn.Sequential(conv(), nn.ReLU()), out=nn.Linear(300, 2))


def answering(change, outputs=2):
    return lambda: Net(lambda m, x: change(m.out(m.relu(m.conv(x)).flatten(1))), conv=conv(), relu=nn.ReLU(),
                       out=nn.Linear(300, outputs))  # fmt: skip


def one_conv(prepare, size=300):
    """One convolution behind something done to the input."""
    return lambda: Net(lambda m, x: m.out(m.relu(m.conv(prepare(x))).flatten(1)), conv=conv(), relu=nn.ReLU(),
                       out=nn.Linear(size, 2))  # fmt: skip


def as_cases(several, size=300):
    """Two views of each case go through the network in the place of cases."""
    return lambda: Net(lambda m, x: m.out(m.relu(m.conv(several(x))).flatten(1)).view(2, len(x), 2).mean(dim=0),
                       conv=conv(), relu=nn.ReLU(), out=nn.Linear(size, 2))  # fmt: skip


def focus():
    """Every second pixel, from four beginnings, as channels."""

    def forward(m, x):
        parts = [x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return m.out(m.relu(m.conv(torch.cat(parts, dim=1))).flatten(1))

    return Net(forward, conv=conv(4, 3), relu=nn.ReLU(), out=nn.Linear(48, 2))


# --- what is expected of each ---------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A network, the methods that refuse it, and for Grad-CAM the layer and where its units lie: step and start."""

    make: object
    refused: tuple = ()
    cam: tuple | None = None
    plain: object = None  # the same network as Zennit can see it, or as layers of its own
    lines: list = field(default_factory=list)
    shape: tuple = (1, 12, 12)
    arrange: object = None  # of a layer's output, to [1, channels, ...]


SLOPING = tuple(method for method in DIFFERENTIATING if method != "grad_cam")  # which looks no farther than the layer
NO_RELU = ("guided_backprop",)
NOT_SEEN = ("deep_lift",)  # activations that are functions, or are used twice
OLD_ZENNIT = int(version("zennit").split(".")[0]) < 1
ENTRIES = {
    "one convolution": Entry(lambda: sequence(conv(), nn.ReLU()), (), ("1", 1, 1)),
    "two": Entry(lambda: sequence(conv(), nn.ReLU(), conv(3, 2), nn.ReLU()), (), ("3", 1, 2)),
    "strided": Entry(lambda: sequence(conv(stride=2), nn.ReLU(), conv(3, 2, stride=2), nn.ReLU()), (), ("3", 4, 3)),
    "dilated": Entry(lambda: sequence(conv(dilation=2), nn.ReLU()), (), ("1", 1, 2)),
    "padded": Entry(lambda: sequence(conv(padding=1), nn.ReLU()), (), ("1", 1, 0)),
    "same": Entry(lambda: sequence(conv(padding="same"), nn.ReLU()), (), ("1", 1, 0)),
    "reflected": Entry(lambda: sequence(conv(padding=1, padding_mode="reflect"), nn.ReLU()), (), ("1", 1, 0)),
    "circular": Entry(lambda: sequence(conv(padding=1, padding_mode="circular"), nn.ReLU()), ("grad_cam",)),
    "grouped": Entry(lambda: sequence(conv(1, 4), nn.ReLU(), conv(4, 4, groups=2), nn.ReLU()), (), ("3", 1, 2)),
    "depthwise": Entry(lambda: sequence(conv(1, 4), nn.ReLU(), conv(4, 4, groups=4), conv(4, 2, 1)), (), ("3", 1, 2)),
    "pointwise": Entry(lambda: sequence(conv(1, 3, 1), nn.ReLU()), (), ("1", 1, 0)),
    "transposed": Entry(lambda: decoder(False), (), ("up", 1, 0)),
    "transposed with output_size": Entry(lambda: decoder(True), (), ("up", 1, 0),
                                         plain=lambda m: like(m, decoder(False))),
    "max pooling": Entry(lambda: sequence(conv(), nn.ReLU(), nn.MaxPool2d(2), conv(3, 4, 2), nn.ReLU(),
                                          nn.MaxPool2d(2)), (), ("4", 2, 2.5)),
    "average pooling": Entry(lambda: sequence(conv(), nn.ReLU(), nn.AvgPool2d(2), conv(3, 4, 2), nn.ReLU()), (),
                             ("4", 2, 2.5)),
    "max pooling by a function": Entry(pooled(lambda x: F.max_pool2d(x, 2)), NOT_SEEN, ("b", 2, 2.5)),
    "average pooling by a function": Entry(pooled(lambda x: F.avg_pool2d(x, 2)), NOT_SEEN, ("b", 2, 2.5)),
    "Lp pooling": Entry(lambda: sequence(conv(), nn.ReLU(), nn.LPPool2d(2, 2), conv(3, 4, 2), nn.ReLU()), NOT_SEEN,
                        ("4", 2, 2.5)),
    "adaptive pooling": Entry(lambda: sequence(conv(1, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(5), conv(4, 2),
                                               nn.ReLU()), (), ("4", 2, 3.5)),
    "global average": Entry(lambda: Net(lambda m, x: m.out(m.relu(m.conv(x)).mean(dim=(2, 3))), conv=conv(1, 6),
                                        relu=nn.ReLU(), out=nn.Linear(6, 2)), (), ("relu", 1, 1)),
    "global maximum": Entry(lambda: Net(lambda m, x: m.out(m.relu(m.conv(x)).amax(dim=(2, 3))), conv=conv(1, 6),
                                        relu=nn.ReLU(), out=nn.Linear(6, 2)), (), ("relu", 1, 1)),
    "fully convolutional": Entry(lambda: nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1),
                                                       nn.Flatten()), (), ("1", 1, 1)),
    "batch norm": Entry(normed(lambda: nn.BatchNorm2d(4)), (), ("3", 1, 2)),
    "group norm": Entry(normed(lambda: nn.GroupNorm(2, 4)), (*NOT_SEEN, *["lrp zennit"] * OLD_ZENNIT), ("3", 1, 2),
                        plain=lambda m: like(m, normed(lambda: GroupNormAlone(2, 4))())),
    "instance norm": Entry(normed(lambda: nn.InstanceNorm2d(4)), NOT_SEEN, ("3", 1, 2)),
    "channels last": Entry(channels_last, NOT_SEEN, ("act", 2, 1), arrange=lambda y: y.permute(0, 3, 1, 2)),
    "LeakyReLU": Entry(with_activation(nn.LeakyReLU), NO_RELU, ("3", 1, 2)),
    "ELU": Entry(with_activation(nn.ELU), NO_RELU, ("3", 1, 2)),
    "GELU": Entry(with_activation(nn.GELU), (*NO_RELU, *NOT_SEEN), ("3", 1, 2)),
    "SiLU": Entry(with_activation(nn.SiLU), (*NO_RELU, *NOT_SEEN), ("3", 1, 2)),
    "Tanh": Entry(with_activation(nn.Tanh), NO_RELU, ("3", 1, 2)),
    "Sigmoid": Entry(with_activation(nn.Sigmoid), NO_RELU, ("3", 1, 2)),
    "PReLU": Entry(with_activation(nn.PReLU), (*NO_RELU, *NOT_SEEN), ("3", 1, 2)),
    "ReLU6": Entry(with_activation(nn.ReLU6), (*NO_RELU, *NOT_SEEN), ("3", 1, 2)),
    "Softplus": Entry(with_activation(nn.Softplus), NO_RELU, ("3", 1, 2)),
    "Mish": Entry(with_activation(nn.Mish), (*NO_RELU, *NOT_SEEN), ("3", 1, 2)),
    "Hardswish": Entry(with_activation(nn.Hardswish), (*NO_RELU, *NOT_SEEN), ("3", 1, 2)),
    "F.relu": Entry(functional(F.relu), NOT_SEEN, ("b", 1, 2)),
    "F.gelu": Entry(functional(F.gelu), (*NO_RELU, *NOT_SEEN), ("b", 1, 2)),
    "clamp": Entry(functional(lambda x: x.clamp(min=0)), NOT_SEEN, ("b", 1, 2)),
    "F.relu in place": Entry(functional(lambda x: F.relu_(x)), NOT_SEEN, ("b", 1, 2)),
    "ReLU in place": Entry(with_activation(lambda: nn.ReLU(inplace=True)), (), ("3", 1, 2)),
    "one ReLU for all": Entry(lambda: Net(lambda m, x: m.out(m.relu(m.b(m.relu(m.a(x)))).flatten(1)), a=conv(),
                                          b=conv(3, 2), relu=nn.ReLU(), out=nn.Linear(128, 2)), NOT_SEEN,
                              ("relu", 1, 2)),
    "residual": Entry(residual, NOT_SEEN, ("relu", 1, 1)),
    "residual by a layer": Entry(lambda: residual(True), NOT_SEEN, ("relu", 1, 1)),
    "branches": Entry(block_of_branches, NOT_SEEN, ("block", 2, 0)),
    "branches side by side": Entry(
        lambda: Net(lambda m, x: m.out(torch.cat([m.a(x).flatten(1), m.b(x).flatten(1)], dim=1)), a=conv(),
                    b=conv(1, 2, 5), out=nn.Linear(428, 2)), (*NO_RELU, "grad_cam")),
    "Siamese": Entry(
        lambda: Net(lambda m, x: m.out((m.conv(x) - m.conv(x.flip(-1))).flatten(1)), conv=conv(),
                    out=nn.Linear(300, 2)), (*NO_RELU, "grad_cam", "lrp zennit"), plain=lambda m: siamese(m)),
    "gate": Entry(squeeze_and_excite, NOT_SEEN, ("relu", 2, 0)),
    "U-Net": Entry(unet, NOT_SEEN, ("relu", 1, 0)),
    "cropped": Entry(lambda: Net(lambda m, x: m.out(m.relu(m.conv(x[:, :, 2:, 2:])).flatten(1)), conv=conv(),
                                 relu=nn.ReLU(), out=nn.Linear(192, 2)), (), ("relu", 1, 3)),
    "flipped": Entry(one_conv(lambda x: x.flip(-1)), ("grad_cam",)),
    "beside its mirror image": Entry(one_conv(lambda x: x + x.flip(-1)), ("grad_cam",)),
    "halves one upon the other": Entry(one_conv(lambda x: x[..., 6:] - x[..., :6], 120), ("grad_cam",)),
    "focus": Entry(focus, (), ("relu", 2, 2.5)),
    "mirror images as cases": Entry(as_cases(lambda x: torch.cat([x, x.flip(-1)])), (*NOT_SEEN, "grad_cam")),
    "halves as cases": Entry(as_cases(lambda x: torch.cat([x[..., :6], x[..., 6:]]), 120), (*NOT_SEEN, "grad_cam")),
    "normalised inside": Entry(one_conv(lambda x: (x - 10) / 3), (), ("relu", 1, 1)),
    "padded by a function": Entry(one_conv(lambda x: F.pad(x, (2, 2, 2, 2)), 588), (), ("relu", 1, -1)),
    "writes into its input": Entry(one_conv(lambda x: x.sub_(0.5)), (), ("relu", 1, 1), plain=lambda m: like(
        m, one_conv(lambda x: x - 0.5)())),
    "slices as cases": Entry(slices, (), ("relu", 1, (0, 1, 1)), shape=(1, 3, 12, 12),
                             arrange=lambda y: y.transpose(0, 1)[None]),
    "tokens": Entry(lambda: tokens(False), (), ("embed", 6, 2.5)),
    "tokens first, as many as cases": Entry(lambda: tokens(True), NOT_SEEN, ("embed", (6, 12), (2.5, 5.5))),
    "attention": Entry(attention, (*NO_RELU, *NOT_SEEN), ("embed", 4, 1.5),
                       lines=[{"match": ["attn", "attn.*"], "rule": "gradient"}]),
    "recurrent": Entry(lambda: Net(lambda m, x: m.out(m.gru(m.conv(x).flatten(2).transpose(1, 2))[1][0]),
                                   conv=conv(1, 3, 4, stride=4), gru=nn.GRU(3, 4, batch_first=True),
                                   out=nn.Linear(4, 2)),
                       (*NO_RELU, *NOT_SEEN), ("conv", 4, 1.5), lines=[{"match": ["type:GRU"], "rule": "gradient"}]),
    "weight norm": Entry(made_by(weight_norm), ("lrp zennit",), ("1", 1, 1), plain=settled),
    "spectral norm": Entry(made_by(spectral_norm), ("lrp zennit",), ("1", 1, 1), plain=settled),
    "pruned": Entry(made_by(lambda m: prune.random_unstructured(m, "weight", 0.5)), ("lrp zennit",), ("1", 1, 1),
                    plain=settled),
    "weight norm as a parametrisation": Entry(made_by(parametrizations.weight_norm), LRP, ("1", 1, 1), plain=settled),
    "weights standardised": Entry(lambda: sequence(Standardised(1, 3, 3), nn.ReLU()), (), ("1", 1, 1)),
    "pads by itself": Entry(lambda: sequence(Padding(1, 3, 3), nn.ReLU()), (), ("1", 1, 0)),
    "looks around": Entry(lambda: sequence(conv(), LookingAround()), (), ("1", 1, 1)),
    "hook on a convolution": Entry(hooked(0, "output"), (), ("3", 1, 2)),
    "hook on an activation": Entry(hooked(1, "output"), NOT_SEEN, ("3", 1, 2)),
    "looks around, put in": Entry(looking_around, NOT_SEEN, ("3", 1, 2)),
    "hook on the output": Entry(hooked(5, "output"), (), ("3", 1, 2)),
    "hook on the input": Entry(hooked(2, "input"), (), ("3", 1, 2)),
    "hook that watches": Entry(hooked(2, "none"), (), ("3", 1, 2)),
    "a layer with a setting": Entry(
        lambda: Net(lambda m, x: m.out(m.relu(m.conv(x)).flatten(1), scale=2.0), conv=conv(), relu=nn.ReLU(),
                    out=Scaling(300, 2)), (), ("relu", 1, 1), plain=lambda m: scaled(m)),
    "a layer with a setting by place": Entry(
        lambda: Net(lambda m, x: m.out(m.relu(m.conv(x)).flatten(1), 2.0), conv=conv(), relu=nn.ReLU(),
                    out=Scaling(300, 2)), (), ("relu", 1, 1), plain=lambda m: scaled(m)),
    "a layer with two inputs": Entry(
        lambda: Net(lambda m, x: m.out(m.mix(m.a(x), m.b(x)).flatten(1)), a=conv(), b=conv(), mix=Mixing(),
                    out=nn.Linear(300, 2)), (*LRP, *NO_RELU, "grad_cam"), lines=[{"match": ["mix"], "rule": "pass"}]),
    "dropout": Entry(lambda: sequence(conv(), nn.ReLU(), nn.Dropout(0.5)), (), ("1", 1, 1)),
    "one logit": Entry(answering(lambda x: x, 1), (), ("relu", 1, 1)),
    "one logit without an axis": Entry(answering(lambda x: x[:, 0]), (), ("relu", 1, 1)),
    "outputs with axes of one": Entry(answering(lambda x: x[..., None, None]), (), ("relu", 1, 1)),
    "softmax": Entry(answering(lambda x: x.softmax(dim=1)), NOT_SEEN, ("relu", 1, 1)),
    "segmentation": Entry(lambda: nn.Sequential(conv(), nn.ReLU(), conv(3, 2, 1)), METHODS),
    "classes by number": Entry(answering(lambda x: x.argmax(dim=1, keepdim=True)), METHODS),
    "detached": Entry(cut("detach"), DIFFERENTIATING),
    "without gradients": Entry(cut("no_grad"), DIFFERENTIATING),
    "threshold": Entry(cut("threshold"), DIFFERENTIATING),
    "rounded": Entry(cut("round"), SLOPING, ("relu", 1, 1)),
    "signs": Entry(cut("sign"), SLOPING, ("relu", 1, 1)),
    "recomputed": Entry(recomputing(False), (), ("inner", 1, 1), plain=lambda m: like(m, recomputing(None)())),
    "recomputed, reentrant": Entry(recomputing(True), DIFFERENTIATING),
    "signals": Entry(lambda: nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(3, 2, 2),
                                           nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), (), ("4", 2, 2.5), shape=(1, 12)),
    "volumes": Entry(lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(),
                                           nn.Linear(2 * 1 * 5 * 5, 2)), (), ("1", 1, 1), shape=(1, 4, 12, 12)),
    "tables": Entry(lambda: nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 2)), (*PERTURBING, "grad_cam"),
                    shape=(9,)),
}  # fmt: skip


def like(model, made):
    """Another network with the same weights."""
    made = made.double()
    made.load_state_dict(model.state_dict())
    return made


def siamese(model):
    """Two convolutions with the weights of one."""
    plain = Net(lambda m, x: m.out((m.a(x) - m.b(x.flip(-1))).flatten(1)), a=model.conv, b=copy.deepcopy(model.conv),
                out=model.out)  # fmt: skip
    return plain.double()


def scaled(model):
    """The setting in the weights."""
    plain = nn.Linear(300, 2).double()
    with torch.no_grad():
        plain.weight.copy_(2 * model.out.weight)
        plain.bias.copy_(2 * model.out.bias)
    return Net(lambda m, x: m.out(m.relu(m.conv(x)).flatten(1)), conv=model.conv, relu=nn.ReLU(), out=plain)


# --- the maps computed another way ----------------------------------------------------------------------------------


def score(model, x):
    """Output 1, or the only one, [batch]."""
    output = model(x.clone())
    output = output.reshape(len(x), -1)
    return output[:, -1] if output.shape[1] == 1 else output[:, 1]


def slope(model, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(score(model, x).sum(), x)[0]


def parcels_of(shape):
    """Four quarters of the last two axes (halves of halves of one), a corner left out."""
    rows = np.indices(shape)
    parcels = 1 + rows[-1] // 6 + (2 * (rows[-2] // 6) if len(shape) > 1 else 2 * (rows[-1] // 3 % 2))
    parcels[tuple([0] * len(shape))] = 0
    return parcels


def without(x, kept):
    """The case with parcels at the baseline; ``kept`` says of each whether it stays."""
    parcels = parcels_of(x.shape[2:])
    away = np.isin(parcels, 1 + np.flatnonzero(~np.asarray(kept, bool)))
    return torch.where(torch.from_numpy(away), BASELINE, x)


def spread(values, x):
    parcels = parcels_of(x.shape[2:])
    found = np.zeros(x.shape)
    for number, value in enumerate(values, start=1):
        found[..., parcels == number] = value / (parcels == number).sum()
    return torch.from_numpy(found)


def by_occlusion(model, x):
    scores = [score(model, without(x, np.arange(4) != number)).item() for number in range(4)]
    return spread(score(model, x).item() - np.array(scores), x)


def by_lime(model, x):
    kept = (torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) < 0.5).numpy()
    kept[0] = True
    scores = [score(model, without(x, row)).item() for row in kept]
    weights = np.diag(np.sqrt(np.exp(-(((1 - np.sqrt(kept.mean(axis=1))) / 0.25) ** 2))))
    design = np.column_stack([kept, np.ones(20)])
    fitted = np.linalg.solve(design.T @ weights @ design + np.diag([1.0] * 4 + [0]), design.T @ weights @ scores)
    return spread(fitted[:4], x)


def by_shapley(model, x):
    """The mean over all orders of what a parcel adds."""
    from itertools import permutations

    value = {}
    for number in range(16):
        kept = tuple(bool(number >> place & 1) for place in range(4))
        value[kept] = score(model, without(x, kept)).item()
    total = np.zeros(4)
    for order in permutations(range(4)):
        kept = [False] * 4
        for place in order:
            before = value[tuple(kept)]
            kept[place] = True
            total[place] += value[tuple(kept)] - before
    return spread(total / 24, x)


def by_integrated_gradients(model, x):
    nodes, shares = np.polynomial.legendre.leggauss(3)
    mean = sum(w / 2 * slope(model, BASELINE + (t + 1) / 2 * (x - BASELINE)) for t, w in zip(nodes, shares))
    return (x - BASELINE) * mean


def by_smoothgrad(model, x):
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(x.shape[1:], generator=generator, dtype=x.dtype)[None] for _ in range(2)]
    return sum(slope(model, x + 0.1 * (x.max() - x.min()) * each) for each in noise) / 2


class GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (gradient > 0) * (x > 0)


class Guiding(TorchFunctionMode):
    """Puts a rectifier of its own in the place of PyTorch's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        rectifiers = (F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
        if func in rectifiers or (func is torch.Tensor.clamp and (kwargs or {}) == {"min": 0}):
            return GuidedReLU.apply(args[0])
        return func(*args, **(kwargs or {}))


def by_guiding(model, x):
    with Guiding():
        return slope(model, x)


class Rescaled(torch.autograd.Function):
    """An activation of an input and, behind it, of the baseline, whose slope is that of the chord between them."""

    @staticmethod
    def forward(ctx, z, activate):
        y = activate(z)
        ctx.save_for_backward(z, y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        z, y = (tensor.chunk(2) for tensor in ctx.saved_tensors)
        run = z[0] - z[1]
        rise = torch.where(run.abs() > 1e-10, (y[0] - y[1]) / run, 0)  # nothing is lost: nothing differs there
        return gradient * torch.cat([rise, rise]), None


class Rescaling(TorchFunctionMode):
    """Puts DeepLIFT's rescale rule in the place of activations."""

    ACTIVATIONS = (F.relu, torch.relu, torch.relu_, F.leaky_relu, F.elu, torch.tanh, torch.sigmoid, F.softplus)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.ACTIVATIONS:
            return Rescaled.apply(args[0], lambda z: func(z.clone(), *args[1:], **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def by_rescaling(model, x):
    if any(isinstance(module, zennit_types.MaxPool) for module in model.modules()):
        return by_captum(model, x)  # whose rule for pooling is its own
    both = torch.cat([x, torch.full_like(x, BASELINE)]).requires_grad_()
    with Rescaling():
        (multipliers,) = torch.autograd.grad(score(model, both)[0], both)
    return (multipliers[:1] * (x - BASELINE)).detach()


def by_captum(model, x):
    from captum.attr import DeepLift

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = DeepLift(model).attribute(x.clone().requires_grad_(), torch.full_like(x, BASELINE), target=1)
    return found.detach()


def by_stock_zennit(model, x, entry):
    """Zennit alone, one case, on the plain network."""
    left = [name for line in entry.lines for name in line["match"] if line["rule"] == "gradient"]
    passing = (*zennit_types.Activation.__subclass__, nn.Mish, *zennit_types.BatchNorm.__subclass__, nn.GroupNorm)

    def choose(context, name, module):
        if any(name == each or name.startswith(f"{each}.") for each in left) or isinstance(module, nn.GRU):
            return None
        if isinstance(module, zennit_types.Convolution):
            return zennit_rules.AlphaBeta(2, 1)
        if isinstance(module, nn.Linear):
            return zennit_rules.Epsilon(1e-2)
        if isinstance(module, (*passing, nn.LayerNorm, nn.InstanceNorm2d)):
            return zennit_rules.Pass()
        if isinstance(module, (zennit_types.AvgPool, zennit_layer.Sum)):
            return zennit_rules.Norm()
        return None

    with Composite(choose).context(model):
        return slope(model, x)


def by_feature_maps(model, x, entry):
    name, steps, start = entry.cam
    kept = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, args, output: (kept.append(output), output.clone())[1]
    )
    decided = score(model, x.clone().requires_grad_()).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(decided, kept[-1])
    arrange = entry.arrange or (lambda y: y)
    maps, gradient = (arrange(tensor.detach()).numpy()[0] for tensor in (kept[-1], gradient))
    spatial = tuple(range(1, maps.ndim))
    cam = np.maximum((maps * gradient.mean(axis=spatial, keepdims=True)).sum(axis=0), 0)
    axes = range(cam.ndim)
    steps, starts = (each if isinstance(each, tuple) else (each,) * cam.ndim for each in (steps, start))
    for axis, step, begin in zip(axes, steps, starts):
        places = begin + step * np.arange(cam.shape[axis])

        def along(line, places=places, pace=step, length=x.shape[2 + axis]):
            at = np.arange(length)
            inside = (at >= places[0] - pace / 2) & (at <= places[-1] + pace / 2)
            return np.interp(at, places, line) * inside

        cam = np.apply_along_axis(along, axis, cam)
    return torch.from_numpy(cam)[None, None]


ORACLES = {
    "gradient": slope, "input_x_gradient": lambda model, x: x * slope(model, x),
    "integrated_gradients": by_integrated_gradients, "smoothgrad": by_smoothgrad, "guided_backprop": by_guiding,
    "occlusion": by_occlusion, "lime": by_lime, "kernel_shap": by_shapley,
}  # fmt: skip


def expected_by(method, entry, model, x):
    if method in LRP:
        return by_stock_zennit((entry.plain or (lambda m: m))(model).eval(), x, entry)
    if method == "grad_cam":
        return by_feature_maps(model, x, entry)
    if method == "deep_lift":
        return by_rescaling((entry.plain or (lambda m: m))(model).eval(), x)
    return ORACLES[method](model, x)


def made(name):
    torch.manual_seed(sum(map(ord, name)))
    return ENTRIES[name].make().double().eval()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of a reentrant checkpoint
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ENTRIES)
def test_a_map_is_right_or_refused(name, method):
    entry, model = ENTRIES[name], made(name)
    x = torch.rand(2, *entry.shape, dtype=torch.float64)
    chosen = {"target": 1, "start": "one", "options": FEW.get(method, {})}
    if method in LRP:
        chosen |= {"composite": [*entry.lines, *LINES], "rules": method.split()[1]}
    if method in PERTURBING and len(entry.shape) > 1:
        chosen["parcels"] = parcels_of(entry.shape[1:])
    untouched = x.clone()
    if method in entry.refused:
        with pytest.raises(InputError) as said:
            attribute(model, x, method.split()[0], **chosen)
        assert len(str(said.value)) > 40 and str(said.value).endswith(".")
        return
    found = attribute(model, x, method.split()[0], **chosen).relevance
    assert torch.equal(x, untouched)
    for case, relevance in zip(x, found, strict=True):
        expected = expected_by(method, entry, made(name), case[None])[0]
        assert expected.any() or method == "grad_cam"
        assert (relevance - expected).norm() <= SAME * expected.norm(), (relevance - expected).norm() / expected.norm()


def test_the_table_is_large_and_says_no_more_than_it_must():
    """Most networks are explained by most methods, and every method explains half of them or more."""
    assert len(ENTRIES) >= 60 and len(METHODS) == 12
    for method in METHODS:
        explained = [name for name, entry in ENTRIES.items() if method not in entry.refused]
        assert len(explained) >= (len(ENTRIES) - 10) / 2, method
