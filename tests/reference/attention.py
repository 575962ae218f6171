"""Attention stacks by loops over samples, positions and units, in Python numbers.

Weights are those of the module under test, read one by one: no matrix product, no broadcast.
"""

import math

import torch


def linear(layer, x):
    """W x + b, x a list."""
    weight = layer.weight.tolist()
    bias = [0.0] * len(weight) if layer.bias is None else layer.bias.tolist()
    return [
        b + sum(w * x_j for w, x_j in zip(row, x, strict=True))
        for row, b in zip(weight, bias, strict=True)
    ]


def attend(layer, v, u, previous=None):
    """One sample: v a list of N vectors, u a vector -> content, weights, latent."""
    latent = []
    for i, v_i in enumerate(v):
        parts = [linear(layer.from_features, v_i), linear(layer.from_query, u)]
        if previous is not None:
            parts.append(linear(layer.from_previous, previous[i]))
        latent.append([math.tanh(sum(terms)) for terms in zip(*parts, strict=True)])
    logits = [linear(layer.score, s_i)[0] for s_i in latent]
    top = max(logits)
    exps = [math.exp(e - top) for e in logits]
    weights = [e / sum(exps) for e in exps]
    content = [0.0] * len(v[0])
    for p_i, v_i in zip(weights, v, strict=True):
        content = [z + p_i * x for z, x in zip(content, v_i, strict=True)]
    return content, weights, latent


def stack(model, features, question, *, latent):
    """The whole stack, (B, N, D) and (B, D) -> (B, out_dim); `latent`: with latent concat."""
    answers = []
    for v, h in zip(features.tolist(), question.tolist(), strict=True):
        u, before = h, None
        for layer in model.layers:
            z, _, s = attend(layer, v, u, before if latent else None)
            before = s
            u = {
                "residual": [a + b for a, b in zip(u, z, strict=True)],
                "anchored": [a + b for a, b in zip(h, z, strict=True)],
                "chain": z,
            }[model.query]
        pooled = [sum(unit) / len(s) for unit in zip(*s, strict=True)] if latent else []
        answers.append([*u, *pooled])
    return torch.tensor(answers, dtype=torch.float64)
