"""Each choice of `training=` against its equation, in float64 and without PyTorch's optimisers and schedulers."""

import copy
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from datxai.config import Training
from datxai.errors import InputError
from datxai.model import checkpoint, training
from datxai.model.network import build
from datxai.model.recipe import Recipe

SHAPE, LR, EPOCHS, BATCH, SEED = (10, 9, 1), 2e-3, 4, 8, 7
TOLERANCE = 2e-5  # of float32 against float64, relative


def cases(n, seed, share):
    """Volumes whose far half is dimmer where the label is 1; so large a ``share`` of them is."""
    rng = np.random.default_rng(seed)
    labels = (rng.permutation(n) < share * n).astype(int)
    volumes = rng.normal(1.0, 0.3, (n, 1, *SHAPE)).astype(np.float32)
    volumes[labels == 1, :, :5] *= 0.5
    return list(zip(torch.from_numpy(volumes), labels.tolist()))


TRAIN, VALIDATION = cases(22, 0, 0.3), cases(10, 1, 0.5)


def network(dropout=0.0):
    return build(SHAPE, channels=(4, 4), hidden=(6, 5), dropout=dropout, seed=6)


def train(folder, model=None, max_epochs=EPOCHS, validation_set=VALIDATION, **choices):
    recipe = Recipe(**{"batch_size": BATCH, "learning_rate": LR, "seed": SEED, "max_epochs": max_epochs, **choices})
    model = network() if model is None else model
    return training.train(model, TRAIN, validation_set, recipe, folder=folder, fingerprint="a")


def stacked(dataset, items):
    return torch.stack([dataset[i][0] for i in items]).double(), torch.tensor([dataset[i][1] for i in items])


# --- equations ---------------------------------------------------------------------------------------------


def entropies(logits, y, smoothing=0.0, weights=(1.0, 1.0)):
    """Loss of each case: -sum_k w_k q_k log p_k, with q the smoothed label."""
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    q = torch.full_like(logits, smoothing / 2)
    q[range(len(y)), y] += 1 - smoothing
    return -(torch.tensor(weights, dtype=torch.float64) * q * log_p).sum(1)


def focals(logits, y, gamma=2.0, weights=(1.0, 1.0)):
    p = (logits.exp() / logits.exp().sum(1, keepdim=True))[range(len(y)), y]
    return -torch.tensor(weights, dtype=torch.float64)[y] * (1 - p) ** gamma * p.log()


def adam(p, g, state, t, rate, decay, decoupled):
    """Kingma & Ba 2015, algorithm 1; decoupled: Loshchilov & Hutter 2019, algorithm 2."""
    g = g if decoupled else g + decay * p
    m, v = state.setdefault("m", torch.zeros_like(p)), state.setdefault("v", torch.zeros_like(p))
    m.mul_(0.9).add_(0.1 * g)
    v.mul_(0.999).add_(0.001 * g**2)
    step = rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return p - step - (rate * decay * p if decoupled else 0)


def sgd(p, g, state, t, rate, decay, momentum):
    g = g + decay * p
    state["v"] = g if "v" not in state else momentum * state["v"] + g
    return p - rate * state["v"]


def follow(losses, step, rate=lambda epoch: LR, together=1, clip=math.inf, average=None):
    """Train in float64 over the same batches; training and validation loss of each epoch."""
    model, history, t = network().double(), [], 0
    kept = copy.deepcopy(model)
    states = [{} for _ in model.parameters()]
    for epoch in range(1, EPOCHS + 1):
        order = np.random.default_rng([SEED, epoch]).permutation(len(TRAIN)).tolist()
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        total = 0.0
        for start in range(0, len(batches), together):
            group = [item for batch in batches[start : start + together] for item in batch]
            x, y = stacked(TRAIN, group)
            each = losses(model(x), y)
            gradients = torch.autograd.grad(each.mean(), list(model.parameters()))
            norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
            t += 1
            with torch.no_grad():
                for p, g, state in zip(model.parameters(), gradients, states):
                    p.copy_(step(p, g * min(1, clip / norm), state, t, rate(epoch)))
                for mean, p in zip(kept.parameters(), model.parameters()):
                    share = 0 if average is None or t == 1 else average
                    mean.copy_(share * mean + (1 - share) * p)
            total += each.sum().item()
        x, y = stacked(VALIDATION, range(len(VALIDATION)))
        history.append((total / len(TRAIN), losses(kept(x), y).mean().item()))
    return history


BALANCED = [22 / 2 / sum(1 - y for _, y in TRAIN), 22 / 2 / sum(y for _, y in TRAIN)]
ADAM = {"decay": 0.0, "decoupled": False}


def bound(function, **keywords):
    return lambda *arguments: function(*arguments, **keywords)


def slower_of_many_inputs(most):
    """Adam, whose rate falls as one over the inputs of a weight beyond so many: of conv2 (108) and fc1 here."""

    def step(p, g, state, t, rate):
        inputs = p[0].numel() if p.ndim > 1 else 1
        return adam(p, g, state, t, rate * min(1, most / inputs), **ADAM)

    return step


def cosine(epoch):
    return LR * (1 + math.cos(math.pi * (epoch - 1) / EPOCHS)) / 2 * min(1, epoch / 3)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"fan_in": 100}, {"step": slower_of_many_inputs(100)}),
        ({"fan_in": 100, "save_memory": True}, {"step": slower_of_many_inputs(100)}),
        ({"weight_decay": 0.1}, {"step": bound(adam, decay=0.1, decoupled=False)}),
        ({"optimiser": "adamw", "weight_decay": 0.1}, {"step": bound(adam, decay=0.1, decoupled=True)}),
        (
            {"optimiser": "sgd", "momentum": 0.8, "weight_decay": 0.1, "learning_rate": 0.05},
            {"step": bound(sgd, decay=0.1, momentum=0.8), "rate": lambda epoch: 0.05},
        ),
        ({"label_smoothing": 0.2}, {"losses": bound(entropies, smoothing=0.2)}),
        ({"class_weights": [1.0, 3.0]}, {"losses": bound(entropies, weights=[1.0, 3.0])}),
        ({"class_weights": "balanced"}, {"losses": bound(entropies, weights=BALANCED)}),
        (
            {"loss": "focal", "focal_gamma": 1.5, "class_weights": [1.0, 3.0]},
            {"losses": bound(focals, gamma=1.5, weights=[1.0, 3.0])},
        ),
        ({"accumulate": 2}, {"together": 2}),
        ({"clip_norm": 0.05, "optimiser": "sgd", "momentum": 0.0},
         {"clip": 0.05, "step": bound(sgd, decay=0.0, momentum=0.0)}),
        ({"ema_decay": 0.7}, {"average": 0.7}),
        ({"schedule": "cosine", "warmup_epochs": 2}, {"rate": cosine}),
        (
            {"schedule": "step", "decay_epochs": 2, "decay_factor": 0.3, "save_memory": True},
            {"rate": lambda epoch: LR * 0.3 ** ((epoch - 1) // 2)},
        ),
    ],
    ids=lambda value: ",".join(map(str, value)) if "step" not in value or "schedule" in value else "",
)  # fmt: skip
def test_the_loss_curve_follows_the_equations(tmp_path, choice, expected):
    history = train(tmp_path, **choice)
    found = [(row["train_loss"], row["validation_loss"]) for row in history]
    expected = follow(**{"losses": entropies, "step": bound(adam, **ADAM), **expected})
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    plain = follow(entropies, bound(adam, **ADAM))
    assert np.abs(np.array(found) / plain - 1).max() > 50 * TOLERANCE, "the choice makes a difference"


@pytest.mark.parametrize(("monitor", "sign"), [("loss", 1), ("accuracy", -1), ("auc", -1)])
def test_a_plateau_lowers_the_rate_and_the_best_epoch_is_that_of_the_monitor(tmp_path, monitor, sign):
    misleading = [(x, 1 - y) for x, y in VALIDATION]
    choice = {"schedule": "plateau", "decay_epochs": 1, "decay_factor": 0.5, "monitor": monitor}
    history = train(tmp_path, max_epochs=12, validation_set=misleading, **choice)
    best, waited, rate = math.inf, 0, LR
    for row in history:
        assert row["learning_rate"] == pytest.approx(rate)
        value = sign * row[f"validation_{monitor}"]
        improved = value < best - 1e-4 * abs(best) if best < math.inf else True
        best, waited = (value, 0) if improved else (best, waited + 1)
        if waited > 1:
            rate, waited = rate / 2, 0
    assert rate < LR
    order = [(sign * row[f"validation_{monitor}"], row["validation_loss"]) for row in history]
    expected = history[order.index(min(order))]
    model = network()
    checkpoint.load_weights(model, tmp_path / "weights.safetensors")
    x, y = stacked(misleading, range(len(misleading)))
    logits = model.double().eval()(x).detach()
    assert entropies(logits, y).mean().item() == pytest.approx(expected["validation_loss"], rel=TOLERANCE)
    assert roc_auc_score(y, logits[:, 1] - logits[:, 0]) == pytest.approx(expected["validation_auc"])


def test_balanced_sampling_draws_both_classes_alike():
    labels = [0] * 90 + [1] * 10
    order = Recipe(sampling="balanced").make_order(labels)
    epochs = [order(np.random.default_rng([0, epoch])) for epoch in range(40)]
    assert {len(drawn) for drawn in epochs} == {100}
    share = np.mean([labels[item] for drawn in epochs for item in drawn])
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(4000), "within four standard errors"
    assert epochs[0] == order(np.random.default_rng([0, 0])) != epochs[1]


def test_balanced_weights_count_both_classes_the_same_and_a_case_one_on_average():
    labels = [0] * 30 + [1] * 6
    loss = Recipe(class_weights="balanced").make_loss(labels)
    alike = torch.zeros(36, 2)
    of_class = [loss(alike[:30], torch.zeros(30).long()), loss(alike[:6], torch.ones(6).long())]
    assert of_class == pytest.approx([18 * math.log(2)] * 2)


ALL_OF_IT = {
    "optimiser": "sgd", "weight_decay": 0.01, "schedule": "plateau", "decay_epochs": 1, "warmup_epochs": 2,
    "loss": "focal", "class_weights": "balanced", "sampling": "balanced", "accumulate": 2, "clip_norm": 0.5,
    "ema_decay": 0.9, "monitor": "auc", "learning_rate": 0.05,
}  # fmt: skip


@pytest.mark.parametrize("choice", [ALL_OF_IT, {"optimiser": "adamw", "schedule": "step", "save_memory": True}])
def test_going_on_is_bit_for_bit(tmp_path, choice):
    whole = train(tmp_path / "whole", network(0.3), **choice)
    for epochs in (1, 3, EPOCHS):
        parts = train(tmp_path / "parts", network(0.3), max_epochs=epochs, **choice)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    without_time = [[{**row, "seconds": 0} for row in history] for history in (whole, parts)]
    assert without_time[0] == without_time[1]


def test_a_cosine_ends_where_it_was_to_end(tmp_path):
    train(tmp_path, max_epochs=2, schedule="cosine")
    longer = train(tmp_path, schedule="cosine")  # begins anew: its rates were others
    assert [row["learning_rate"] for row in longer] == pytest.approx([
        LR * (1 + math.cos(math.pi * t / EPOCHS)) / 2 for t in range(EPOCHS)
    ])


def test_the_settings_are_the_recipe_and_what_the_stage_makes():
    settings = {field.name: field.default for field in fields(Training)}
    recipe = {field.name: field.default for field in fields(Recipe)}
    assert settings.keys() - recipe.keys() == {"augmentation", "tracking"}
    assert list(recipe) == [name for name in settings if name in recipe]
    required = ("max_epochs", "seed")
    assert {name: settings[name] for name in recipe if name not in required} == {
        name: value for name, value in recipe.items() if name not in required
    }


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"optimiser": "rmsprop"}, "training.optimiser is 'rmsprop', expected one of adam, adamw, sgd"),
        ({"schedule": "linear"}, "training.schedule is 'linear', expected one of constant, cosine, step, plateau"),
        ({"loss": "hinge"}, "training.loss is 'hinge'"),
        ({"monitor": "f1"}, "training.monitor is 'f1', expected one of loss, accuracy, auc"),
        ({"sampling": "all"}, "training.sampling is 'all'"),
        ({"momentum": 1.0}, "training.momentum is 1.0, expected 0 or more and less than 1"),
        ({"weight_decay": -1}, "training.weight_decay is -1"),
        ({"decay_factor": 1.0}, "training.decay_factor is 1.0"),
        ({"decay_epochs": 0}, "training.decay_epochs is 0"),
        ({"warmup_epochs": -1}, "training.warmup_epochs is -1"),
        ({"label_smoothing": 1.0}, "training.label_smoothing is 1.0"),
        ({"focal_gamma": -1.0}, "training.focal_gamma is -1.0"),
        ({"class_weights": "even"}, "training.class_weights is even, expected null, balanced, or two numbers"),
        ({"class_weights": [1.0]}, "training.class_weights is"),
        ({"class_weights": 2.0}, "training.class_weights is 2.0"),
        ({"accumulate": 0}, "training.accumulate is 0"),
        ({"clip_norm": 0.0}, "training.clip_norm is 0.0"),
        ({"ema_decay": 1.0}, "training.ema_decay is 1.0"),
        ({"save_memory": True, "clip_norm": 1.0}, "save_memory and training.clip_norm exclude each other"),
        ({"save_memory": True, "accumulate": 2}, "save_memory and training.accumulate exclude each other"),
        ({"shard": True, "ema_decay": 0.9}, "shard and training.ema_decay exclude each other"),
        ({"shard": True, "clip_norm": 0.9}, "shard and training.clip_norm exclude each other"),
        ({"shard": True, "warmup_epochs": 1}, "shard and a schedule exclude each other; set schedule to constant"),
        ({"loss": "focal", "label_smoothing": 0.1}, "loss=focal and training.label_smoothing exclude"),
    ],
)
def test_what_is_no_recipe_is_said(choice, words):
    with pytest.raises(InputError, match=words):
        Recipe(**choice)


@pytest.mark.parametrize(
    "choice", [{"class_weights": "balanced"}, {"sampling": "balanced"}, {"monitor": "auc"}], ids=str
)
def test_a_set_of_one_class_is_said(tmp_path, choice):
    normal = [case for case in TRAIN if case[1] == 0]
    with pytest.raises(InputError, match="has 15 normal and 0 reduced cases, expected some of both"):
        training.train(network(), normal, normal, Recipe(**choice), folder=tmp_path, fingerprint="a")
    assert list(tmp_path.iterdir()) == []
