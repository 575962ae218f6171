"""Made-up runs with a known cause: every helper returns rows for `Run.from_records`."""

from __future__ import annotations

import numpy as np

from gradscope.run import Run, Site


def rng(seed=0):
    return np.random.default_rng(seed)


def ladder(decades_per_layer, layers=6, steps=40, *, role="layers.{}.out", noise=0.1, scale=1.0):
    """Gradient norms of `layers` sites; decades_per_layer > 0 vanishes toward the input.

    `decades_per_layer` may be a function of the step.
    """
    random, rows = rng(), []
    for step in range(steps):
        rate = decades_per_layer(step) if callable(decades_per_layer) else decades_per_layer
        for k in range(layers):
            log = -rate * (layers - 1 - k) + noise * random.standard_normal()
            rows.append((step, role.format(k), "module", "", "grad_norm", scale * 10**log))
    return rows


def ladder_sites(layers=6, *, role="layers.{}.out", numel=64, depth=10, **other):
    return [
        Site(role.format(k), "module", "Linear", k, depth * (layers - k), (8, 8), numel, **other)
        for k in range(layers)
    ]


def loss(start, end, steps=40, noise=0.02, name="loss"):
    curve = np.geomspace(start, end, steps) * (1 + noise * rng(1).standard_normal(steps))
    return [(step, name, "scalar", "", "value", v) for step, v in enumerate(curve)]


def series(kind, site, metric, values, *, edge="", every=1):
    return [(i * every, site, kind, edge, metric, v) for i, v in enumerate(values)]


def parameters(names, steps=40, *, grad=0.1, ratio=1e-3, weight=1.0, noise=0.1):
    """Rows of healthy parameters; grad and ratio may be dicts by name."""
    random, rows = rng(2), []
    for name in names:
        g = grad.get(name, 0.1) if isinstance(grad, dict) else grad
        u = ratio.get(name, 1e-3) if isinstance(ratio, dict) else ratio
        for step in range(steps):
            wobble = np.exp(noise * random.standard_normal())
            rows += [
                (step, name, "parameter", "", "grad_norm", g * wobble),
                (step, name, "parameter", "", "update_ratio", u * wobble),
                (step, name, "parameter", "", "weight_norm", weight * (1 + 1e-4 * step)),
            ]
    return rows


def parameter_sites(names, shape=(8, 8)):
    return [
        Site(n, "parameter", "Parameter", i, -1, shape, int(np.prod(shape)))
        for i, n in enumerate(names)
    ]


def softmax(site, entropy, *, n=16, gain=None):
    """Rows of a softmax whose normalised entropy follows `entropy`, one value a step."""
    rows = []
    for step, h in enumerate(entropy):
        certain = min(1.0, 1 / n + (1 - 1 / n) * (1 - h))
        values = {
            "entropy": h,
            "evenness": h,
            "uniform_gain": 1 / n,
            "max_prob": certain,
            "jacobian_norm": 0.25 * h,
            "gain": h / n if gain is None else gain,
        }
        rows += [(step, site, "softmax", "", m, v) for m, v in values.items()]
    return rows


def softmax_sites(names, n=16):
    return [Site(s, "softmax", "softmax", i, -1, (4, n), 4 * n) for i, s in enumerate(names)]


def fork(site, norms, total, steps=40):
    """Edges with constant norms; `norms` maps edge → norm or one norm a step."""
    rows = []
    for step in range(steps):
        at = {e: (v[step] if np.ndim(v) else v) for e, v in norms.items()}
        whole = total[step] if np.ndim(total) else total
        rows.append((step, site, "fork", "", "grad_norm", whole))
        together = sum(at.values())
        rows.append((step, site, "fork", "", "cancellation", 1 - whole / together))
        for edge, value in at.items():
            rows.append((step, site, "fork", edge, "grad_norm", value))
            rows.append((step, site, "fork", edge, "projection", 0.5))
    return rows


def run(rows, sites=(), meta=None):
    return Run.from_records(rows, sites, meta)
