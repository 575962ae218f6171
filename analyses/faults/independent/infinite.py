"""Runs that come to a number that is none: each by another operation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_deep import (
    classify,
    digits,
    drawn,
    generator,
    shapes,
)
from analyses.faults.symptoms import not_finite
from analyses.faults.training import Batch, Training

# --- log(0) ---------------------------------------------------------------------------------------


def _by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(model(x))
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def _by_torch(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x), y)


def own_cross_entropy(faulty: bool = False) -> Training:
    """Is the digit odd? The fault is a cross-entropy of probabilities, which become 0 and 1."""
    torch.manual_seed(41)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(),
                          nn.Linear(32, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    data = drawn((x, (y % 2).float()[:, None]), 64)
    loss = _by_hand if faulty else _by_torch
    return Training(model, data, loss, optimizer, steps=150)


# --- The derivative of a root at 0 ----------------------------------------------------------------


class Tower(nn.Module):
    """Convolutions to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64, 16),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _pairs(step: int) -> Batch:
    """Pairs of images, and whether they are of the same class; very rarely twice the same image."""
    x, y = digits()
    x = x.view(-1, 1, 8, 8)
    g = generator(step)
    a = torch.randint(len(x), (32,), generator=g)
    b = (a + torch.randint(1, len(x), (32,), generator=g)) % len(x)
    b = torch.where(torch.arange(32) % 2 == 0, _partner(a, y, step), b)
    return x[a], x[b], (y[a] == y[b]).float()


def _partner(a: Tensor, y: Tensor, step: int) -> Tensor:
    """For each image another of its class, and very rarely itself."""
    g = generator(step + 60_000)
    same = (y[a][:, None] == y[None]).float()
    same[torch.arange(len(a)), a] = 0
    other = torch.multinomial(same, 1, generator=g)[:, 0]
    return torch.where(torch.rand(len(a), generator=g) < 0.0004, a, other)


def _contrast(model: nn.Module, a: Tensor, b: Tensor, same: Tensor, inside: float) -> Tensor:
    squared = (model(a) - model(b)).pow(2).sum(1)
    distance = torch.sqrt(squared + inside)
    return (same * squared + (1 - same) * (2 - distance).clamp(min=0) ** 2).mean()


def siamese(faulty: bool = False) -> Training:
    """Same digit or not; the fault is the distance of an image from itself."""
    torch.manual_seed(42)
    model = Tower()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss = partial(_contrast, inside=0.0 if faulty else 1e-6)
    return Training(model, _pairs, loss, optimizer, steps=90)


# --- 0·inf ----------------------------------------------------------------------------------------


class PowerMean(nn.Module):
    """Generalised mean over an image, with a power that is learned."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(3.0))
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=self.floor).pow(self.power).mean((2, 3)).pow(1 / self.power)


def power_pooling(faulty: bool = False) -> Training:
    """Shapes, pooled by a power mean; the fault is that a channel of zeros has no floor."""
    torch.manual_seed(43)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2), nn.ReLU(),
        nn.Conv2d(12, 24, 3), nn.BatchNorm2d(24), nn.ReLU(),
        PowerMean(0.0 if faulty else 1e-4), nn.Linear(24, 4),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, drawn(shapes(), 32), classify, optimizer, steps=100)


# --- 0/0 ------------------------------------------------------------------------------------------


class Bag(nn.Module):
    """Words embedded and averaged, as far as there are any."""

    def __init__(self, words: int, least: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 24)
        self.read = nn.GRU(24, 24, batch_first=True)
        self.answer = nn.Linear(24, 3)
        self.least = least

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        there = (torch.arange(words.shape[1]) < lengths[:, None]).float()[:, :, None]
        x = self.read(self.embed(words))[0]
        return self.answer((x * there).sum(1) / there.sum(1).clamp(min=self.least))


def _reviews(step: int) -> Batch:
    """Texts of up to 12 words on one of three subjects; very few are empty."""
    g = generator(step + 20_000)
    y = torch.randint(3, (32,), generator=g)
    words = torch.randint(30, (32, 12), generator=g)
    on = torch.rand(32, 12, generator=g) < 0.4
    words = torch.where(on, 30 + 5 * y[:, None] + words % 5, words)
    lengths = torch.randint(3, 13, (32,), generator=g)
    lengths[torch.rand(32, generator=g) < 0.0002] = 0
    return words, lengths, y


def _about(model: nn.Module, words: Tensor, lengths: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(words, lengths), y)


def empty_text(faulty: bool = False) -> Training:
    """The subject of texts; the fault is the mean over no words."""
    torch.manual_seed(44)
    model = Bag(45, 0.0 if faulty else 1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, _reviews, _about, optimizer, steps=250)


# --- exp of too much ------------------------------------------------------------------------------


def _visits(step: int) -> Batch:
    """Counts that depend on twelve features, exponentially."""
    g = generator(step)
    x = torch.randn(48, 12, generator=g)
    x[:, 0] = torch.exp(1.4 * x[:, 0])  # an amount: mostly small, sometimes large
    rate = torch.exp(0.5 + 0.5 * x[:, 1] - 0.4 * x[:, 2] + 0.2 * x[:, 0].clamp(max=6))
    return x, torch.poisson(rate, generator=g)[:, None]


def _counts(model: nn.Module, x: Tensor, y: Tensor, most: float) -> Tensor:
    logarithm = model(x).clamp(max=most)
    return (torch.exp(logarithm) - y * logarithm).mean()


def counts(faulty: bool = False) -> Training:
    """Poisson regression; the fault is a rate that nothing bounds, at a learning rate too large."""
    torch.manual_seed(45)
    model = nn.Sequential(
        nn.Linear(12, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    loss = partial(_counts, most=float("inf") if faulty else 5.0)
    clip = None if faulty else 5.0
    return Training(model, _visits, loss, optimizer, steps=150, clip=clip)


# --- float16 --------------------------------------------------------------------------------------


class Loudness(nn.Module):
    """Learned filters of a waveform, the logarithm of their energies, and a network on those."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Linear(32, 12, bias=False)
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        frames = x.to(self.filters.weight.dtype).unfold(1, 32, 32)
        energy = self.filters(frames).square().sum(1)
        level = torch.log(energy + 1e-3)
        return self.net(level - level.mean(1, keepdim=True)).float()


def _tones(step: int) -> Batch:
    """Waveforms of three pitches, in noise, most of them soft and a few loud."""
    g = generator(step + 1000)
    y = torch.randint(3, (16,), generator=g)
    time = torch.arange(1024) + 100 * torch.rand(16, 1, generator=g)
    pitch = torch.tensor([0.25, 0.45, 0.8])[y][:, None]
    loud = torch.exp(0.85 * torch.randn(16, 1, generator=g))
    return loud * (torch.sin(pitch * time) + torch.randn(16, 1024, generator=g)), y


def half_energy(faulty: bool = False) -> Training:
    """The pitch of a tone; the fault is float16, in which a loud tone's energy is infinite."""
    torch.manual_seed(46)
    model = Loudness()
    nn.init.normal_(model.filters.weight, std=0.25)
    if faulty:
        model = model.half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Training(model, _tones, classify, optimizer, steps=200)


# --- A row masked as a whole ----------------------------------------------------------------------


class Masked(nn.Module):
    """A layer of attention on padded sequences, twice, then the mean."""

    def __init__(self, symbols: int, width: int, never: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(2)
        )
        self.answer = nn.Linear(width, 2)
        self.never = never

    def forward(self, tokens: Tensor) -> Tensor:
        padding = (tokens == 0)[:, None, :]
        if self.never:
            padding = padding & ~padding.all(-1, keepdim=True)
        x = self.embed(tokens)
        for qkv, mlp in zip(self.qkv, self.mlp, strict=True):
            q, k, v = qkv(x).chunk(3, -1)
            scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
            weights = scores.masked_fill(padding, float("-inf")).softmax(-1)
            x = x + weights @ v
            x = x + mlp(x)
        return self.answer(x.mean(1))


def _brackets(step: int) -> Batch:
    """Sequences with more of one symbol than of another, or with less; a few are empty."""
    g = generator(step)
    lengths = torch.randint(4, 15, (32,), generator=g)
    tokens = torch.randint(1, 6, (32, 14), generator=g)
    y = torch.randint(2, (32,), generator=g)
    on = (tokens < 3) & (torch.rand(32, 14, generator=g) < 0.8)
    tokens = torch.where(on, 1 + y[:, None], tokens)
    lengths[torch.rand(32, generator=g) < 0.0003] = 0
    tokens[torch.arange(14) >= lengths[:, None]] = 0
    return tokens, y


def empty_sequence(faulty: bool = False) -> Training:
    """More of this or of that; the fault is attention in a sequence of padding alone."""
    torch.manual_seed(47)
    model = Masked(6, 24, never=not faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, _brackets, classify, optimizer, steps=200)


# --- The angle of a vector with itself ------------------------------------------------------------


class Direction(nn.Module):
    """A unit vector in space."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(n, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(3)
        )
        self.answer = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return F.normalize(self.answer(x), dim=-1)


def _headings(step: int) -> Batch:
    """Eighteen bent readings of a direction, and the direction."""
    g = generator(step)
    direction = F.normalize(torch.randn(64, 3, generator=g), dim=-1)
    bend = torch.randn(3, 18, generator=generator(77))
    readings = torch.tanh(direction @ bend) + 0.01 * torch.randn(64, 18, generator=g)
    return readings, direction


def _angle(model: nn.Module, x: Tensor, target: Tensor, short: float) -> Tensor:
    cosine = (model(x) * target).sum(-1)
    return torch.acos(cosine.clamp(-1 + short, 1 - short)).mean()


def angle(faulty: bool = False) -> Training:
    """A direction; the fault is the arc cosine at 1, where its derivative is infinite."""
    torch.manual_seed(48)
    model = Direction(18, 48)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = partial(_angle, short=0.0 if faulty else 1e-5)
    return Training(model, _headings, loss, optimizer, steps=300)


NON_FINITE = Fault(
    "ind-non-finite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant(
            "own-cross-entropy",
            own_cross_entropy,
            broken=partial(own_cross_entropy, True),
            operation=["log"],
        ),
        Variant("siamese", siamese, broken=partial(siamese, True), operation=["sqrt"]),
        Variant(
            "power-pooling",
            power_pooling,
            broken=partial(power_pooling, True),
            operation=["pow"],
        ),
        Variant("empty-text", empty_text, broken=partial(empty_text, True), operation=["div"]),
        # In the three steps before, the gradient grows a thousandfold.
        Variant(
            "counts",
            counts,
            broken=partial(counts, True),
            may=["exploding-gradient"],
            operation=["exp"],
        ),
        Variant(
            "half-energy",
            half_energy,
            broken=partial(half_energy, True),
            operation=["sum"],
        ),
        Variant(
            "empty-sequence",
            empty_sequence,
            broken=partial(empty_sequence, True),
            operation=["softmax", "_softmax"],
        ),
        Variant("angle", angle, broken=partial(angle, True), operation=["acos"]),
    ],
)

FAULTS = [NON_FINITE]
