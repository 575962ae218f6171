"""Transformers, attention stacks, mixtures of experts."""

from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults import data, nets, setups
from analyses.faults.case import Healthy
from analyses.faults.training import Batch, Training


def padded() -> Training:
    """Sequences of different lengths, padded at the end, with a mask."""
    torch.manual_seed(0)
    model = nets.Transformer(9, 8, dim=32, depth=2)
    usual = data.marked()

    def batch(step: int) -> Batch:
        x, y = usual(step)
        lengths = torch.randint(4, 17, (len(x),), generator=torch.Generator().manual_seed(step))
        pad = torch.arange(16) >= lengths.unsqueeze(1)
        kept = torch.where((pad & (x[:, :, 8] == 1)).any(1, keepdim=True), False, pad)
        return x.masked_fill(kept.unsqueeze(2), 0.0), y, kept

    def loss(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x, mask), y)

    return setups.assemble(model, batch, loss, lr=3e-3)


class Experts(nn.Module):
    """Every sample goes to the k experts that a router likes best, weighted by its softmax."""

    def __init__(self, experts: int = 6, k: int = 2, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nets.mlp([width, width, width]) for _ in range(experts))
        self.head = nn.Linear(width, 10)
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        weights, chosen = self.router(h).softmax(-1).topk(self.k, dim=-1)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            row, place = (chosen == number).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, weights[row, place].unsqueeze(1) * expert(h[row]))
        return self.head(h + out)


def experts(batch: int = 64, count: int = 6, k: int = 2) -> Training:
    """With a small batch, some experts get nothing at some steps."""
    torch.manual_seed(0)
    return setups.assemble(Experts(count, k), data.digits(batch), lr=2e-3)


def tied() -> Training:
    """Output weights are the embedding's."""
    training = setups.transformer()
    model = training.model
    model.head.weight = model.embed.weight  # type: ignore[union-attr]
    training.optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return training


RUNS = Healthy(
    "attention",
    {
        "transformer-pre-norm-4": partial(setups.transformer, depth=4, lr=1e-3),
        "transformer-post-norm-3": partial(setups.transformer, depth=3, norm="post", lr=1e-3),
        "sla-6": partial(setups.arrows, "sla", layers=6),
        "sla-4-bottlenecks": partial(setups.arrows, "sla", layers=4, bottlenecks=True),
        "padded": padded,
        "experts-top-2": experts,
        "experts-small-batch": partial(experts, 8, 8, 1),
        "tied-weights": tied,
        # Attention that copies is nearly one-hot, and right.
        "induction": partial(
            setups.transformer, on="repeated", depth=2, dim=48, lr=5e-3, steps=400, every=10
        ),
        "pool-learns-to-point": partial(setups.pool, steps=300),
        "pool-large-batch": partial(setups.pool, dim=64, positions=8),
        "text-1-layer": partial(setups.transformer, depth=1, dim=48),
    },
    may={
        # Heads that have learned to point are peaked: true, and no fault.
    },
)
