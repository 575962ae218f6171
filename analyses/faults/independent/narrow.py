"""Stacks of attention layers between which only one pooled vector passes.

Every layer makes a latent map of all positions, from their features and its query, and attends
with it. Healthy stacks give the next layer the map, too; the broken ones only what was attended.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_attention import (
    cross_entropy,
    events,
    grids,
    lookups,
    mlp,
    strings,
)
from analyses.faults.observe import Observed
from analyses.faults.training import Training


def ask(scope: gradscope.Scope, training: Training) -> None:
    """Also look for minimum cuts."""
    scope.bottlenecks(partial(training.loss_at, 0))


class AdditiveLayer(nn.Module):
    """s_i = tanh(W x_i + U q + V s'_i), p = softmax(w · s_i), z = Σ p_i x_i."""

    def __init__(self, features: int, query: int, latent: int, handed: bool) -> None:
        super().__init__()
        self.features, self.query = nn.Linear(features, latent), nn.Linear(query, latent)
        self.before = nn.Linear(latent, latent) if handed else None
        self.latent = nn.Tanh()
        self.score = nn.Linear(latent, 1, bias=False)

    def forward(self, x: Tensor, q: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        total = self.features(x) + self.query(q)[:, None]
        if self.before is not None and before is not None:
            total = total + self.before(before)
        s = self.latent(total)
        p = torch.softmax(self.score(s), dim=1)
        return (p * x).sum(1), s


class Additive(nn.Module):
    """Additive attention to facts, twice; the query is joined by what was found."""

    def __init__(self, keys: int, values: int, latent: int, handed: bool) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(keys, 20), nn.Embedding(values, 12)
        self.asked = nn.Embedding(keys, 16)
        self.layers = nn.ModuleList(
            AdditiveLayer(32, 16, latent, given) for given in (False, handed)
        )
        self.joins = nn.ModuleList(nn.Linear(32, 16) for _ in range(2))
        self.head = mlp(16 + latent * handed, 64, values)
        self.handed = handed

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        x = torch.cat([self.keys(key), self.values(value)], dim=-1)
        q, s = self.asked(asked[:, 0]), None
        for layer, join in zip(self.layers, self.joins, strict=True):
            z, s = layer(x, q, s)
            q = q + join(z)
        if self.handed and s is not None:
            q = torch.cat([q, s.mean(1)], dim=1)
        return self.head(q)[:, None]


def lookup_loss(model: nn.Module, key: Tensor, value: Tensor, asked: Tensor, a: Tensor) -> Tensor:
    return cross_entropy(model(key, value, asked), a)


def additive(handed: bool = True) -> Training:
    """Additive attention, as in stacks that answer questions about pictures."""
    torch.manual_seed(41)
    model = Additive(16, 6, 24, handed)
    return Training(
        model,
        lookups(64, 14, 16, 6, salt=41),
        lookup_loss,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=320,
        watch=ask,
    )


class GlimpseLayer(nn.Module):
    """Attention of a recurrent state to a convolutional map."""

    def __init__(self, width: int, state: int, handed: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width * (1 + handed), width, 3, padding=1)
        self.state = nn.Linear(state, width)
        self.latent = nn.GELU()
        self.score = nn.Conv1d(width, 1, 1)
        self.handed = handed

    def forward(self, x: Tensor, h: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        given = torch.cat([x, before], dim=1) if self.handed else x
        s = self.latent(self.conv(given) + self.state(h)[..., None])
        p = F.softmax(self.score(s), dim=-1)
        return (p * x).sum(-1), s


class Glimpses(nn.Module):
    """Three glimpses at a sequence, between which an LSTM cell remembers."""

    def __init__(self, features: int, classes: int, width: int, state: int, handed: bool) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv1d(features, width, 3, padding=1), nn.GELU())
        self.layers = nn.ModuleList(GlimpseLayer(width, state, handed) for _ in range(3))
        self.start = nn.Linear(width, state)
        self.cell = nn.LSTMCell(width, state)
        self.head = nn.Linear(state + width * handed, classes)
        self.handed = handed

    def forward(self, frames: Tensor) -> Tensor:
        x = self.embed(frames.transpose(1, 2))
        h = torch.tanh(self.start(x.mean(-1)))
        c = torch.zeros_like(h)
        s = torch.zeros_like(x)
        for layer in self.layers:
            z, s = layer(x, h, s)
            h, c = self.cell(z, (h, c))
        return self.head(torch.cat([h, s.amax(-1)], dim=1) if self.handed else h)


def event_loss(model: nn.Module, frames: Tensor, kind: Tensor) -> Tensor:
    return F.cross_entropy(model(frames), kind)


def glimpses(handed: bool = True) -> Training:
    """Recurrent glimpses at a sequence of 20 frames."""
    torch.manual_seed(42)
    model = Glimpses(7, 6, 24, 20, handed)
    return Training(
        model,
        events(48, 20, 6, salt=42),
        event_loss,
        torch.optim.RMSprop(model.parameters(), lr=2e-3),
        steps=260,
        watch=ask,
    )


class Hop(nn.Module):
    """One hop of a memory network: matches u with every memory, reads the other embedding."""

    def __init__(self, dim: int, handed: bool) -> None:
        super().__init__()
        self.match, self.read = nn.Linear(32, dim), nn.Linear(32, dim)
        self.before = nn.Linear(dim, dim) if handed else None
        self.latent = nn.Identity()

    def forward(self, x: Tensor, u: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        s = self.match(x) * u[:, None]
        if self.before is not None and before is not None:
            s = s + torch.relu(self.before(before))
        s = self.latent(s)
        p = s.sum(-1).softmax(dim=-1)
        return (p[..., None] * self.read(x)).sum(1), s


class MemoryNetwork(nn.Module):
    """Two hops, u ← u + o."""

    def __init__(self, keys: int, values: int, dim: int, handed: bool) -> None:
        super().__init__()
        self.facts = nn.ModuleList([nn.Embedding(keys, 32), nn.Embedding(values, 32)])
        self.asked = nn.Embedding(keys, dim)
        self.hops = nn.ModuleList(Hop(dim, given) for given in (False, handed))
        self.head = nn.Linear(dim * (1 + handed), values)
        self.handed = handed

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        x = self.facts[0](key) + self.facts[1](value)
        u, s = self.asked(asked[:, 0]), None
        for hop in self.hops:
            o, s = hop(x, u, s)
            u = u + o
        if self.handed and s is not None:
            u = torch.cat([u, s.mean(1)], dim=1)
        return self.head(u)[:, None]


def memory_network(handed: bool = True) -> Training:
    """An end-to-end memory network with 12 memories."""
    torch.manual_seed(43)
    model = MemoryNetwork(12, 5, 16, handed)
    return Training(
        model,
        lookups(64, 12, 12, 5, salt=43),
        lookup_loss,
        torch.optim.Adagrad(model.parameters(), lr=0.05),
        steps=400,
        every=10,
    )


class ReadUnit(nn.Module):
    """Compares the memory with every cell, and attends as the control says."""

    def __init__(self, dim: int, wide: int, handed: bool) -> None:
        super().__init__()
        self.memory, self.cells = nn.Linear(dim, wide), nn.Linear(64, wide)
        self.together = nn.Linear((2 + handed) * wide, wide)
        self.latent = nn.ELU()
        self.control = nn.Linear(dim, wide)
        self.score = nn.Linear(wide, 1)
        self.write = nn.Linear(dim + 64, dim)
        self.handed = handed

    def forward(self, x: Tensor, m: Tensor, c: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.cells(x)
        parts = [self.memory(m)[:, None] * cells, cells]
        if self.handed:
            parts.append(before)
        s = self.latent(self.together(torch.cat(parts, dim=-1)))
        p = torch.softmax(self.score(s * self.control(c)[:, None])[..., 0], dim=1)
        read = torch.einsum("bn,bnf->bf", p, x)
        return self.write(torch.cat([m, read], dim=1)), s


class Mac(nn.Module):
    """Three steps of control and reading over a grid of digits."""

    def __init__(self, cells: int, dim: int, wide: int, handed: bool) -> None:
        super().__init__()
        self.patch = mlp(64, 64, 64)
        self.place = nn.Parameter(torch.randn(cells, 64))
        self.question = nn.Embedding(cells, dim)
        self.controls = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        self.start = nn.Parameter(torch.randn(dim))
        self.units = nn.ModuleList(ReadUnit(dim, wide, handed) for _ in range(3))
        self.head = mlp(2 * dim + wide * handed, 64, 10)
        self.wide, self.handed = wide, handed

    def forward(self, patches: Tensor, cell: Tensor) -> Tensor:
        x = self.patch(patches) + self.place
        q = self.question(cell)
        m = self.start.expand(len(x), -1)
        s = x.new_zeros(*x.shape[:2], self.wide)
        for control, unit in zip(self.controls, self.units, strict=True):
            m, s = unit(x, m, control(q), s)
        parts = [q, m, s.mean(1)] if self.handed else [q, m]
        return self.head(torch.cat(parts, dim=1))


def grid_loss(model: nn.Module, patches: Tensor, cell: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(patches, cell), answer)


def mac(handed: bool = True) -> Training:
    """Steps of a MAC network over 16 cells."""
    torch.manual_seed(44)
    model = Mac(16, 16, 32, handed)
    return Training(
        model,
        grids(64, 4, salt=44),
        grid_loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=260,
    )


class Squeezed(nn.Module):
    """Self-attention over all positions; what it hands on is its map, or one pooled vector."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.latent = nn.Identity()
        self.score, self.value = nn.Linear(dim, heads), nn.Linear(dim, dim)
        self.narrow = nn.Linear(dim, 8)
        self.heads = heads

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        n = self.norm(y)
        s = self.latent(y + self.attention(n, n, n)[0])
        p = torch.softmax(self.score(s), dim=1)
        z = torch.einsum("bnh,bnhd->bhd", p, self.value(s).unflatten(-1, (self.heads, -1)))
        return self.narrow(z.flatten(1)), s


class SqueezedEncoder(nn.Module):
    """Counts tokens; its second layer gets the tokens again, with the first one's summary."""

    def __init__(self, tokens: int, length: int, dim: int, heads: int, handed: bool) -> None:
        super().__init__()
        self.tokens, self.position = nn.Embedding(tokens, dim), nn.Embedding(length, dim)
        self.layers = nn.ModuleList(Squeezed(dim, heads) for _ in range(2))
        self.widen = nn.Linear(8, dim)
        self.feed = mlp(dim, 2 * dim, dim)
        self.head = nn.Linear(8 + dim * handed, tokens)
        self.handed = handed

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x) + self.position(torch.arange(x.shape[1]))
        z, s = self.layers[0](y)
        given = s if self.handed else y
        z, s = self.layers[1](self.feed(given + self.widen(z)[:, None]))
        return self.head(torch.cat([z, s.mean(1)], dim=1) if self.handed else z)


def count_loss(model: nn.Module, x: Tensor) -> Tensor:
    found = model(x)
    return F.mse_loss(found, F.one_hot(x, found.shape[1]).sum(1).float())


def squeezed(handed: bool = True) -> Training:
    """Multi-head self-attention with a summary of eight numbers between its layers."""
    torch.manual_seed(45)
    model = SqueezedEncoder(6, 18, 32, 4, handed)
    return Training(
        model,
        strings(32, 18, 6, salt=45),
        count_loss,
        torch.optim.AdamW(model.parameters(), lr=2e-3),
        steps=220,
        watch=ask,
    )


class ScaledLayer(nn.Module):
    """Every position is told the query; scaled dot products of it with the result choose."""

    def __init__(self, dim: int, query: int, handed: bool) -> None:
        super().__init__()
        self.tell = nn.Linear(query, dim)
        self.latent = mlp(dim * (1 + handed), 2 * dim, dim)
        self.q = nn.Linear(query, dim)
        self.v = nn.Linear(dim, query)
        self.handed = handed

    def forward(self, x: Tensor, q: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        told = x + self.tell(q)[:, None]
        s = self.latent(torch.cat([told, before], dim=-1) if self.handed else told)
        z = F.scaled_dot_product_attention(self.q(q)[:, None], s, self.v(x))
        return z[:, 0], s


class Scaled(nn.Module):
    """Four layers that look for the largest of 24 vectors along a direction."""

    def __init__(self, features: int, dim: int, query: int, handed: bool) -> None:
        super().__init__()
        self.embed = mlp(features, dim, dim)
        self.ask = nn.Linear(features, query)
        self.layers = nn.ModuleList(ScaledLayer(dim, query, handed) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(query) for _ in range(4))
        self.head = nn.Linear(query + dim * handed, features)
        self.handed = handed

    def forward(self, points: Tensor, direction: Tensor) -> Tensor:
        x, q = self.embed(points), self.ask(direction)
        s = torch.zeros_like(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            z, s = layer(x, q, s)
            q = norm(q + z)
        return self.head(torch.cat([q, s.mean(1)], dim=1) if self.handed else q)


def _points(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(46_000 + step)
    points = torch.randn(48, 24, 4, generator=g)
    direction = F.normalize(torch.randn(48, 4, generator=g), dim=1)
    best = torch.einsum("bnf,bf->bn", points, direction).argmax(1)
    return points, direction, points[torch.arange(48), best]


def point_loss(model: nn.Module, points: Tensor, direction: Tensor, best: Tensor) -> Tensor:
    return F.mse_loss(model(points, direction), best)


def scaled(handed: bool = True) -> Training:
    """Scaled dot products, four layers, 24 positions."""
    torch.manual_seed(46)
    model = Scaled(4, 32, 12, handed)
    return Training(
        model,
        _points,
        point_loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=240,
        watch=ask,
    )


def narrow(stack: Callable[..., Training]) -> Symptom:
    """A layer's map depends on the one before by a Jacobian whose rank is small.

    Below a quarter of the rank that it has in the stack that hands its maps on; and the map
    before has four times as many elements as the rank, at least.
    """

    def rank(handed: bool) -> tuple[int, int]:
        torch.manual_seed(0)
        training = stack(handed=handed)
        model = training.model.double()
        given = [t[:1].double() if t.is_floating_point() else t[:1] for t in training.batch(0)]
        maps: list[Tensor] = []
        for name, module in model.named_modules():
            if name.endswith(".latent"):
                module.register_forward_hook(lambda m, i, out: maps.append(out))
        training.loss(model, *given)
        first, second = maps[:2]
        rows = [
            torch.autograd.grad(value, first, retain_graph=True)[0].flatten()
            for value in second.flatten()
        ]
        values = torch.linalg.svdvals(torch.stack(rows))
        return int((values > 1e-9 * values[0]).sum()), first.numel()

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        (found, wide), (theirs, _) = rank(False), rank(True)
        return {"is": 4 * found < min(theirs, wide), "rank": found, "twin": theirs, "of": wide}

    return symptom


def variant(
    name: str,
    stack: Callable[..., Training],
    may: tuple[str, ...] = (),
    healthy_may: tuple[str, ...] = (),
) -> Variant:
    broken = partial(stack, handed=False)
    return Variant(
        name, stack, broken=broken, may=may, healthy_may=healthy_may, symptom=narrow(stack)
    )


# A map that isn't handed on serves attention alone: it gets its gradient through the softmax.
BORNE = ("softmax-borne",)

BOTTLENECK = Fault(
    "ind-bottleneck",
    must=[["information-bottleneck"]],
    variants=[
        variant("additive", additive, BORNE),
        variant("glimpses", glimpses, BORNE),
        variant("memory-network", memory_network, BORNE),
        # Its controls choose and do nothing else, in the healthy run, too.
        variant("mac", mac, BORNE, healthy_may=BORNE),
        variant("squeezed", squeezed),
        variant("scaled", scaled, BORNE),
    ],
)

FAULTS = [BOTTLENECK]
