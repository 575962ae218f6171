"""Attention that is nearly one-hot, or nearly uniform, whatever it is asked."""

from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults import data, nets, setups
from analyses.faults.case import Change, Fault, Variant
from analyses.faults.symptoms import diffuse, peaked
from analyses.faults.training import Training


def logits_times(factor: float) -> Change:
    """Every attention's temperature is off by a factor."""

    def change(training: Training) -> None:
        for module in training.model.modules():
            if isinstance(module, nets.SelfAttention):
                module.scale *= factor
            if isinstance(module, nets.AttentionPool):
                module.temperature *= factor

    return change


def weights_times(factor: float, *like: str) -> Change:
    def change(training: Training) -> None:
        with torch.no_grad():
            for name, weight in training.model.named_parameters():
                if any(part in name for part in like):
                    weight.mul_(factor)

    return change


def unscaled(training: Training) -> None:
    """The 1/√d is missing, with queries and keys of unit variance and more."""
    for module in training.model.modules():
        if isinstance(module, nets.SelfAttention):
            module.scale = 1.0
            nets.rescale(module.query, 25.0)
            nets.rescale(module.key, 25.0)


def collapse(training: Training) -> None:
    """Queries and keys learn ten thousand times too fast: entropy falls during training."""
    mine = [p for n, p in training.model.named_parameters() if ".query" in n or ".key" in n]
    held = {id(p) for p in mine}
    rest = [p for p in training.model.parameters() if id(p) not in held]
    training.optimizer = torch.optim.Adam(
        [{"params": rest, "lr": 3e-3}, {"params": mine, "lr": 1.0}]
    )


class Encoder(nn.Module):
    """nn.TransformerEncoder: attention is fused."""

    def __init__(self, depth: int = 2, dim: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(9, dim)
        layer = nn.TransformerEncoderLayer(dim, 2, 2 * dim, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x))[:, 0])


def encoder(depth: int = 2, dim: int = 32, optimizer: str = "adam", lr: float = 3e-3) -> Training:
    """The marked value has to be fetched by the first position."""
    torch.manual_seed(0)
    return setups.assemble(
        Encoder(depth, dim), data.marked(), optimizer=optimizer, lr=lr, steps=300, every=10
    )


def in_proj_times(factor: float) -> Change:
    """Queries and keys of fused attention, not its values."""

    def change(training: Training) -> None:
        with torch.no_grad():
            for name, p in training.model.named_parameters():
                if "in_proj_weight" in name:
                    p[: 2 * len(p) // 3].mul_(factor)

    return change


lookup = partial(setups.transformer, on="lookup", batch=32)
slowly = partial(lookup, optimizer="momentum", lr=0.1, steps=300, every=10)

# Where attention is the only way, what lies before it gets no gradient, either.
NOTHING_BEFORE = ["starved-pathway", "no-update", "vanishing-gradient"]

# Queries and keys behind a one-hot softmax get no gradient.
NOT_LEARNED = ["starved-pathway", "no-update"]
# Uniform weights pass on 1/n: what lies behind them is starved, and moves little.
DILUTED = ["starved-pathway", "no-update", "softmax-borne", "vanishing-gradient"]

PEAKED = Fault(
    "peaked",
    must=[["peaked-softmax"]],
    may=NOT_LEARNED,
    symptom=peaked(0.15),
    variants=[
        Variant("transformer-logits-times-300", slowly, logits_times(300)),
        # Positions with the same value tie: a fifth of the entropy stays, whatever the logits.
        Variant(
            "pool-logits-times-1000",
            setups.pool,
            logits_times(1000),
            symptom=peaked(0.3),
            may=NOTHING_BEFORE,
        ),
        Variant(
            "transformer-no-sqrt-d",
            partial(lookup, dim=64, heads=1),
            unscaled,
        ),
        Variant(
            "san-large-scores",
            partial(setups.arrows, "san-residual", layers=2),
            weights_times(150, "score"),
            # A vector is all that its layers hand on, whether they learn or not.
            may=[*NOT_LEARNED, "information-bottleneck"],
            healthy_may=["information-bottleneck"],
        ),
        Variant(
            # The updates that make it collapse are too large.
            "transformer-entropy-collapse",
            lookup,
            collapse,
            may=[
                "starved-pathway",
                "no-update",
                "update-too-large",
                "exploding-gradient",
            ],
        ),
        Variant(
            "fused-encoder-large-in-proj",
            partial(encoder, optimizer="momentum", lr=0.05),
            in_proj_times(150),
            symptom=peaked(0.3),  # as above
            # Rows that are the sum of one or two values: rectifiers behind them die.
            may=[*NOTHING_BEFORE, "dead-units"],
        ),
        Variant(
            "sla-large-scores", partial(setups.arrows, "sla", layers=3), weights_times(200, "score")
        ),
        Variant(
            "post-norm-3-logits-times-1000",
            partial(slowly, depth=3, norm="post", lr=0.03),
            logits_times(1000),
            may=NOTHING_BEFORE,
        ),
    ],
)


def frozen_uniform(*like: str) -> Change:
    """Queries (or scores) start at 0 and learn a million times too slowly."""

    def change(training: Training) -> None:
        named = dict(training.model.named_parameters())
        mine = [p for n, p in named.items() if any(part in n for part in like)]
        held = {id(p) for p in mine}
        lr = training.optimizer.param_groups[0]["lr"]
        with torch.no_grad():
            for p in mine:
                p.mul_(1e-3)
        training.optimizer = torch.optim.Adam(
            [
                {"params": [p for p in named.values() if id(p) not in held], "lr": lr},
                {"params": mine, "lr": lr * 1e-4},
            ]
        )

    return change


DIFFUSE = Fault(
    "diffuse",
    must=[["diffuse-softmax"]],
    may=DILUTED,
    symptom=diffuse(0.98),
    variants=[
        Variant("pool-logits-over-1000", setups.pool, logits_times(1e-3)),
        Variant(
            "transformer-logits-over-1e5",
            lookup,
            logits_times(1e-5),
        ),
        Variant(
            "san-frozen-scores",
            partial(setups.arrows, "san-residual", layers=2),
            frozen_uniform("score"),
            may=[*DILUTED, "information-bottleneck"],
        ),
        Variant(
            "pool-64-positions-frozen-query",
            partial(setups.pool, positions=64),
            frozen_uniform("query", "key"),
        ),
        Variant("fused-encoder-tiny-in-proj", encoder, lambda t: fixed_small(t)),
        Variant(
            "transformer-keys-all-alike",
            partial(lookup, depth=1, dim=48),
            lambda t: alike(t),
        ),
        Variant(
            "sla-frozen-scores", partial(setups.arrows, "sla", layers=3), frozen_uniform("score")
        ),
        Variant(
            "encoder-deep-tiny-queries",
            partial(lookup, depth=3, norm="post"),
            logits_times(1e-4),
        ),
    ],
)


def fixed_small(training: Training) -> None:
    """Queries and keys of a fused attention a thousand times too small."""
    with torch.no_grad():
        for name, p in training.model.named_parameters():
            if "in_proj_weight" in name:
                p[: 2 * len(p) // 3].mul_(1e-3)
    for group in training.optimizer.param_groups:
        group["lr"] = 1e-5


def alike(training: Training) -> None:
    """Keys are averaged over positions, a bug in a reshape: all logits of a row are the same."""
    for module in training.model.modules():
        if isinstance(module, nets.SelfAttention):
            module.key.register_forward_hook(lambda m, x, y: y.mean(1, keepdim=True).expand_as(y))
