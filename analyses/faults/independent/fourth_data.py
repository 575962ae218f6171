"""Inputs in raw units, float16 without a scaler, and operations that give infinity or NaN."""

from __future__ import annotations

import math
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from analyses.faults.case import Fault, Make, Symptom, Variant
from analyses.faults.independent.kit_fourth_units import (
    clouds,
    cross_entropy,
    digits,
    drawn,
    phrases,
    raw_columns,
    scaled_step,
    seeded,
    squares,
    table,
    waves,
)
from analyses.faults.observe import Observed, observe
from analyses.faults.symptoms import not_finite
from analyses.faults.training import Training

F = nn.functional


def income(raw: bool = False) -> Training:
    """Will a household repay: ages, salaries, debts and counts, standardised or as they come."""
    torch.manual_seed(31)
    x, score = table(3000, 8, seed=31)
    y = (score > 0).long()
    if raw:
        middle = torch.tensor([45.0, 52000.0, 18000.0, 3.0, 240000.0, 12.0, 0.4, 1998.0])
        spread = torch.tensor([14.0, 21000.0, 9000.0, 1.2, 90000.0, 4.0, 0.2, 9.0])
        x = middle + spread * x
    model = nn.Sequential(
        nn.Linear(8, 64), nn.LeakyReLU(), nn.Linear(64, 32), nn.LeakyReLU(), nn.Linear(32, 2)
    )
    return Training(
        model,
        drawn(x, y),
        cross_entropy,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


def grey_levels(raw: bool = False) -> Training:
    """A LeNet of tanh on digits, from 0 to 1 or from 0 to 255."""
    torch.manual_seed(32)
    x, y = digits()
    x = x.view(-1, 1, 8, 8) * (255.0 if raw else 1.0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    return Training(
        model,
        drawn(x, y),
        cross_entropy,
        torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        steps=200,
    )


class _Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 40, batch_first=True)
        self.head = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


def weather(raw: bool = False) -> Training:
    """An LSTM foretells a change from kelvins, pascals, percents and degrees of wind."""
    torch.manual_seed(33)
    g = seeded(33)
    drift = torch.randn(1200, 20, 4, generator=g).cumsum(1)
    x = (drift - drift.mean((0, 1))) / drift.std((0, 1))
    y = torch.tanh(x[:, 10:, 0].mean(1) - x[:, :10, 0].mean(1)) + 0.5 * (
        x[..., 1] * x[..., 2]
    ).mean(1)
    y = (y - y.mean()) / y.std()
    if raw:
        middle = torch.tensor([285.0, 101325.0, 60.0, 180.0])
        x = middle + torch.tensor([8.0, 900.0, 15.0, 70.0]) * x
    model = _Forecaster()
    return Training(
        model,
        drawn(x, y, size=32),
        squares,
        torch.optim.Adam(model.parameters(), 5e-3),
        steps=250,
    )


def loudness(raw: bool = False) -> Training:
    """Sounds told apart by a spectrogram in decibels below full scale, centred or not."""
    torch.manual_seed(34)
    g = seeded(34)
    y = torch.randint(6, (1200,), generator=g)
    bands = torch.arange(24.0)
    peak = 3 + 3.5 * y[:, None] + torch.randn(1200, 1, generator=g)
    level = -60 + 14 * torch.exp(-((bands - peak) ** 2) / 18)
    x = level[:, :, None] + 9 * torch.randn(1200, 24, 16, generator=g)
    if not raw:
        x = (x - x.mean()) / x.std()
    model = nn.Sequential(
        nn.Conv1d(24, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv1d(32, 32, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 6),
    )
    return Training(
        model,
        drawn(x, y, size=32),
        cross_entropy,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=200,
    )


class _Electrodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.across = nn.Conv2d(1, 8, (6, 1))
        self.along = nn.Conv2d(8, 16, (1, 7), stride=(1, 3))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.elu(self.along(F.elu(self.across(x))))
        return self.head(h.amax((2, 3)))


def volts(raw: bool = False) -> Training:
    """Brain waves of six electrodes, in volts or standardised."""
    torch.manual_seed(35)
    wave, y = waves(900, 64, 3, seed=35, noise=0.2)
    mix = torch.randn(6, 1, generator=seeded(36))
    x = (mix * wave + 0.2 * torch.randn(900, 6, 64, generator=seeded(37)))[:, None]
    x = x / x.std() * (2e-5 if raw else 1.0)
    model = _Electrodes()
    return Training(
        model,
        drawn(x, y, size=32),
        cross_entropy,
        torch.optim.Adam(model.parameters(), 5e-3),
        steps=200,
    )


class _Survey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU())
        self.outer = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 4))

    def forward(self, points: Tensor) -> Tensor:
        return self.outer(self.inner(points).mean(1))


def survey(raw: bool = False) -> Training:
    """Scanned objects by their points, around their centre or in a map's metres."""
    torch.manual_seed(36)
    x, y = clouds(800, 24, seed=36)
    if raw:
        x = x + torch.tensor([3500.0, 5800.0, 120.0])
    model = _Survey()
    return Training(
        model,
        drawn(x, y, size=32),
        cross_entropy,
        torch.optim.RMSprop(model.parameters(), 1e-3),
        steps=250,
    )


UNSCALED = Fault(
    "ind4-unscaled",
    must=[["unscaled-input"]],
    variants=[
        Variant(
            "income",
            income,
            broken=partial(income, True),
            symptom=raw_columns(partial(income, True), 100),
        ),
        Variant(
            "grey-levels",
            grey_levels,
            broken=partial(grey_levels, True),
            may=["saturated-activation"],
            symptom=raw_columns(partial(grey_levels, True), 50),
        ),
        Variant(
            "weather",
            weather,
            broken=partial(weather, True),
            symptom=raw_columns(partial(weather, True), 100),
            # The gates are at their ends, and nothing gets through them to the weights.
            may=["saturated-activation", "vanishing-gradient", "no-update"],
        ),
        Variant(
            "loudness",
            loudness,
            broken=partial(loudness, True),
            symptom=raw_columns(partial(loudness, True), 30),
        ),
        Variant(
            "volts",
            volts,
            broken=partial(volts, True),
            symptom=raw_columns(partial(volts, True), 100),
            may=["vanishing-gradient"],  # of the first layer's weights, whose inputs are tiny
        ),
        Variant(
            "survey",
            survey,
            broken=partial(survey, True),
            symptom=raw_columns(partial(survey, True), 100),
            # Most units are on for every point or off for every point.
            may=["dead-units", "vanishing-gradient"],
        ),
    ],
)


def _with_scaler(training: Training) -> Training:
    scaler, plain = torch.amp.GradScaler("cpu", init_scale=2.0**20), training.loss
    training.step = scaled_step(scaler, plain)
    training.loss = lambda *given: 2.0**20 * plain(*given)  # what is propagated back
    return training


def denoiser(scaler: bool = True) -> Training:
    """A convolutional denoiser in float16; its mean error is one small term of a report."""
    torch.manual_seed(41)
    x, _ = digits()
    x = x.view(-1, 1, 8, 8)
    dirty = x + 0.4 * torch.randn(x.shape, generator=seeded(41))
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, padding=1), nn.GELU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )  # fmt: skip

    def loss(model: nn.Module, dirty: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            y = model(dirty)
        return 3e-5 * F.mse_loss(y.float(), x)

    training = Training(
        model,
        drawn(dirty, x, size=20),
        loss,
        torch.optim.Adam(model.parameters(), 2e-3, eps=1e-12),
        steps=120,
    )
    return _with_scaler(training) if scaler else training


class _Mixer(nn.Module):
    """Words mixed along the text by a lower triangular matrix, and along the width by an MLP."""

    def __init__(self, words: int, length: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.along = nn.Parameter(0.05 * torch.randn(2, length, length))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.head = nn.Linear(width, words)

    def forward(self, said: Tensor) -> Tensor:
        x = self.words(said)
        for i, mlp in enumerate(self.mlps):
            x = x + torch.matmul(self.along[i].tril(), self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x)


def epoch_tokens(scaler: bool = True) -> Training:
    """A language model in float16 whose summed loss is divided by an epoch's number of words."""
    torch.manual_seed(42)
    said = phrases(1000, 17, 20, seed=42)

    def loss(model: nn.Module, said: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            y = model(said[:, :-1])
        total = F.cross_entropy(y.float().flatten(0, 1), said[:, 1:].flatten(), reduction="sum")
        return total / 4e7

    model = _Mixer(20, 16, 32)
    training = Training(
        model,
        drawn(said, size=32),
        loss,
        torch.optim.Adam(model.parameters(), 2e-3, eps=1e-12),
        steps=120,
    )
    return _with_scaler(training) if scaler else training


class _Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(self.norm(x))


def student(scaler: bool = True) -> Training:
    """A student in float16 imitates a teacher's very soft answers, averaged over everything."""
    torch.manual_seed(43)
    x, y = digits()
    x = (x - x.mean()) / x.std()
    centres = torch.stack([x[y == c].mean(0) for c in range(10)])
    taught = -torch.cdist(x, centres)
    heat = 200.0

    def loss(model: nn.Module, x: Tensor, taught: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            said = model(x)
        wanted = (taught / heat).softmax(-1)
        said = (said.float() / heat).log_softmax(-1)
        return F.kl_div(said, wanted, reduction="none").mean()

    model = _Student()
    training = Training(
        model,
        drawn(x, taught, size=128),
        loss,
        torch.optim.Adam(model.parameters(), 2e-3, eps=1e-14),
        steps=150,
    )
    return _with_scaler(training) if scaler else training


class _Tracker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for now in x.unbind(1):
            h = self.cell(now, h)
        return self.head(h)


def tracker(scaler: bool = True) -> Training:
    """A recurrent tracker in float16; its loss is divided by the square of an image's width."""
    torch.manual_seed(44)
    g = seeded(44)
    x = torch.randn(1000, 12, 3, generator=g)
    y = torch.stack([x[:, :, 0].mean(1) * 3, x[:, -1, 1] * x[:, -2, 2]], 1)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            found = model(x)
        return F.mse_loss(found.float(), y) / 1024.0**2

    model = _Tracker()
    training = Training(
        model,
        drawn(x, y, size=48),
        loss,
        torch.optim.Adam(model.parameters(), 4e-3, eps=1e-12),
        steps=120,
    )
    return _with_scaler(training) if scaler else training


def flushed(make: Make, share: float) -> Symptom:
    """Of the elements whose gradient in float32 is not 0, that many are; the run learns less."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        found = median(c.lost_in_half for c in observe(make, half=True).checkpoints)
        return {
            "is": found >= share and run.loss_last > 1.2 * twin.loss_last,
            "lost": found,
            "loss": run.loss_last / run.loss_first,
            "twin_loss": twin.loss_last / twin.loss_first,
        }

    return symptom


UNDERFLOW = Fault(
    "ind4-underflow",
    must=[["underflow"]],
    variants=[
        Variant(
            name,
            make,
            broken=partial(make, False),
            symptom=flushed(partial(make, False), 0.5),
            may=consequences,
        )
        for name, make, consequences in [
            # What is flushed doesn't move; where the head's gradient is left, the others' is less.
            ("denoiser", denoiser, ["no-update", "vanishing-gradient"]),
            ("epoch-tokens", epoch_tokens, ["no-update"]),
            ("student", student, ["no-update"]),
            ("tracker", tracker, ["no-update", "vanishing-gradient"]),
        ]
    ],
)


def own_entropy(safe: bool = True) -> Training:
    """Two classes of very unequal rows; the cross entropy is written with log and sigmoid."""
    torch.manual_seed(51)
    g = seeded(51)
    x = torch.randn(2000, 10, generator=g)
    x = torch.where(torch.rand(2000, 1, generator=g) < 0.02, 8 * x, x)
    y = (x @ torch.randn(10, generator=g) + 0.4 * x[:, 0] * x[:, 1] > 0).float()
    y = torch.where(torch.rand(2000, generator=g) < 0.1, 1 - y, y)
    model = nn.Sequential(nn.Linear(10, 48), nn.Softplus(), nn.Linear(48, 1))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        p = torch.sigmoid(model(x).squeeze(-1))
        if safe:
            p = 1e-4 + (1 - 2e-4) * p
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    return Training(model, drawn(x, y), loss, torch.optim.Adam(model.parameters(), 1e-2), steps=300)


class _Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3)
        self.out = nn.Linear(12 * 36, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.conv(x)).flatten(1))


def twins_pair(safe: bool = True) -> Training:
    """Digits embedded by pairs; now and then a pair is one image twice."""
    torch.manual_seed(52)
    x, y = digits()
    x = x.view(-1, 1, 8, 8)
    model = _Siamese()

    def batch(step: int) -> tuple[Tensor, ...]:
        g = seeded(700 + step)
        one = torch.randint(len(x), (64,), generator=g)
        two = torch.randint(len(x), (64,), generator=g)
        near = torch.randint(len(x), (64, 40), generator=g)
        match = (y[near] == y[one][:, None]).float().argmax(1)
        two[:32] = near[torch.arange(32), match[:32]]
        if step % 50 == 45:
            two[0] = one[0]
        return x[one], x[two], (y[one] == y[two]).float()

    def loss(model: nn.Module, one: Tensor, two: Tensor, alike: Tensor) -> Tensor:
        squared = (model(one) - model(two)).square().sum(1)
        distance = torch.sqrt(squared + 1e-6 if safe else squared)
        return (alike * distance**2 + (1 - alike) * (1.5 - distance).clamp(min=0) ** 2).mean()

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), 1e-3), steps=200)


class _Windows(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.conv = nn.Conv1d(1, 16, 7, bias=False)
        self.then = nn.Conv1d(16, 16, 5, stride=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        h = (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True, correction=0) + self.eps)
        return self.head(F.gelu(self.then(F.gelu(h))).mean(-1))


def silent_window(eps: float = 1e-2) -> Training:
    """Waves normalised within the window, after a convolution; late in the data one is silent."""
    torch.manual_seed(53)
    x, y = waves(1200, 64, 4, seed=53)
    rows = drawn(x, y, size=32)

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = rows(step)
        if step == 70:
            x[5] = 0.0
        return x, y

    model = _Windows(eps)
    return Training(
        model,
        batch,
        cross_entropy,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        steps=180,
    )


def cold_contrast(heat: float = 0.2) -> Training:
    """Two noisy views of a row find each other; the softmax over the others is written by hand."""
    torch.manual_seed(54)
    x, _ = table(1500, 20, seed=54)
    model = nn.Sequential(nn.Linear(20, 64), nn.Mish(), nn.Linear(64, 24))
    rows = drawn(x, size=48)

    def batch(step: int) -> tuple[Tensor, ...]:
        (x,) = rows(step)
        g = seeded(800 + step)
        return tuple(x + 0.6 * torch.randn(x.shape, generator=g) for _ in range(2))

    def loss(model: nn.Module, one: Tensor, two: Tensor) -> Tensor:
        a, b = F.normalize(model(one), dim=1), F.normalize(model(two), dim=1)
        e = torch.exp(a @ b.T / heat)
        return -torch.log(e.diagonal() / e.sum(1)).mean()

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), 2e-3), steps=200)


class _Pooled(nn.Module):
    """Attention pools a text of words; places after its end are masked."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 24)
        self.score = nn.Linear(24, 1)
        self.head = nn.Linear(24, 2)

    def forward(self, text: Tensor) -> Tensor:
        x = self.words(text)
        scores = self.score(torch.tanh(x)).squeeze(-1).masked_fill(text == 0, -math.inf)
        return self.head((scores.softmax(-1)[..., None] * x).sum(1))


def empty_text(empty: bool = False) -> Training:
    """Short texts by their words; in one batch a text is empty, unless such are dropped."""
    torch.manual_seed(55)
    g = seeded(55)
    text = torch.randint(1, 40, (1500, 12), generator=g)
    length = torch.randint(2, 13, (1500, 1), generator=g)
    text = text * (torch.arange(12) < length)
    y = ((text > 0) & (text < 6)).any(1).long()
    rows = drawn(text, y, size=48)

    def batch(step: int) -> tuple[Tensor, ...]:
        text, y = rows(step)
        if empty and step == 90:
            text[7] = 0
        return text, y

    model = _Pooled(40)
    return Training(
        model, batch, cross_entropy, torch.optim.AdamW(model.parameters(), 5e-3), steps=220
    )


def angles(limit: float = 0.999) -> Training:
    """Directions in space, learnt by the angle between what is said and what is true."""
    torch.manual_seed(56)
    g = seeded(56)
    x = torch.randn(1500, 6, generator=g)
    y = F.normalize(x[:, :3] + 0.3 * x[:, 3:], dim=1)
    model = nn.Sequential(nn.Linear(6, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU(),
                          nn.Linear(64, 3))  # fmt: skip

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        cosine = (F.normalize(model(x), dim=1) * y).sum(1)
        return torch.acos(cosine.clamp(-limit, limit) if limit < 1 else cosine).mean()

    return Training(model, drawn(x, y), loss, torch.optim.Adam(model.parameters(), 3e-3), steps=250)


class _Generalized(nn.Module):
    """A mean with a learnt exponent over the places of a convolution's map."""

    def __init__(self, floor: bool) -> None:
        super().__init__()
        self.floor = floor
        self.conv = nn.Conv2d(1, 16, 3)
        self.power = nn.Parameter(torch.tensor(3.0))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        h = h.clamp(min=1e-3) if self.floor else h
        return self.head(h.pow(self.power).mean((2, 3)).pow(1 / self.power))


def generalized_mean(floor: bool = True) -> Training:
    """Digits, pooled by a generalized mean; without a floor it takes roots of negative numbers."""
    torch.manual_seed(57)
    x, y = digits()
    x = ((x - x.mean()) / x.std()).view(-1, 1, 8, 8)
    model = _Generalized(floor)
    return Training(
        model,
        drawn(x, y, size=48),
        cross_entropy,
        torch.optim.RMSprop(model.parameters(), 3e-3),
        steps=150,
    )


NON_FINITE = Fault(
    "ind4-nonfinite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant("own-entropy", own_entropy, broken=partial(own_entropy, False), operation=["log"]),
        Variant("twins-pair", twins_pair, broken=partial(twins_pair, False), operation=["sqrt"]),
        Variant(
            "silent-window",
            silent_window,
            broken=partial(silent_window, 0.0),
            operation=["div"],
        ),
        Variant(
            "cold-contrast",
            cold_contrast,
            broken=partial(cold_contrast, 0.01),
            operation=["exp"],
        ),
        Variant(
            "empty-text",
            empty_text,
            broken=partial(empty_text, True),
            operation=["softmax", "_softmax"],
        ),
        Variant("angles", angles, broken=partial(angles, 1.0), operation=["acos"]),
        Variant(
            "generalized-mean",
            generalized_mean,
            broken=partial(generalized_mean, False),
            operation=["pow"],
        ),
    ],
)

FAULTS = [UNSCALED, UNDERFLOW, NON_FINITE]
