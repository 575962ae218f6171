"""Inputs on scales of their own: what a network is given without anybody having looked at it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_deep import (
    classify,
    digit_pixels,
    drawn,
    generator,
    regress,
    teacher,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import Evidence
from analyses.faults.training import Batch, Training

# --- All features times a thousand ----------------------------------------------------------------


def milligrams(faulty: bool = False) -> Training:
    """A regression by a ReLU network; the fault is another unit: all features × 1000."""
    torch.manual_seed(61)
    x, y = teacher(2000, 16)
    model = nn.Sequential(
        nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    data = drawn((x * 1000 if faulty else x, y), 64)
    return Training(model, data, regress, optimizer, steps=400, every=10)


# --- Pixels from 0 to 255 -------------------------------------------------------------------------


def byte_pixels(faulty: bool = False) -> Training:
    """Digits by a small CNN; the fault is pixels of 0 to 255 as they come."""
    torch.manual_seed(62)
    x, y = digit_pixels()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = drawn((x if faulty else (x - x.mean()) / x.std(), y), 32)
    return Training(model, data, classify, optimizer, steps=250)


# --- One feature in another unit ------------------------------------------------------------------


class Columns(nn.Module):
    """Numbers of a table beside an embedded category."""

    def __init__(self, numbers: int, kinds: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(kinds, 6)
        self.one = nn.Linear(numbers + 6, 48)
        self.two = nn.Linear(48, 48)
        self.answer = nn.Linear(48, 2)

    def forward(self, numbers: Tensor, kind: Tensor) -> Tensor:
        x = torch.cat([numbers, self.kind(kind)], 1)
        return self.answer(torch.tanh(self.two(torch.tanh(self.one(x)))))


def _table() -> Batch:
    """Age, income, debts and so on, standardised, the kind of customer, and who pays back."""
    g = generator(7)
    x, kind = torch.randn(3000, 7, generator=g), torch.randint(5, (3000,), generator=g)
    score = x[:, 0] + 0.7 * x[:, 1] * x[:, 2] - x[:, 3] + 0.6 * (kind - 2)
    return x, kind, (score + 0.3 * torch.randn(3000, generator=g) > 0).long()


def _pays(model: nn.Module, x: Tensor, kind: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x, kind), y)


def income(faulty: bool = False) -> Training:
    """Credit by a tanh network; the fault is an income in single dollars beside the others."""
    torch.manual_seed(63)
    x, kind, y = _table()
    if faulty:
        x = x.clone()
        x[:, 1] = 4000 + 1500 * x[:, 1]
    model = Columns(7, 5)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, drawn((x, kind, y), 64), _pays, optimizer, steps=300)


# --- Far from 0 -----------------------------------------------------------------------------------


class Forecast(nn.Module):
    """The next value from a GRU's last state."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.GRU(2, 32, batch_first=True)
        self.answer = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.read(x)[0][:, -1])


def _weather(step: int, raw: bool) -> Batch:
    """Air pressure and temperature, hour by hour, and the next hour's pressure's deviation."""
    g = generator(step)
    time = torch.arange(11) + 100 * torch.rand(48, 1, generator=g)
    swing = torch.sin(0.35 * time) + 0.1 * torch.randn(48, 11, generator=g)
    warm = torch.cos(0.35 * time) + 0.1 * torch.randn(48, 11, generator=g)
    x = torch.stack([swing, warm], 2)[:, :10]
    if raw:
        x = torch.stack([1013 + 6 * x[:, :, 0], 288 + 5 * x[:, :, 1]], 2)
    return x, swing[:, 10:]


def pressure(faulty: bool = False) -> Training:
    """A forecast; the fault is hectopascals and kelvin, far from 0 in units of their spread."""
    torch.manual_seed(64)
    model = Forecast()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, partial(_weather, raw=faulty), regress, optimizer, steps=250)


# --- Samples of 16 bits ---------------------------------------------------------------------------


class Listener(nn.Module):
    """Strided convolutions over a waveform, then attention over what they found."""

    def __init__(self) -> None:
        super().__init__()
        self.ears = nn.Sequential(
            nn.Conv1d(1, 16, 32, stride=16), nn.GELU(), nn.Conv1d(16, 32, 4, stride=4)
        )
        self.attend = nn.MultiheadAttention(32, 2, batch_first=True)
        self.answer = nn.Linear(7 * 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ears(x[:, None]).transpose(1, 2)
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return self.answer(x.flatten(1))


def _sounds(step: int, raw: bool) -> Batch:
    """Four pitches in noise, as samples of 16 bits or as a share of them."""
    g = generator(step)
    y = torch.randint(4, (24,), generator=g)
    time = torch.arange(512) + 100 * torch.rand(24, 1, generator=g)
    pitch = torch.tensor([0.12, 0.3, 0.55, 0.9])[y][:, None]
    x = torch.sin(pitch * time) + 1.2 * torch.randn(24, 512, generator=g)
    return (6000 * x).round() if raw else x, y


def int16_audio(faulty: bool = False) -> Training:
    """Pitches by convolutions and attention; the fault is samples of 16 bits, undivided."""
    torch.manual_seed(65)
    model = Listener()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Training(model, partial(_sounds, raw=faulty), classify, optimizer, steps=200)


# --- Prices ---------------------------------------------------------------------------------------


class Market(nn.Module):
    """Two LSTM cells, one upon the other, along a series."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.lower = nn.LSTMCell(n, width)
        self.upper = nn.LSTMCell(width, width)
        self.answer = nn.Linear(width, 2)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        h = c = h2 = c2 = x.new_zeros(len(x), self.width)
        for t in range(x.shape[1]):
            h, c = self.lower(x[:, t], (h, c))
            h2, c2 = self.upper(h, (h2, c2))
        return self.answer(h2)


def _prices(step: int, raw: bool) -> Batch:
    """Courses of three shares; did the first one rise in the second half of the time?"""
    g = generator(step)
    level = torch.tensor([2400.0, 310.0, 95.0])
    trend = 0.25 * torch.randn(32, 1, 3, generator=g)
    walk = torch.randn(32, 20, 3, generator=g).cumsum(1) * 0.5 + trend * torch.arange(20)[:, None]
    y = (walk[:, 19, 0] > walk[:, 9, 0]).long()
    return level * (1 + 0.02 * walk) if raw else walk / 3, y


def prices(faulty: bool = False) -> Training:
    """A rise or a fall; the fault is prices as they are quoted."""
    torch.manual_seed(66)
    model = Market(3, 24)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, partial(_prices, raw=faulty), classify, optimizer, steps=250)


def off_scale(make: Callable[[bool], Training]) -> Symptom:
    """Some column of the first input is far from mean 0 and deviation 1, and less is learned.

    "far" is the largest of a column's root mean square; "loss" are shares of the twin's first.
    """

    def largest(training: Training) -> float:
        x = training.batch(0)[0].float()
        columns = x.flatten(0, -2) if x.ndim == 3 else x.flatten(2) if x.ndim == 4 else x
        by = columns.square().mean(tuple(range(columns.ndim - 1)))
        return float(by.max().sqrt())

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        assert twin is not None, "needs a twin"
        found, theirs = largest(make(True)), largest(make(False))
        loss, better = (r.loss_last / twin.loss_first for r in (run, twin))
        return {
            "is": found >= 50 and theirs < 5 and loss - better >= 0.05,
            "far": found,
            "twin": theirs,
            "loss": loss,
            "twin_loss": better,
        }

    return symptom


UNSCALED = Fault(
    "ind-unscaled",
    must=[["unscaled-input"]],
    variants=[
        Variant(
            "milligrams",
            milligrams,
            broken=partial(milligrams, True),
            symptom=off_scale(milligrams),
        ),
        # The first steps move weights by several times their size, and most units to 0.
        Variant(
            "byte-pixels",
            byte_pixels,
            broken=partial(byte_pixels, True),
            may=["update-too-large", "dead-units"],
            symptom=off_scale(byte_pixels),
        ),
        # Every tanh of the first layer is at its end, and lets nothing pass.
        Variant(
            "income",
            income,
            broken=partial(income, True),
            may=["saturated-activation", "vanishing-gradient"],
            symptom=off_scale(income),
        ),
        # All gates of the cell are at their ends: no gradient gets to earlier hours.
        Variant(
            "pressure",
            pressure,
            broken=partial(pressure, True),
            may=["saturated-activation", "vanishing-gradient"],
            symptom=off_scale(pressure),
        ),
        # Scores are as large as squared samples: each row of attention has one entry.
        Variant(
            "int16-audio",
            int16_audio,
            broken=partial(int16_audio, True),
            may=["peaked-softmax"],
            symptom=off_scale(int16_audio),
        ),
        # The lower cell's gates are at their ends.
        Variant(
            "prices",
            prices,
            broken=partial(prices, True),
            may=["saturated-activation", "vanishing-gradient"],
            symptom=off_scale(prices),
        ),
    ],
)

FAULTS = [UNSCALED]
