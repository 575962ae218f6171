"""Data as they come: not scaled, not centred, or with one row that is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_tenth_c import (
    cross_entropy,
    digits,
    sampled,
    squared_error,
)
from analyses.faults.symptoms import dead_units, learns_less, saturated
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


def standard(x: Tensor) -> Tensor:
    """Columns (last dimension) of mean 0 and deviation 1."""
    flat = x.flatten(0, -2)
    return (x - flat.mean(0)) / (flat.std(0) + 1e-8)


# Input that is not scaled


def houses(raw: bool = False) -> Training:
    """Prices from area in square feet, year, coordinates in metres, income in dollars."""
    torch.manual_seed(41)
    z = torch.randn(2000, 6)
    y = z[:, 0] + 0.5 * z[:, 1] * z[:, 2] + torch.sin(2 * z[:, 3]) + 0.3 * z[:, 4]
    scale = torch.tensor([700.0, 25.0, 9e3, 1.2e4, 3e4, 2.0])
    centre = torch.tensor([1800.0, 1975.0, 5.1e5, 4.2e6, 7e4, 3.0])
    x = z * scale + centre
    model = nn.Sequential(
        nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
    )
    return Training(
        model,
        sampled(x if raw else standard(x), standard(y[:, None])[:, 0], size=64),
        squared_error,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=300,
    )


class Stocks(nn.Module):
    """An LSTM over prices; how far is it above its mean?"""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(x)
        return self.head(h[:, -1]).squeeze(-1)


def stocks(raw: bool = False) -> Training:
    """Index and volume as they are quoted."""
    torch.manual_seed(42)
    steps = torch.randn(1500, 12, 2)
    walk = steps.cumsum(1)
    x = walk * torch.tensor([40.0, 9e3]) + torch.tensor([4200.0, 2.5e6])
    y = walk[:, -1, 0] - walk[:, :, 0].mean(1) + 0.3 * steps[:, -1, 1]
    model = Stocks()
    return Training(
        model,
        sampled(x if raw else standard(x), standard(y[:, None])[:, 0], size=48),
        squared_error,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=200,
    )


class PointNet(nn.Module):
    """Points one by one, then their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, points: Tensor) -> Tensor:
        return self.all(self.each(points).amax(1))


def survey(raw: bool = False) -> Training:
    """Shapes measured in a map's coordinates: metres from far away."""
    torch.manual_seed(43)
    y = torch.randint(4, (800,))
    points = torch.randn(800, 32, 3)
    ball = points / points.norm(dim=-1, keepdim=True)
    plate = points * torch.tensor([1.0, 1.0, 0.05])
    rod = points * torch.tensor([0.1, 0.1, 1.6])
    box = points.clamp(-0.8, 0.8)
    shapes = torch.stack([ball, plate, rod, box])[y, torch.arange(800)]
    x = shapes * 2 + torch.tensor([4.51e5, 5.41e4, 320.0]) if raw else shapes
    model = PointNet()
    return Training(
        model,
        sampled(x, y, size=32),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=200,
    )


class LeNet(nn.Module):
    """The old convolutional network: tanh and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 3, padding=1)
        self.c2 = nn.Conv2d(6, 16, 3, padding=1)
        self.f1 = nn.Linear(64, 48)
        self.f2 = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.c1(x.view(-1, 1, 8, 8))), 2)
        x = F.avg_pool2d(torch.tanh(self.c2(x)), 2)
        return self.f2(torch.tanh(self.f1(x.flatten(1))))


def le_net(top: float = 1.0) -> Training:
    """Digits with pixels up to `top`; beside 1, of a scanner of 16 bits."""
    torch.manual_seed(44)
    x, y = digits()
    x = x / 16
    x = (x - x.mean()) / x.std() if top == 1.0 else x * top
    model = LeNet()
    return Training(
        model,
        sampled(x, y, size=32),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        steps=200,
    )


class Readings(nn.Module):
    """A transformer over sensors' readings with a token for each time."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(4, 32)
        self.place = nn.Parameter(torch.randn(12, 32) * 0.2)
        self.q = nn.Linear(32, 32)
        self.k = nn.Linear(32, 32)
        self.v = nn.Linear(32, 32)
        self.o = nn.Linear(32, 32)
        self.ff = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x) + self.place
        p = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(32), -1)
        x = x + self.o(p @ self.v(x))
        x = x + self.ff(x)
        return self.head(x.mean(1)).squeeze(-1)


def readings(raw: bool = False) -> Training:
    """Pressure in pascal, temperature in kelvin, flow, and the second of the day."""
    torch.manual_seed(45)
    z = torch.randn(1200, 12, 4)
    y = z[..., 0].mean(1) * 3 + (z[..., 1] * z[..., 2]).mean(1) * 2
    x = z * torch.tensor([900.0, 8.0, 0.4, 2e4]) + torch.tensor([101325.0, 291.0, 1.3, 43200.0])
    model = Readings()
    return Training(
        model,
        sampled(x if raw else standard(x), standard(y[:, None])[:, 0], size=32),
        squared_error,
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        steps=250,
    )


RAW = Fault(
    "ind10-data-raw",
    must=[["unscaled-input"]],
    symptom=learns_less(0.1),
    variants=[
        Variant("houses", may=["dead-units"], healthy=houses, broken=partial(houses, raw=True)),
        Variant(
            "stocks",
            may=["saturated-activation", "vanishing-gradient", "no-update"],
            healthy=stocks,
            broken=partial(stocks, raw=True),
        ),
        Variant(
            "survey",
            may=["dead-units", "vanishing-gradient"],
            healthy=survey,
            broken=partial(survey, raw=True),
        ),
        Variant(
            "scanner",
            may=["saturated-activation", "update-too-large"],
            healthy=le_net,
            broken=partial(le_net, top=65535.0),
        ),
        Variant(
            "readings",
            may=["peaked-softmax", "vanishing-gradient", "starved-pathway"],
            healthy=readings,
            broken=partial(readings, raw=True),
        ),
    ],
)


# One row that is wrong, and a rate too high at first


def spoilt(step: int, batch: Callable[[int], Batch], at: int, factor: float) -> Batch:
    """The batch, whose first targets are a manifold at one step: a slip of the comma."""
    x, y = batch(step)
    if step == at:
        y = y.clone()
        y[:4] = y[:4] * factor
    return x, y


class Wide(nn.Module):
    """A plain ReLU classifier."""

    def __init__(self, features: int, width: int, classes: int, act: Callable[..., Tensor]) -> None:
        super().__init__()
        self.act = act
        self.a = nn.Linear(features, width)
        self.b = nn.Linear(width, width)
        self.c = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.b(self.act(self.a(x)))))


def blobs(seed: int, features: int = 10) -> tuple[Tensor, Tensor]:
    """Five classes, three clumps each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(15, features, generator=generator) * 1.5
    clump = torch.randint(15, (1500,), generator=generator)
    return centres[clump] + torch.randn(1500, features, generator=generator), clump % 5


def slow_start(step: int) -> float:
    """Up from a hundredth."""
    return min(1.0, 0.01 + step / 40)


def hot_start(step: int, factor: float, steps: int) -> float:
    """A rate far too high for the first steps."""
    return factor if step < steps else 1.0


def clumps(factor: float = 1.0) -> Training:
    """An MLP with SGD and momentum; the rate's first steps are `factor` as high."""
    torch.manual_seed(51)
    model = Wide(10, 64, 5, F.relu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(
        model,
        sampled(*blobs(51), size=64),
        cross_entropy,
        optimizer,
        steps=250,
        schedule=torch.optim.lr_scheduler.LambdaLR(
            optimizer, slow_start if factor == 1 else partial(hot_start, factor=factor, steps=4)
        ),
    )


class OverTime(nn.Module):
    """Convolutions over time, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 12, (1, 5), stride=(1, 2), padding=(0, 2)),
            nn.ReLU(),
            nn.Conv2d(12, 12, (1, 5), stride=(1, 2), padding=(0, 2)),
            nn.ReLU(),
        )
        self.head = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x.unsqueeze(2)).mean((2, 3))).squeeze(-1)


def waves(factor: float = 1.0) -> Training:
    """The pace of waves by a CNN over time; a few targets of one batch are off by `factor`."""
    torch.manual_seed(52)
    pace = 0.3 + torch.rand(900)
    t = torch.arange(16.0)
    phase = torch.rand(900, 1) * 6.28
    x = torch.stack([torch.sin(pace[:, None] * t + phase), torch.cos(pace[:, None] * t)], 1)
    x = x + 0.2 * torch.randn(x.shape)
    model = OverTime()
    return Training(
        model,
        partial(spoilt, batch=sampled(x, 3 * pace - 2, size=32), at=12, factor=factor),
        squared_error,
        torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9),
        steps=250,
    )


DEAD = Fault(
    "ind10-data-dead",
    must=[["dead-units"]],
    symptom=dead_units(0.7),
    variants=[
        Variant(
            "hot-start",
            may=["update-too-large", "vanishing-gradient", "no-update"],
            healthy=clumps,
            broken=partial(clumps, factor=150.0),
        ),
        Variant(
            "slip-of-the-comma",
            may=["vanishing-gradient", "no-update", "update-too-large"],
            healthy=waves,
            broken=partial(waves, factor=-4000.0),
        ),
    ],
)


class Gated(nn.Module):
    """A gated recurrence written out."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(27, 24)
        self.new = nn.Linear(27, 24)
        nn.init.ones_(self.gate.bias)
        self.head = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 24)
        for now in x.unbind(1):
            both = torch.cat([now, h], -1)
            g = torch.sigmoid(self.gate(both))
            h = g * h + (1 - g) * torch.tanh(self.new(both))
        return self.head(h).squeeze(-1)


def gated(factor: float = 1.0) -> Training:
    """Regression by a gated recurrence; a few targets of one batch are off by `factor`."""
    torch.manual_seed(53)
    x = torch.randn(1000, 6, 3)
    y = (x[..., 0] * torch.linspace(0.6, 1, 6)).sum(1) + x[:, -1, 1] * x[:, -1, 2]
    target = standard(y[:, None])[:, 0] + 1
    model = Gated()
    return Training(
        model,
        partial(spoilt, batch=sampled(x, target, size=48), at=10, factor=factor),
        squared_error,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=200,
    )


def tanh_clumps(factor: float = 1.0) -> Training:
    """A tanh network; the rate's first steps are `factor` as high."""
    torch.manual_seed(54)
    model = Wide(12, 48, 5, torch.tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(
        model,
        sampled(*blobs(54, 12), size=64),
        cross_entropy,
        optimizer,
        steps=250,
        schedule=torch.optim.lr_scheduler.LambdaLR(
            optimizer, slow_start if factor == 1 else partial(hot_start, factor=factor, steps=5)
        ),
    )


SATURATED = Fault(
    "ind10-data-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.6),
    variants=[
        Variant(
            "hot-start-tanh",
            may=["update-too-large"],
            healthy=tanh_clumps,
            broken=partial(tanh_clumps, factor=100.0),
        ),
        Variant(
            "comma-in-target",
            may=["update-too-large"],
            healthy=gated,
            broken=partial(gated, factor=1e3),
        ),
    ],
)

FAULTS = [RAW, DEAD, SATURATED]
