"""Numbers that are not numbers, and numbers too small for float16."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_tenth_c import (
    cross_entropy,
    sampled,
    scaled_digits,
    sentences,
    squared_error,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import Evidence, Symptom, learns_less, not_finite
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


# Not finite


class Convolutions(nn.Module):
    """Digits by convolutions with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
        )
        self.head = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.view(-1, 1, 8, 8)).flatten(1))


def own_cross_entropy(model: nn.Module, x: Tensor, y: Tensor, sharpness: float) -> Tensor:
    """−Σ y log p, written out, of a sharpened softmax."""
    p = torch.softmax(sharpness * model(x), dim=-1)
    return -(F.one_hot(y, 10) * torch.log(p)).sum(-1).mean()


def library_cross_entropy(model: nn.Module, x: Tensor, y: Tensor, sharpness: float) -> Tensor:
    """The same, of the logits."""
    return F.cross_entropy(sharpness * model(x), y)


def convolutions(own: bool = False) -> Training:
    """A CNN whose logits are divided by a temperature of 1/30."""
    torch.manual_seed(21)
    model = Convolutions()
    return Training(
        model,
        sampled(*scaled_digits(), size=48),
        partial(own_cross_entropy if own else library_cross_entropy, sharpness=30.0),
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=120,
        every=3,
    )


class Twins(nn.Module):
    """An encoder for pairs of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(a), self.encode(b)


def contrast(model: nn.Module, a: Tensor, b: Tensor, same: Tensor, inside: float) -> Tensor:
    """Contrastive loss of the Euclidean distance; `inside` is added below the root."""
    u, v = model(a, b)
    distance = torch.sqrt((u - v).pow(2).sum(-1) + inside)
    apart = (2.0 - distance).clamp(min=0).pow(2)
    return torch.where(same, distance.pow(2), apart).mean()


def pairs(step: int, x: Tensor, y: Tensor) -> Batch:
    """Pairs of images; now and then one is paired with itself."""
    generator = torch.Generator().manual_seed(step)
    i = torch.randint(len(x), (48,), generator=generator)
    j = torch.randint(len(x), (48,), generator=generator)
    if step % 25 == 24:
        j[0] = i[0]
    for k in range(24):
        alike = (y == y[i[k]]).nonzero().flatten()
        pick = torch.randint(len(alike) - 1, (1,), generator=generator)
        other = alike[alike != i[k]]
        if i[k] != j[k]:
            j[k] = other[pick][0]
    return x[i], x[j], y[i] == y[j]


def siamese(inside: float = 1e-8) -> Training:
    """A siamese network of digits."""
    torch.manual_seed(22)
    model = Twins()
    x, y = scaled_digits()
    return Training(
        model,
        partial(pairs, x=x, y=y),
        partial(contrast, inside=inside),
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        steps=120,
        every=3,
    )


class Pooled(nn.Module):
    """Attends over the words that are there and says what they are about."""

    def __init__(self, guard: bool) -> None:
        super().__init__()
        self.guard = guard
        self.words = nn.Embedding(30, 24, padding_idx=0)
        self.q = nn.Linear(24, 24)
        self.k = nn.Linear(24, 24)
        self.v = nn.Linear(24, 24)
        self.ff = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24))
        self.query = nn.Parameter(torch.randn(24) * 0.1)
        self.head = nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        pad = ids == 0
        if self.guard:
            pad = pad & ~pad.all(1, keepdim=True)
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 24**0.5
        scores = scores.masked_fill(pad[:, None], float("-inf"))
        x = x + F.softmax(scores, dim=-1) @ self.v(x)
        x = x + self.ff(x)
        pool = (x @ self.query).masked_fill(pad, float("-inf"))
        return self.head((F.softmax(pool, dim=-1)[:, None] @ x).squeeze(1))


def topics(count: int) -> tuple[Tensor, Tensor]:
    """Padded word lists of four topics; one list in 400 is empty."""
    generator = torch.Generator().manual_seed(23)
    y = torch.randint(4, (count,), generator=generator)
    own = 2 + 7 * y[:, None] + torch.randint(7, (count, 12), generator=generator)
    any_word = torch.randint(1, 30, (count, 12), generator=generator)
    ids = torch.where(torch.rand(count, 12, generator=generator) < 0.4, own, any_word)
    lengths = torch.randint(3, 13, (count,), generator=generator)
    lengths[::400] = 0
    return ids * (torch.arange(12) < lengths[:, None]), y


def pooled(guard: bool = True) -> Training:
    """Topics by attention with a padding mask."""
    torch.manual_seed(23)
    model = Pooled(guard)
    return Training(
        model,
        sampled(*topics(1200), size=16, seed=23),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=200,
        every=4,
    )


class OwnNormal(nn.Module):
    """An MLP that standardises its first hidden layer by the batch, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 48)
        self.body = nn.Sequential(nn.ELU(), nn.Linear(48, 24), nn.ELU(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        h = (h - h.mean(0)) / (h.std(0) + 1e-5)
        return self.body(h).squeeze(-1)


def in_order(step: int, x: Tensor, y: Tensor, size: int, whole: bool) -> Batch:
    """Batches one after the other; the last of an epoch has what is left, unless dropped."""
    count = len(x) // size if whole else -(-len(x) // size)
    at = (step % count) * size
    return x[at : at + size], y[at : at + size]


def leftover(whole: bool = True) -> Training:
    """1025 rows in batches of 32: one is left over."""
    torch.manual_seed(24)
    x = torch.randn(1025, 6) * 3 + 2
    y = torch.tanh(x[:, 0] - 2) + 0.3 * (x[:, 1] - x[:, 2])
    model = OwnNormal()
    return Training(
        model,
        partial(in_order, x=x, y=(y - y.mean()) / y.std(), size=32, whole=whole),
        squared_error,
        torch.optim.RMSprop(model.parameters(), lr=1e-3),
        steps=120,
        every=3,
    )


class GraphNet(nn.Module):
    """Two rounds of averaging over neighbours."""

    def __init__(self, loops: bool) -> None:
        super().__init__()
        self.loops = loops
        self.first = nn.Linear(8, 32)
        self.second = nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, nodes: Tensor, links: Tensor) -> Tensor:
        if self.loops:
            links = links + torch.eye(links.shape[-1])
        links = links / links.sum(-1, keepdim=True)
        x = F.relu(self.first(links @ nodes))
        x = x + F.relu(self.second(links @ x))
        return self.head(x)


def graph_batch(step: int, lonely: int = 15) -> Batch:
    """Eight graphs of 20 nodes in three communities; now and then a node has no neighbour."""
    generator = torch.Generator().manual_seed(step)
    y = torch.randint(3, (8, 20), generator=generator)
    kin = y[:, :, None] == y[:, None, :]
    dense = torch.where(kin, 0.7, 0.12)
    links = (torch.rand(8, 20, 20, generator=generator) < dense).float().triu(1)
    links = links + links.transpose(1, 2)
    for graph in links:
        for node in range(20):
            if graph[node].sum() == 0:
                other = (node + 1) % 20
                graph[node, other] = graph[other, node] = 1
    if step % 25 == lonely:
        links[0, 3], links[0, :, 3] = 0, 0
    nodes = torch.randn(8, 20, 8, generator=generator)
    nodes[..., :3] += 1.2 * F.one_hot(y, 3)
    return nodes, links, y


def by_node(model: nn.Module, nodes: Tensor, links: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of every node."""
    return F.cross_entropy(model(nodes, links).flatten(0, 1), y.flatten())


def graphs(loops: bool = True) -> Training:
    """Communities by a graph network that divides by the number of neighbours."""
    torch.manual_seed(25)
    model = GraphNet(loops)
    return Training(
        model,
        graph_batch,
        by_node,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=120,
        every=3,
    )


class Counts(nn.Module):
    """A sequence of counts, log-transformed, read by a GRU."""

    def __init__(self, plus: float) -> None:
        super().__init__()
        self.plus = plus
        self.gru = nn.GRU(3, 24, batch_first=True)
        self.out = nn.Linear(24, 3)

    def forward(self, counts: Tensor) -> Tensor:
        h, _ = self.gru(torch.log(counts + self.plus) / 3)
        return self.out(h[:, -1])


def demand(plus: float = 1.0) -> Training:
    """Forecasts the next counts of three shops; one is closed now and then."""
    torch.manual_seed(26)
    t = torch.arange(3000.0)
    rate = torch.stack([20 + 12 * torch.sin(t / p) for p in (3.0, 4.5, 7.0)], 1)
    counts = torch.poisson(rate).clamp(min=1)
    counts[777, 1] = counts[1500, 2] = counts[2222, 0] = 0
    windows = counts.unfold(0, 13, 1).transpose(1, 2)
    model = Counts(plus)
    return Training(
        model,
        sampled(windows[:, :12], (windows[:, 12] - 20) / 10, size=32, seed=26),
        squared_error,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=150,
        every=3,
    )


class TwoTowers(nn.Module):
    """Pictures and class names meet in one space."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        self.names = nn.Embedding(10, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.pictures(x) @ self.names.weight.T


def towers(half: bool = False) -> Training:
    """Adam with its usual ε; `half`: the model in float16, where that is 0."""
    torch.manual_seed(27)
    x, y = scaled_digits()
    model = TwoTowers()
    if half:
        model, x = model.half(), x.half()
    return Training(
        model,
        sampled(x, y, size=32),
        float_cross_entropy,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=150,
        every=3,
    )


def float_cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in float32 of the model's logits."""
    return F.cross_entropy(model(x).float(), y)


NOT_FINITE = Fault(
    "ind10-numbers-nonfinite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant(
            "own-cross-entropy",
            healthy=convolutions,
            broken=partial(convolutions, own=True),
            operation=("log",),
        ),
        Variant(
            "distance-of-equals",
            healthy=siamese,
            broken=partial(siamese, inside=0.0),
            operation=("sqrt",),
        ),
        Variant(
            "nothing-to-attend",
            healthy=pooled,
            broken=partial(pooled, guard=False),
            operation=("softmax", "_softmax"),
        ),
        Variant(
            "batch-of-one",
            healthy=leftover,
            broken=partial(leftover, whole=False),
            operation=("std",),
        ),
        Variant(
            "no-neighbours",
            healthy=graphs,
            broken=partial(graphs, loops=False),
            operation=("div",),
        ),
        Variant(
            "log-of-none",
            healthy=demand,
            broken=partial(demand, plus=0.0),
            operation=("log",),
        ),
        Variant(
            "adam-in-half",
            may=["update-too-large"],
            healthy=towers,
            broken=partial(towers, half=True),
        ),
    ],
)


# Too small for float16


def half_loss(model: nn.Module, *batch: Tensor, loss: Any) -> Tensor:
    """A loss under autocast in float16."""
    with torch.autocast("cpu", dtype=torch.float16):
        return loss(model, *batch)


def scaled_step(training: Training, step: int, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """A step with the loss scaled."""
    loss = training.loss_at(step)
    scaler.scale(loss).backward()
    scaler.step(training.optimizer)
    scaler.update()
    training.optimizer.zero_grad()
    return {"loss": loss.detach()}


class Upscale(nn.Module):
    """Makes small pictures large."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def dim_error(model: nn.Module, x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Squared error of pictures, one of several terms, hence its small weight."""
    return weight * F.mse_loss(model(x).float(), y)


def upscale(scaler: bool = True) -> Training:
    """Super-resolution of digits under autocast."""
    torch.manual_seed(31)
    x, _ = scaled_digits()
    large = F.interpolate(x.view(-1, 1, 8, 8), scale_factor=2, mode="bilinear")
    model = Upscale()
    training = Training(
        model,
        sampled(F.avg_pool2d(large, 2), large, size=16),
        partial(half_loss, loss=partial(dim_error, weight=1e-4)),
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=150,
    )
    if scaler:
        training.step = partial(scaled_step, scaler=torch.amp.GradScaler("cpu"))
    return training


class Sensor(nn.Module):
    """An MLP whose output is in volts: thousandths of what its last layer says."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return 1e-3 * self.body(x).squeeze(-1)


def volts(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Squared error of volts."""
    return F.mse_loss(model(x).float(), y)


def sensor(scaler: bool = True) -> Training:
    """Targets of the size of a millivolt, under autocast."""
    torch.manual_seed(32)
    x = torch.randn(1000, 8)
    y = 1e-3 * (torch.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2])
    model = Sensor()
    training = Training(
        model,
        sampled(x, y, size=128),
        partial(half_loss, loss=volts),
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=200,
    )
    if scaler:
        training.step = partial(scaled_step, scaler=torch.amp.GradScaler("cpu"))
    return training


class Successor(nn.Module):
    """One causal attention layer and an MLP over symbols."""

    def __init__(self, symbols: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 32)
        self.place = nn.Parameter(torch.randn(length, 32) * 0.1)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.merge = nn.Linear(32, 32)
        self.ff = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.out = nn.Linear(32, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.out(x + self.ff(x))


def twice_averaged(model: nn.Module, ids: Tensor, target: Tensor) -> Tensor:
    """The mean over the tokens, divided by the number of logits once more."""
    logits = model(ids).float()
    return F.cross_entropy(logits.flatten(0, 1), target.flatten()) / logits.numel()


def successor(scaler: bool = True) -> Training:
    """A small language model under autocast."""
    torch.manual_seed(33)
    text = sentences(600, 25, 40, seed=33)
    model = Successor(40, 24)
    training = Training(
        model,
        sampled(text[:, :-1], text[:, 1:], size=64),
        partial(half_loss, loss=twice_averaged),
        torch.optim.AdamW(model.parameters(), lr=3e-3, eps=1e-12),
        steps=120,
    )
    if scaler:
        training.step = partial(scaled_step, scaler=torch.amp.GradScaler("cpu"))
    return training


def mostly_zero(share: float) -> Symptom:
    """Of the gradient's elements that many are exactly 0, where the twin's are not."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        assert twin is not None
        zero = sorted(c.zero_share for c in run.checkpoints)[len(run.checkpoints) // 2]
        worse = learns_less(0.1)(run, twin)
        return {**worse, "is": worse["is"] and zero >= share, "zero": zero}

    return symptom


UNDERFLOW = Fault(
    "ind10-numbers-underflow",
    must=[["underflow"]],
    symptom=mostly_zero(0.5),
    variants=[
        Variant(
            "autocast-pictures",
            may=["no-update", "vanishing-gradient"],
            healthy=upscale,
            broken=partial(upscale, scaler=False),
        ),
        Variant(
            "small-units",
            may=["no-update", "vanishing-gradient"],
            healthy=sensor,
            broken=partial(sensor, scaler=False),
        ),
        Variant(
            "twice-averaged",
            may=["no-update", "vanishing-gradient", "diffuse-softmax"],
            healthy=successor,
            broken=partial(successor, scaler=False),
        ),
    ],
)

FAULTS = [NOT_FINITE, UNDERFLOW]
