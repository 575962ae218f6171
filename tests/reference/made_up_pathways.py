"""Made-up rows of exact pathways, each from a formula that is written here."""

import math

import numpy as np

from gradscope import Run, Site


def crossings(layers=4, *, plain=True, decades=2.0, steps=tuple(range(0, 200, 20)), role="l.{}.s"):
    """Rows and sites of latent-like sites `l.0.s`, …: each softmax costs `decades`.

    Plain: what arrives at layer k crossed layers - k softmaxes and nothing else. Otherwise 0.8 of
    it comes past the softmaxes, 0.3 crossed one, and -0.1 two.
    """
    rows, sites = [], []
    orders = range(layers + 1)
    for k in range(layers):
        name = role.format(k)
        sites.append(Site(name, "crossing", "module", k, -1, (8, 16, 4), 512))
        for step in steps:
            shares = [0.0] * (layers + 1)
            if plain:
                shares[layers - k] = 1.0
            else:
                shares[:3] = [0.8, 0.3, -0.1]
            mean = sum(order * share for order, share in zip(orders, shares, strict=True))
            rows.append((step, name, "crossing", "", "mean_crossings", mean))
            for order, share in zip(orders, shares, strict=True):
                size = abs(share) * 10 ** (-decades * order)
                rows.append((step, name, "crossing", str(order), "grad_norm", size))
                rows.append((step, name, "crossing", str(order), "projection", share))
    rows += [(step, "(sum check)", "crossing", "", "residual", 1e-7) for step in steps]
    return rows, [*sites, Site("(sum check)", "crossing", order=1 << 50)]


def pathway(site, name, through, rest, steps=tuple(range(0, 200, 20))):
    """Rows of one named pathway, its two parts at right angles; each a number or one a step."""
    rows = []
    for i, step in enumerate(steps):
        sizes = [v[i] if np.ndim(v) else v for v in (through, rest)]
        whole = math.hypot(*sizes)
        for edge, size in zip((name, f"(rest) {name}"), sizes, strict=True):
            share = (size / whole) ** 2 if whole else 0.0
            rows.append((step, site, "pathway", edge, "grad_norm", size))
            rows.append((step, site, "pathway", edge, "projection", share))
    return rows


def cut(
    source,
    sink,
    width,
    source_width,
    sink_width,
    *,
    kind="softmax",
    tensors=(),
    step=0,
    attended=None,
):
    """Rows, site and the entry of `meta["cuts"]` of one cut."""
    name = f"{source} → {sink}"
    sizes = {
        "width": width,
        "source_width": source_width,
        "sink_width": sink_width,
        "ratio": width / source_width,
        **({} if attended is None else {"attended": attended}),
    }
    rows = [(step, name, "cut", "", metric, float(v)) for metric, v in sizes.items()]
    entry = {
        "source": source,
        "sink": sink,
        "kind": kind,
        "tensors": list(tensors),
        "shapes": [[8, 4] for _ in tensors],
        **sizes,
    }
    return rows, Site(name, "cut", type=kind), entry


def stack_of_cuts(layers=4, *, width=16, latent=512, path="l.{}"):
    """Rows, sites and `meta["cuts"]` of a stack: from input to output, and layer to layer."""
    made = [cut("(input)", "(output)", 10, 368, 10, kind="module", tensors=("answer",))]
    made += [
        cut(
            path.format(k),
            path.format(k + 1),
            width,
            latent,
            latent,
            tensors=(f"{path.format(k)}.content",),
        )
        for k in range(layers - 1)
    ]
    rows = [row for rows, _, _ in made for row in rows]
    return rows, [site for _, site, _ in made], [entry for _, _, entry in made]


def probes(names, accuracy, baseline, steps=(100,)):
    rows = []
    for name in names:
        for i, step in enumerate(steps):
            value = accuracy[i] if np.ndim(accuracy) else accuracy
            rows += [
                (step, name, "probe", "", "accuracy", value),
                (step, name, "probe", "", "majority", baseline),
                (step, name, "probe", "", "shuffled", baseline * 0.8),
            ]
    sites = [Site(n, "probe", order=i, note="64 held-out samples") for i, n in enumerate(names)]
    return rows, sites


def ranks(layers=4, *, value=2.5, steps=tuple(range(0, 200, 20)), shape=(32, 64), path="l.{}"):
    """Effective rank of `l.0.content`, …, growing with the layer."""
    sites = [
        Site(f"{path.format(k)}.content", "module", "content", k, -1, shape, math.prod(shape))
        for k in range(layers)
    ]
    rows = [
        (step, site.name, "module", "", "effective_rank", value * (1 + 0.2 * k) * (1 + step / 400))
        for k, site in enumerate(sites)
        for step in steps
    ]
    return rows, sites


def activations(layers=4, *, steps=tuple(range(0, 200, 20)), path="l.{}"):
    """Rows and sites of ReLUs, of which k in a hundred units are dead in layer k, measured at
    every other step."""
    sites = [
        Site(f"{path.format(k)}.act", "activation", "relu", k, -1, (32, 64), 2048)
        for k in range(layers)
    ]
    rows = [
        (step, site.name, "activation", "", metric, value)
        for k, site in enumerate(sites)
        for i, step in enumerate(steps)
        for metric, value in (("dead_fraction", k / 100), ("saturated_fraction", 0.5 + k / 100))
        if i % 2 == 0
    ]
    return rows, sites


def with_pathways(run, *, plain=True, layers=4, path="l.{}", lost=None):
    """`run` with all of the above in addition, at its own recorded steps; NaN from `lost` on."""
    steps = tuple(int(s) for s in run.steps)
    source, names = f"{path.format(0)}.s", [f"place of {path.format(k)}" for k in (0, 1)]
    rows, sites = crossings(layers, plain=plain, steps=steps, role=f"{path}.s")
    rows += pathway(source, "latent", 0.0 if plain else 0.7, 1e-6 if plain else 0.3, steps)
    rows += pathway(source, "softmax", 1e-6 if plain else 0.2, 0.0 if plain else 0.8, steps)
    more, cut_sites, cuts = stack_of_cuts(layers, width=16 if plain else 512, path=path)
    rows += [(steps[0], *row[1:]) for row in more]
    probe_rows, probe_sites = probes(names, 0.5, 0.3, steps[-1:])
    rank_rows, rank_sites = ranks(layers, steps=steps, path=path)
    unit_rows, unit_sites = activations(layers, steps=steps, path=path)
    rows += [*probe_rows, *rank_rows, *unit_rows]
    if lost is not None:
        rows = [(*r[:5], np.nan) if r[0] >= lost and r[2] != "cut" else r for r in rows]
    added = Run.from_records(rows, [*sites, *cut_sites, *probe_sites, *rank_sites, *unit_sites])
    first = len(run.columns)
    for block in added.blocks:
        block.columns[:] += first
    return Run(
        {**run.meta, "cuts": cuts},
        {**added.sites, **run.sites},
        [*run.columns, *added.columns],
        [*run.blocks, *added.blocks],
        run.path,
    )
