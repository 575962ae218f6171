"""Runs that learn: sparse and squashed units, inputs of many kinds, low precision done right."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_third_units import (
    adam,
    cross,
    digits,
    feed,
    pixels,
    plain_mlp,
    scaled_step,
    squares,
    waves,
)
from analyses.faults.training import Training

# Units


def rectified() -> Training:
    """Rectifiers and dropout, by momentum."""
    torch.manual_seed(51)
    x, y = digits()
    model = nn.Sequential(
        nn.Linear(64, 160), nn.ReLU(), nn.Dropout(0.2), nn.Linear(160, 80), nn.ReLU(),
        nn.Dropout(0.2), nn.Linear(80, 10),
    )  # fmt: skip
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            nn.init.zeros_(m.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    return Training(model, feed(128, x, y), cross, optimizer, steps=250)


class Mobile(nn.Module):
    """Depthwise and pointwise convolutions with batch normalisation and ReLU6."""

    def __init__(self) -> None:
        super().__init__()

        def piece(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False),
                nn.BatchNorm2d(a),
                nn.ReLU6(),
                nn.Conv2d(a, b, 1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU6(),
            )

        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.pieces = nn.Sequential(piece(16, 32), nn.MaxPool2d(2), piece(32, 32), piece(32, 48))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pieces(self.stem(x)).mean((2, 3)))


def mobile() -> Training:
    torch.manual_seed(52)
    x, y = digits()
    model = Mobile()
    return Training(model, feed(64, x.view(-1, 1, 8, 8), y), cross, adam(model, 3e-3), steps=120)


class Continue(nn.Module):
    """A tanh recurrence that tells the next sample."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 40, batch_first=True)
        self.head = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def continued() -> Training:
    torch.manual_seed(53)
    wave, _, _ = waves(800, 31, 53)
    model = Continue()
    batch = feed(64, wave[:, :-1, None], wave[:, 1:, None])
    return Training(model, batch, squares, adam(model, 3e-3), steps=200, clip=1.0)


def logistic_layers() -> Training:
    """Two layers of sigmoids, as in old textbooks."""
    torch.manual_seed(54)
    x, y = digits()
    model = plain_mlp(64, 60, 30, 10, act=nn.Sigmoid)
    return Training(model, feed(128, x, y), cross, adam(model, 5e-3), steps=200)


class Gated(nn.Module):
    """Convolutions over time, half of whose channels gate the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 32, 5, padding=2)
        self.convs = nn.ModuleList(nn.Conv1d(16, 32, 5, padding=2) for _ in range(2))
        self.head = nn.Conv1d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.glu(self.first(x), 1)
        for conv in self.convs:
            a, gate = conv(h).chunk(2, 1)
            h = h + torch.tanh(a) * torch.sigmoid(gate)
        return self.head(h.square()).mean(-1)


def gated() -> Training:
    """How loud are the two tones, the lower one first?"""
    torch.manual_seed(55)
    wave, pitch, loud = waves(1000, 20, 55)
    y = loud.gather(1, pitch.argsort(1))
    model = Gated()
    return Training(model, feed(64, wave[:, None], y), squares, adam(model, 5e-3), steps=200)


def through_three() -> Training:
    """Digits through three numbers and back: narrow on purpose."""
    torch.manual_seed(56)
    x, _ = digits()
    model = plain_mlp(64, 64, 3, 64, 64, act=nn.Tanh)
    return Training(model, feed(128, x, x), squares, adam(model, 3e-3), steps=250)


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = plain_mlp(64, 96, 2 * 6)
        self.decoder = plain_mlp(6, 96, 64)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        middle, spread = self.encoder(x).chunk(2, -1)
        code = middle + noise * torch.exp(0.5 * spread)
        kl = 0.5 * (middle.square() + spread.exp() - 1 - spread).sum(-1).mean()
        return self.decoder(code), kl


def variational() -> Training:
    torch.manual_seed(57)
    x, _ = pixels()
    noise = torch.randn(len(x), 6)
    model = Variational()

    def loss(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        logits, kl = model(x, noise)
        return F.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(x) + kl

    return Training(model, feed(128, 2 * x - 1, x, noise), loss, adam(model, 1e-3), steps=250)


UNITS = Healthy(
    "ind3-healthy-units",
    runs={
        "rectified": rectified,
        "mobile": mobile,
        "continued": continued,
        "logistic-layers": logistic_layers,
        "gated": gated,
        "through-three": through_three,
        "variational": variational,
    },
)


# Inputs


def categories() -> Training:
    """Five columns of categories, each one-hot."""
    torch.manual_seed(61)
    given = torch.stack([torch.randint(k, (3000,)) for k in (4, 7, 12, 3, 9)], 1)
    x = torch.cat([F.one_hot(given[:, i]).float() for i in range(5)], 1)
    worth = torch.randn(4, 12)
    y = (worth[given[:, 0], given[:, 2]] + 0.3 * given[:, 4] - 1.2 > 0).long()
    model = plain_mlp(x.shape[1], 64, 64, 2)
    return Training(model, feed(128, x, y), cross, adam(model, 3e-3), steps=200)


class Bag(nn.Module):
    """Counts of words, a normalised layer, topics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(120, 48)
        self.norm = nn.LayerNorm(48)
        self.second = nn.Linear(48, 48)
        self.head = nn.Linear(48, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.first(x)))
        return self.head(torch.tanh(self.second(h)))


def counts() -> Training:
    torch.manual_seed(62)
    y = torch.randint(6, (1500,))
    rate = 0.25 + torch.rand(6, 120).pow(4)[y]
    model = Bag()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    return Training(model, feed(64, torch.poisson(rate), y), cross, optimizer, steps=200)


def from_zero_to_one() -> Training:
    """Images from 0 to 1, not centred: which place is the ink's middle at?"""
    torch.manual_seed(63)
    x = pixels()[0].view(-1, 1, 8, 8)
    place = torch.linspace(-1, 1, 8)
    ink = x.sum((1, 2, 3))
    y = torch.stack([(x.sum(2)[:, 0] @ place) / ink, (x.sum(3)[:, 0] @ place) / ink], 1) * 5
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.SiLU(), nn.Flatten(), nn.Linear(256, 2),
    )  # fmt: skip
    return Training(model, feed(64, x, y), squares, adam(model, 2e-3), steps=200)


class Shop(nn.Module):
    """Embedded categories and standardised numbers, residual layers with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.town = nn.Embedding(50, 8), nn.Embedding(20, 8)
        self.into = nn.Linear(22, 48)
        self.norms = nn.ModuleList(nn.BatchNorm1d(48) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(3))
        self.out = nn.Linear(48, 1)

    def forward(self, numbers: Tensor, item: Tensor, town: Tensor) -> Tensor:
        h = self.into(torch.cat([numbers, self.item(item), self.town(town)], -1))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + layer(F.gelu(norm(h)))
        return self.out(h)[:, 0]


def shop() -> Training:
    """Sales, in standard deviations, from log-normal numbers that were logged and standardised."""
    torch.manual_seed(64)
    numbers = torch.randn(3000, 6)
    item, town = torch.randint(50, (3000,)), torch.randint(20, (3000,))
    y = torch.randn(50)[item] * numbers[:, 0].sigmoid() + torch.randn(20)[town] + numbers[:, 1]
    y = (y - y.mean()) / y.std()
    model = Shop()

    def loss(model: nn.Module, n: Tensor, item: Tensor, town: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(model(n, item, town), y)

    return Training(model, feed(128, numbers, item, town, y), loss, adam(model, 3e-3), steps=150)


class Hearing(nn.Module):
    """Frames of a sound by a convolution, then a gated recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv1d(1, 24, 16, stride=8)
        self.norm = nn.LayerNorm(24)
        self.rnn = nn.GRU(24, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.norm(F.gelu(self.frames(x)).transpose(1, 2))
        return self.head(self.rnn(frames)[0].mean(1))


def hearing() -> Training:
    """Is the higher tone low, middle or high? Samples between −1 and 1."""
    torch.manual_seed(65)
    wave, pitch, _ = waves(1000, 160, 65)
    x = wave[:, None] / wave.abs().amax()
    y = torch.bucketize(pitch.max(1).values, torch.tensor([0.22, 0.32]))
    model = Hearing()
    return Training(model, feed(48, x, y), cross, adam(model, 3e-3), steps=150)


def signs() -> Training:
    """Sixteen inputs of −1 or 1: the product of three of them, and which of two is the majority."""
    torch.manual_seed(66)
    x = torch.randint(2, (4000, 16)).float() * 2 - 1
    y = (x[:, 2] * x[:, 7] * x[:, 11] > 0).long() + 2 * (x.sum(1) > 0).long()
    model = plain_mlp(16, 96, 48, 4, act=nn.Mish)
    return Training(model, feed(128, x, y), cross, adam(model, 3e-3), steps=250)


def quantiles() -> Training:
    """Three quantiles of a noisy quantity whose spread depends on the input."""
    torch.manual_seed(67)
    x = torch.rand(3000, 2) * 2 - 1
    y = torch.sin(3 * x[:, :1]) + (0.1 + x[:, 1:].abs()) * torch.randn(3000, 1)
    model = plain_mlp(2, 64, 64, 3, act=nn.SELU)
    levels = torch.tensor([0.1, 0.5, 0.9])

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        off = y - model(x)
        return torch.maximum(levels * off, (levels - 1) * off).mean()

    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return Training(model, feed(128, x, y), loss, optimizer, steps=200)


INPUTS = Healthy(
    "ind3-healthy-inputs",
    runs={
        "categories": categories,
        "counts": counts,
        "from-zero-to-one": from_zero_to_one,
        "shop": shop,
        "hearing": hearing,
        "signs": signs,
        "quantiles": quantiles,
    },
)


# Precision


class Sorter(nn.Module):
    """A transformer of the library over a few tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(16, 32), nn.Embedding(8, 32)
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.token(x) + self.place.weight))


def sorter() -> Training:
    """Sort eight tokens, under bfloat16 autocast."""
    torch.manual_seed(71)
    x = torch.randint(16, (3000, 8))
    model = Sorter()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        return F.cross_entropy(logits.float().flatten(0, 1), y.flatten())

    return Training(model, feed(64, x, x.sort(1).values), loss, adam(model, 3e-3), steps=150)


def half_resnet(scale: float) -> Training:
    """A residual network under float16 autocast, with a gradient scaler."""
    torch.manual_seed(72)
    x, y = digits()
    model = Residual()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            logits = model(x)
        return F.cross_entropy(logits.float(), y)

    run = Training(model, feed(32, x.view(-1, 1, 8, 8), y), loss, adam(model, 3e-3), steps=80)
    run.step = scaled_step(scale)
    return run


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(3))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = h + F.relu(norm(conv(h)))
        return self.head(h.mean((2, 3)))


def half_tabular(scale: float) -> Training:
    """Regression under float16 autocast, with a gradient scaler."""
    torch.manual_seed(73)
    x = torch.randn(2000, 12)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2:5].sum(1).tanh()], 1)
    model = plain_mlp(12, 64, 64, 2, act=nn.GELU)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            out = model(x)
        return F.mse_loss(out.float(), y)

    run = Training(model, feed(128, x, y), loss, adam(model, 3e-3), steps=200)
    run.step = scaled_step(scale)
    return run


def double() -> Training:
    """A smooth function in float64, by Adagrad."""
    torch.manual_seed(74)
    x = torch.rand(2000, 3, dtype=torch.float64) * 2 - 1
    y = (x[:, :1] * 3).sin() * x[:, 1:2] + x[:, 2:] ** 2
    model = plain_mlp(3, 48, 48, 1, act=nn.Tanh).double()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.03)
    return Training(model, feed(256, x, y), squares, optimizer, steps=200)


PRECISION = Healthy(
    "ind3-healthy-precision",
    runs={
        "bfloat-sorter": sorter,
        "half-resnet": partial(half_resnet, 1024.0),
        "half-tabular": partial(half_tabular, 4096.0),
        "double": double,
    },
)

THEMES = [UNITS, INPUTS, PRECISION]
