"""Made-up runs that look like recorded ones: for what reads a `Run`, not for what measures it.

Every number follows from a formula that is written here, so that a test can say what a
table, a rule or a figure must show.
"""

import math

import numpy as np

from gradscope import Run, Site

META = {
    "gradscope": "0.1.0",
    "torch": "2.13.0",
    "python": "3.11.9",
    "platform": "Linux-x86_64",
    "created": "2026-01-31T12:34:56",
    "argv": ["train.py", "--layers", "4"],
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "every": 10,
    "status": "complete",
    "optimizer": {"class": "Adam", "lr": 1e-3, "betas": [0.9, 0.999]},
    "args": {"layers": 4, "task": "pointer", "seed": 0},
    "timings": {"total": 91.7, "recording": 1.9, "flush": 0.2},
    "unseen": [],
    "errors": [],
}


def scalars(steps, *, final=0.9, every_value=10, seed=0):
    """Rows of loss, accuracy, val_accuracy and lr: a noisy approach to `final`."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, step in enumerate(steps):
        done = 1 - math.exp(-4 * i / max(1, len(steps) - 1))
        accuracy = 0.1 + (final - 0.1) * done
        noise = rng.normal() * 0.02
        loss = 2.3 * (1.02 - done * final) * math.exp(3 * noise)
        rows += [
            (step, "loss", "scalar", "", "value", loss),
            (step, "accuracy", "scalar", "", "value", min(1.0, max(0.0, accuracy + noise))),
            (step, "lr", "scalar", "", "value", 1e-3 * (1 - 0.9 * done)),
        ]
        if i % every_value == 0 or i == len(steps) - 1:
            rows.append((step, "val_accuracy", "scalar", "", "value", accuracy - 0.03))
    return rows


def stacked_attention(
    layers=4,
    *,
    latent=False,
    steps=tuple(range(0, 1000, 10)),
    name=None,
    ranks=1,
    final=None,
    seed=0,
):
    """A stack of attention layers whose gradient shrinks per layer; a latent pathway mends it.

    The gradient of layer k's state is `0.08 ** (layers - 1 - k)` of the last one's (0.7 with
    the latent pathway), times a slow decay over training.
    """
    rng = np.random.default_rng(seed)
    factor = 0.7 if latent else 0.08
    final = final if final is not None else (0.97 if latent else 0.61)
    rows = scalars(steps, final=final, seed=seed)
    sites, n = [], 64
    order = 0

    def site(path, kind, type_, shape, depth, **more):
        nonlocal order
        sites.append(
            Site(path, kind, type_, order, depth, shape, math.prod(shape), **more),
        )
        order += 1

    site("embed", "module", "Linear", (32, 64, 48), 12 * layers + 9, parameters=True)
    for k in range(layers):
        depth = 12 * (layers - k)
        site(f"stack.layers.{k}.latent", "module", "Tanh", (32, n, 48), depth + 4)
        site(f"stack.layers.{k}.scores", "module", "Linear", (32, n), depth + 3, parameters=True)
        site(f"stack.layers.{k}", "softmax", "softmax", (32, n), depth + 2)
        site(f"stack.layers.{k}", "module", "AttentionLayer", (32, 48), depth)
        site(f"stack.layers.{k}", "fork", "AttentionLayer", (32, 48), depth)
        site(f"stack.layers.{k}.scores.weight", "parameter", "Parameter", (1, 48), depth + 5)
    site("classifier", "module", "Linear", (32, 10), 0, parameters=True)
    site("classifier.weight", "parameter", "Parameter", (10, 48), 1)

    for i, step in enumerate(steps):
        done = i / max(1, len(steps) - 1)
        for rank in range(ranks):
            for s in sites:
                level = _level(s.name, layers)
                jitter = math.exp(0.2 * rng.normal())
                size = 1e-2 * factor ** (layers - 1 - level) * math.exp(-2 * done) * jitter

                def row(metric, value, edge="", s=s, step=step, rank=rank):
                    rows.append((step, s.name, s.kind, edge, metric, value, rank))

                if s.kind == "module":
                    row("grad_norm", size * math.sqrt(s.numel))
                elif s.kind == "parameter":
                    row("grad_norm", size * math.sqrt(s.numel))
                    row("weight_norm", 3.0 + 0.1 * done)
                    row("update_ratio", 1e-3 * factor ** (0.3 * (layers - 1 - level)) * jitter)
                elif s.kind == "softmax":
                    entropy = min(1.0, max(0.0, 0.97 - 0.8 * done * (level + 1) / layers))
                    row("entropy", entropy)
                    row("max_prob", 1 / n + (1 - 1 / n) * (1 - entropy))
                    row("jacobian_norm", 0.5 * math.sqrt(max(1e-9, 1 - entropy)) * (entropy**2))
                    row("gain", (factor / 4) * jitter)
                else:
                    through = 0.04 + 0.1 * done * jitter if not latent else 0.3
                    edges = {
                        f"stack.layers.{level + 1}:add": 1 - through - (0.3 if latent else 0),
                        f"stack.layers.{level + 1}.scores:linear": through,
                    }
                    if latent:
                        edges[f"stack.layers.{level + 1}.latent:cat"] = 0.3
                    for edge, share in edges.items():
                        row("projection", share, edge)
                        row("grad_norm", abs(share) * size, edge)
                        row("cosine", share / (abs(share) + 0.05), edge)
                    row("grad_norm", size)
                    row("cancellation", 0.05 * jitter)
    meta = {
        **META,
        "name": name or ("latent" if latent else "stacked"),
        "model": {
            "class": "StackedLatentAttention" if latent else "StackedAttention",
            "parameters": 48_211,
            "trainable": 48_211,
            "text": "StackedAttention(\n  (embed): Linear(16, 48)\n)",
        },
        "ranks": ranks,
    }
    return Run.from_records(rows, sites, meta)


def _level(path, layers):
    parts = path.split(".")
    if "layers" in parts:
        return int(parts[parts.index("layers") + 1])
    return 0 if path.startswith("embed") else layers - 1


def deep_transformer(blocks=24, *, steps=tuple(range(0, 500, 25)), name="vision tower", seed=0):
    """About 12 × `blocks` sites with long names: for what has to stay readable."""
    rng = np.random.default_rng(seed)
    prefix = "model.vision_tower.encoder.layers"
    inside = (
        "layer_norm1",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "self_attn",
        "layer_norm2",
        "mlp.fc1",
        "mlp.activation_fn",
        "mlp.fc2",
        "mlp",
        "",
    )
    paths = ["model.vision_tower.embeddings.patch_embedding"]
    paths += [f"{prefix}.{b}.{i}".rstrip(".") for b in range(blocks) for i in inside]
    paths += ["model.vision_tower.post_layernorm", "model.classification_head.dense_projection"]
    sites = [
        Site(p, "module", "Module", k, len(paths) - k, (8, 196, 768), 8 * 196 * 768)
        for k, p in enumerate(paths)
    ]
    rows = scalars(steps, seed=seed)
    for i, step in enumerate(steps):
        for k, s in enumerate(sites):
            size = 1e-4 * math.exp(0.03 * k + 0.4 * rng.normal() - 0.02 * i)
            size *= 1 if s.name.count(".") <= 4 else 0.3
            rows.append((step, s.name, "module", "", "grad_norm", size * math.sqrt(s.numel)))
        for b in range(blocks):
            path = f"{prefix}.{b}.self_attn"
            entropy = 0.3 + 0.6 / (1 + 0.1 * b) - 0.001 * i
            rows.append((step, path, "softmax", "", "entropy", entropy))
            rows.append((step, path, "softmax", "", "max_prob", 1 - entropy))
            rows.append((step, path, "softmax", "", "gain", 0.01 + 0.2 * (1 - entropy)))
            for op, share in ((":add", 0.85 - b / 100), (".layer_norm1:norm", 0.15 + b / 100)):
                edge = f"{prefix}.{b + 1}{op}"
                rows.append((step, f"{prefix}.{b}", "fork", edge, "projection", share))
    meta = {**META, "name": name, "every": 25}
    return Run.from_records(rows, sites, meta)


def broken(layers=4, *, at=600, seed=0):
    """A stack whose gradients turn infinite, then NaN, from step `at` on; one site stays 0."""
    run = stacked_attention(layers, name="diverged", seed=seed)
    for block in run.blocks:
        late = block.steps >= at
        for j, c in enumerate(block.columns):
            column = run.columns[c]
            if column.kind in ("module", "parameter", "fork", "softmax"):
                block.values[late, j] = np.nan
                block.values[block.steps == at, j] = np.inf
            if column.site == "loss":
                block.values[late, j] = np.nan
            if column.site == "stack.layers.1.scores" and column.metric == "grad_norm":
                block.values[~late, j] = 0.0
    return run


def hostile():
    """Names that would break markup, mathematics, tables or a legend if taken literally."""
    names = (
        "<script>alert('x')</script>",
        "a$b$c",
        r"$\frac{",
        "_orig_mod.layers.0",
        "lstm[red][1]#2",
        "{{ 7 * 7 }}",
        "&amp;\"'",
        "слой.層",
        "x" * 300,
    )
    rows = scalars((0, 10, 20))
    for i, step in enumerate((0, 10, 20)):
        for k, name in enumerate(names):
            rows.append((step, name, "module", "", "grad_norm", 10.0 ** -(k + i)))
            rows.append((step, name, "softmax", "", "entropy", 0.5))
            rows.append((step, name, "fork", f"{name}:add", "projection", 0.7))
            rows.append((step, name, "fork", f"{name}:mul", "projection", 0.3))
            rows.append((step, name, "scalar", "", "value", float(k)))
    sites = [Site(n, "module", n, k, 9 - k, (2, 3), 6) for k, n in enumerate(names)]
    meta = {**META, "name": '<b>run & "name"</b>', "args": {"<i>": "<u>"}}
    meta["model"] = {"class": "<em>", "parameters": 6, "trainable": 6, "text": "</pre><script>1"}
    meta["unseen"] = [{"what": "<what>", "why": "<why>"}]
    meta["errors"] = ["<error>"]
    return Run.from_records(rows, sites, meta)
