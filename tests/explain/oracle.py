"""LRP written from its equations, in float64, with every layer as an explicit matrix; knows nothing of Zennit.

Nazari et al. 2022 (doi 10.1007/s00259-021-05569-9), eqs. 1-5, in the standard form of Bach et al. 2015 (doi
10.1371/journal.pone.0130140): eq. 3 prints the stabiliser inside the sum over inputs, and eq. 4 prints a plus
between the alpha and the beta term and leaves out R_j. The bias is the last input, of constant one.
"""

import numpy as np
from scipy import sparse
from torch import nn


def matrix(module, shape):
    """[W | b] of a layer, [outputs, inputs + 1], on inputs of ``shape``; and the shape of its output."""
    weight = module.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().numpy()
    if isinstance(module, nn.Linear):
        return sparse.csr_array(np.column_stack([weight, bias])), (len(weight),)
    channels, *space = shape
    filters, per_group, *kernel = weight.shape
    geometry = list(zip(space, module.padding, module.dilation, kernel, module.stride))
    out_space = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in geometry]
    sites, in_sites = int(np.prod(out_space)), int(np.prod(space))
    positions = np.indices(out_space).reshape(len(space), -1)
    rows, columns, values = [], [], []
    for tap in np.ndindex(*kernel):
        at = [o * s - p + t * d for o, t, (_, p, d, _, s) in zip(positions, tap, geometry)]
        inside = np.all([(a >= 0) & (a < n) for a, n in zip(at, space)], axis=0)
        in_site = np.ravel_multi_index([a[inside] for a in at], space)
        for number, channel in np.ndindex(filters, per_group):
            group = number // (filters // module.groups)
            rows.append(number * sites + np.flatnonzero(inside))
            columns.append((group * per_group + channel) * in_sites + in_site)
            values.append(np.full(len(in_site), weight[number, channel][tap]))
    rows.append(np.arange(filters * sites))
    columns.append(np.full(filters * sites, channels * in_sites))
    values.append(np.repeat(bias, sites))
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.coo_array(entries, shape=(filters * sites, channels * in_sites + 1)).tocsr(), (filters, *out_space)


def stabilised(z, epsilon):
    return z + epsilon * np.where(z < 0, -1.0, 1.0)


def propagate(rule, weights, x, relevance, bias=True, stabilizer=1e-6, **parameters):
    """Relevance of the inputs and, last, of the bias. ``weights`` [W | b], ``x`` [inputs], ``relevance`` [outputs]."""
    weights = weights.copy()
    if not bias or rule == "flat":
        weights = sparse.hstack([weights[:, :-1], sparse.csr_array((weights.shape[0], 1))]).tocsr()
    inputs = np.append(x, 1.0)
    contributions = weights.multiply(inputs).tocsr()
    positive, negative = contributions.maximum(0), contributions.minimum(0)

    def shared(part, relevance, epsilon=stabilizer):
        return part.T @ (relevance / stabilised(part.sum(axis=1), epsilon))

    match rule:
        case "epsilon":
            return shared(contributions, relevance, parameters.get("epsilon", 1e-6))
        case "alpha_beta":
            alpha, beta = parameters.get("alpha", 2), parameters.get("beta", 1)
            return alpha * shared(positive, relevance) - beta * shared(negative, relevance)
        case "zplus":
            return shared(positive, relevance)
        case "gamma":
            gamma, z = parameters.get("gamma", 0.25), contributions.sum(axis=1)
            above = shared(contributions + gamma * positive, relevance * (z > 0))
            return above + shared(contributions + gamma * negative, relevance * (z < 0))
        case "flat":
            pattern = weights.copy()
            pattern.data[:] = np.where(pattern.indices == pattern.shape[1] - 1, 0.0, 1.0)
            return shared(pattern, relevance)
        case "wsquare":
            return shared(weights.multiply(weights).tocsr(), relevance)
        case "zbox":
            low = np.append(np.full(len(x), parameters["low"]), 1.0)
            high = np.append(np.full(len(x), parameters["high"]), 1.0)
            boxed = contributions - weights.maximum(0).multiply(low) - weights.minimum(0).multiply(high)
            return shared(boxed.tocsr(), relevance)
    raise KeyError(rule)


def explain(model, x, rules, seed):
    """Relevance of a sequential network with ReLU for one case, and per layer (in, out, to the bias).

    ``rules`` maps layers' names to (rule, parameters), ``seed(logits)`` gives the relevance of the outputs.
    """
    shape, activation = x.shape, x.double().numpy().ravel()
    steps = []
    for name, module in model.named_children():
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            weights, shape = matrix(module, shape)
            steps.append((name, weights, activation))
            activation = weights @ np.append(activation, 1.0)
        elif isinstance(module, nn.ReLU):
            activation = np.maximum(activation, 0)
    relevance, ledger = seed(activation), {}
    for name, weights, inputs in reversed(steps):
        rule, parameters = rules[name]
        handed = propagate(rule, weights, inputs, relevance, **parameters)
        ledger[name] = relevance.sum(), handed[:-1].sum(), handed[-1]
        relevance = handed[:-1]
    return relevance.reshape(x.shape), activation, ledger
