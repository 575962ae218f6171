"""Data in the wrong units, and steps that are too long, lost, not finite or none at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Make, Symptom, Variant
from analyses.faults.independent.kit_eighth_units import digits, drawn
from analyses.faults.observe import Observed
from analyses.faults.symptoms import learns_less, not_finite, overshoots, unmoved
from analyses.faults.training import Batch, Training, ordinary

# Data in the wrong units


def far_off(faulty: Make, sound: Make) -> Symptom:
    """Inputs whose size is 20 or more, while the twin's is below 5; the loss suffers for it."""

    def size(make: Make) -> float:
        return float(make().batch(0)[0].float().pow(2).mean().sqrt())

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        found, theirs = size(faulty), size(sound)
        less = learns_less(0.1)(run, twin)
        return {**less, "is": less["is"] and found >= 20 and theirs < 5, "size": found}

    return symptom


def houses(*, scaled: bool) -> Training:
    """Prices of houses from area, year, income, rooms and place."""
    torch.manual_seed(21)
    n = 3000
    area, year = 400 + 3000 * torch.rand(n), 1900 + 120 * torch.rand(n)
    income, rooms = 60000 + 25000 * torch.randn(n), torch.randint(1, 9, (n,)).float()
    place = torch.randn(n, 2) * 0.5 + torch.tensor([37.0, -120.0])
    x = torch.cat([torch.stack([area, year, income, rooms], 1), place], 1)
    z = (x - x.mean(0)) / x.std(0)
    y = z[:, 0] + 0.6 * z[:, 2] + 0.4 * z[:, 1] * z[:, 3] + (2 * z[:, 4]).sin()
    model = nn.Sequential(
        nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x).squeeze(-1), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = drawn(z if scaled else x, (y - y.mean()) / y.std(), size=64)
    return Training(model, batch, loss, optimizer, steps=400)


class Forecaster(nn.Module):
    """The fused recurrence and a head on its last state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.head(out[:, -1]).squeeze(-1)


def prices(*, scaled: bool) -> Training:
    """Tomorrow's price, in standard units, from the last six closing prices."""
    torch.manual_seed(22)
    days = torch.arange(1600.0)
    path = 27000 + 6000 * (days / 60).sin() + 1500 * (days / 7).sin() + 150 * torch.randn(1600)
    z = (path - path.mean()) / path.std()
    windows = (z if scaled else path).unfold(0, 6, 1)[:-1, :, None]
    model = Forecaster(32)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, drawn(windows, z[6:], size=64), loss, optimizer, steps=250)


class SmallUNet(nn.Module):
    """One step down, one up, and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.out = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        top = F.relu(self.into(x))
        low = F.relu(self.mid(F.relu(self.down(top))))
        return self.out(torch.cat([top, self.up(low)], 1))


def scans(*, scaled: bool) -> Training:
    """Find the bright round thing in a slice of a body scan, in Hounsfield units or not."""
    torch.manual_seed(23)
    n, side = 400, 16
    at = torch.rand(n, 2) * 8 + 4
    radius = 2 + 2 * torch.rand(n, 1, 1)
    grid = torch.arange(side).float()
    apart = (grid[None, :, None] - at[:, :1, None]) ** 2 + (grid[None, None] - at[:, 1:, None]) ** 2
    mask = (apart.sqrt() < radius).float()
    units = -900 + 500 * torch.rand(n, 1, 1) + 900 * mask + 150 * torch.randn(n, side, side)
    x = (units + 500) / 500 if scaled else units
    model = SmallUNet(8)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batch = drawn(x[:, None], mask[:, None], size=16)
    return Training(model, batch, loss, optimizer, steps=150, clip=1.0)


class Field(nn.Module):
    """A quantity as a function of place, as physics-informed networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 40), nn.Linear(40, 40), nn.Linear(40, 40)])
        self.out = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x).squeeze(-1)


def field(*, scaled: bool) -> Training:
    """Heights over a map, whose coordinates are in metres or in units of the map's size."""
    torch.manual_seed(24)
    unit = torch.rand(3000, 2) * 2 - 1
    height = (2.5 * unit[:, 0]).sin() * (2 * unit[:, 1]).cos()
    model = Field()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - y).square().mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x = unit if scaled else 4000 + 4000 * unit
    return Training(model, drawn(x, height, size=128), loss, optimizer, steps=300)


class Events(nn.Module):
    """Reads a customer's events: pre-norm encoder, averaged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        layer = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), False)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def events(*, scaled: bool) -> Training:
    """Tell two sorts of customers apart by amounts, hours and days of ten events."""
    torch.manual_seed(25)
    n = 2000
    y = torch.randint(2, (n,))
    hour = torch.rand(n, 10) * 24
    amount = torch.randn(n, 10) * 2 + 1.5 * ((hour > 12).float() * 2 - 1) * (2 * y[:, None] - 1)
    time = 1.7e9 + torch.rand(n, 10).sort(1).values * 3e7
    raw = torch.stack([amount * 20 + 60, hour, time], -1)
    flat = raw.double().view(-1, 3)
    z = ((raw.double() - flat.mean(0)) / flat.std(0)).float()
    model = Events(32)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Training(model, drawn(z if scaled else raw, y, size=48), loss, optimizer, steps=200)


def unscaled(name: str, make: Callable[..., Training], may: list[str]) -> Variant:
    sound, faulty = partial(make, scaled=True), partial(make, scaled=False)
    return Variant(name, sound, broken=faulty, may=may, symptom=far_off(faulty, sound))


UNSCALED = Fault(
    "ind8-unscaled",
    must=[["unscaled-input"]],
    variants=[
        # columns that are never negative: half of the units are off for every house
        unscaled("houses", houses, ["dead-units"]),
        # gates at their ends, whose gradient is exactly 0: at most steps the recurrence stays
        unscaled("prices", prices, ["saturated-activation", "vanishing-gradient", "no-update"]),
        unscaled("scans", scans, []),
        unscaled("field", field, ["saturated-activation", "vanishing-gradient"]),
        # the residual is a billion times what the layers add: normalising divides their gradient
        # by that much, all tokens are alike to the attention, and only weight decay moves them
        unscaled(
            "events",
            events,
            ["vanishing-gradient", "no-update", "starved-pathway", "diffuse-softmax"],
        ),
    ],
)


# Steps that are too long


class Patches(nn.Module):
    """A vision transformer made of the library's layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, width, 2, stride=2)
        self.place = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.cut(x).flatten(2).mT + self.place).mean(1))


def patches(lr: float) -> Training:
    """Digits by patches of four pixels."""
    torch.manual_seed(31)
    x, y = digits()
    model = Patches(32)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    batch = drawn((x / 16).view(-1, 1, 8, 8), y, size=32)
    return Training(model, batch, loss, optimizer, steps=200)


class Letters(nn.Module):
    """Next letter with a fused LSTM."""

    def __init__(self, letters: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(letters, 16)
        self.lstm = nn.LSTM(16, width, batch_first=True)
        self.out = nn.Linear(width, letters)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.lstm(self.table(tokens))[0])


def letters(lr: float) -> Training:
    """A made-up language in which the next letter follows from the last two."""
    torch.manual_seed(32)
    table = torch.randint(12, (12, 12, 3))
    text = torch.zeros(1500, 14, dtype=torch.long)
    text[:, :2] = torch.randint(12, (1500, 2))
    pick = torch.randint(3, (1500, 14)) * (torch.rand(1500, 14) < 0.1)
    for t in range(2, 14):
        text[:, t] = table[text[:, t - 2], text[:, t - 1], pick[:, t]]
    model = Letters(12, 64)

    def loss(model: nn.Module, text: Tensor) -> Tensor:
        return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

    optimizer = torch.optim.RMSprop(model.parameters(), lr=lr)
    return Training(model, drawn(text, size=32), loss, optimizer, steps=250)


def tuned(lr: float) -> Training:
    """A convolutional net, trained before on the even digits, goes on with all of them."""
    torch.manual_seed(33)
    x, y = digits()
    x = (x / 16).view(-1, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    before = torch.optim.Adam(model.parameters(), lr=3e-3)
    even = drawn(x[y % 2 == 0], y[y % 2 == 0], size=48, seed=1)
    for step in range(60):
        before.zero_grad()
        loss(model, *even(step)).backward()
        before.step()
    model.zero_grad()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Training(model, drawn(x, y, size=48), loss, optimizer, steps=200)


def kept(training: Training, step: int) -> dict[str, Any]:
    """The loop without `zero_grad`: gradients add up for ever."""
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.step()
    return {"loss": loss.detach()}


def added_up(*, zeroed: bool) -> Training:
    """Leaky layers on standardised digits, under plain SGD."""
    torch.manual_seed(34)
    x, y = digits()
    model = nn.Sequential(
        nn.Linear(64, 96),
        nn.LeakyReLU(0.1),
        nn.Linear(96, 48),
        nn.LeakyReLU(0.1),
        nn.Linear(48, 10),
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(model(x).log_softmax(-1), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    batch = drawn((x - x.mean()) / x.std(), y, size=64)
    step = ordinary if zeroed else kept
    return Training(model, batch, loss, optimizer, steps=250, step=step)


class Mixed(nn.Module):
    """One mixing layer: along the places, then along the channels."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.places = nn.Sequential(nn.Linear(places, 32), nn.GELU(), nn.Linear(32, places))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(self.norm1(x).mT).mT
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """An MLP-mixer for the rows of an image."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.mixed = nn.Sequential(Mixed(8, width), Mixed(8, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixed(self.embed(x)).mean(1))


def mixer(make: Callable[[torch.optim.Optimizer], Any] | None, lr: float) -> Training:
    """An MLP-mixer on digits with a schedule of the learning rate."""
    torch.manual_seed(35)
    x, y = digits()
    model = Mixer()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    batch = drawn((x / 16).view(-1, 8, 8), y, size=48)
    training = Training(model, batch, loss, optimizer, steps=220)
    training.schedule = make(optimizer) if make else None
    return training


def fading(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.99)


def growing(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=1.03)


TOO_LARGE = Fault(
    "ind8-update",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        # after the first steps one attention points at one place, the other's tokens are all alike
        Variant(
            "patches",
            partial(patches, 1e-3),
            broken=partial(patches, 0.1),
            may=["dead-units", "vanishing-gradient", "peaked-softmax", "diffuse-softmax"],
        ),
        # weights a hundred times as large hold the gates at their ends
        Variant(
            "letters",
            partial(letters, 3e-3),
            broken=partial(letters, 0.5),
            may=["saturated-activation", "vanishing-gradient"],
        ),
        Variant("tuned", partial(tuned, 2e-3), broken=partial(tuned, 0.6), may=["dead-units"]),
        Variant(
            "kept-gradients", partial(added_up, zeroed=True), broken=partial(added_up, zeroed=False)
        ),
        Variant("growing-rate", partial(mixer, fading, 2e-3), broken=partial(mixer, growing, 2e-3)),
    ],
)


# Gradients that half precision cannot hold


def flushed(faulty: Make, sound: Make, share: float) -> Symptom:
    """Of the gradient's elements that are not 0 in float32, that many are 0; the loss suffers.

    `sound` builds the same model and batches, computed in float32.
    """

    def gradients(make: Make) -> list[Tensor]:
        torch.manual_seed(0)
        training = make()
        loss = training.loss_at(0)
        return list(torch.autograd.grad(loss, list(training.model.parameters())))

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        mine, theirs = gradients(faulty), gradients(sound)
        there = sum(int((g != 0).sum()) for g in theirs)
        gone = sum(int(((g != 0) & (m == 0)).sum()) for g, m in zip(theirs, mine, strict=True))
        less = learns_less(0.05)(run, twin)
        return {**less, "is": less["is"] and gone / there >= share, "lost": gone / there}

    return symptom


DIM = 0.025  # brightness of the scene


class Denoiser(nn.Module):
    """Takes the noise out of images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.silu(self.second(F.silu(self.first(x)))))


def denoised(*, half: bool) -> Training:
    """Images of a dim scene with autocast: small residues, averaged over many pixels."""
    torch.manual_seed(41)
    x, _ = digits()
    dim = F.interpolate((x / 16).view(-1, 1, 8, 8)[:600], scale_factor=3) * DIM
    noisy = dim + 0.3 * DIM * torch.randn_like(dim)
    model = Denoiser()
    nn.init.zeros_(model.last.bias)  # type: ignore[arg-type]

    def loss(model: nn.Module, noisy: Tensor, dim: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=half):
            out = model(noisy / DIM)
        return F.mse_loss(out.float() * DIM, dim)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, eps=1e-12)
    return Training(model, drawn(noisy, dim, size=16), loss, optimizer, steps=120)


def penalised(*, half: bool) -> Training:
    """A surface fitted by a model that is in one precision as a whole; its loss has a weight."""
    torch.manual_seed(42)
    x = torch.rand(6000, 2) * 2 - 1
    height = (3 * x[:, 0]).sin() * (2 * x[:, 1]).cos() + 0.5 * x[:, 0]
    dtype = torch.float16 if half else torch.float32
    model = nn.Sequential(
        nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1)
    )
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.xavier_normal_(m.weight)
    model.to(dtype)
    weight = 1e-4

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x.to(dtype)).squeeze(-1)
        return weight * (out - y.to(dtype)).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.03 / weight, momentum=0.9)
    return Training(model, drawn(x, height, size=2048), loss, optimizer, steps=200)


class Tagger(nn.Module):
    """Causal attention, written out, and a head with two kinds of answers."""

    def __init__(self, letters: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(letters, width)
        self.place = nn.Parameter(torch.randn(12, width) * 0.1)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, letters)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens) + self.place
        scores = self.q(h) @ self.k(h).mT / math.sqrt(h.shape[-1])
        later = torch.ones(12, 12, dtype=torch.bool).triu(1)
        h = h + scores.masked_fill(later, -1e4).softmax(-1) @ self.v(h)
        h = h + self.down(F.gelu(self.up(h)))
        return self.out(self.norm(h))


def weighed(*, half: bool) -> Training:
    """The loss is one of several and has a small share in their sum."""
    torch.manual_seed(43)
    tokens = torch.randint(16, (2000, 12))
    tokens[:, 1::2] = (tokens[:, 0::2] * 3 + 1) % 16
    model = Tagger(16, 48)

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=half):
            logits = model(tokens)
            share = 1e-4
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) * share

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, eps=1e-12)
    return Training(model, drawn(tokens, size=64), loss, optimizer, steps=150)


def halved(name: str, make: Callable[..., Training], may: list[str]) -> Variant:
    sound, faulty = partial(make, half=False), partial(make, half=True)
    return Variant(name, sound, broken=faulty, may=may, symptom=flushed(faulty, sound, 0.4))


UNDERFLOW = Fault(
    "ind8-underflow",
    must=[["underflow"]],
    variants=[
        # nothing comes to the first two layers, which stay as they are
        halved("denoiser", denoised, ["vanishing-gradient", "no-update"]),
        # what is left of the gradient at the output is gone at the first layer
        halved("penalised", penalised, ["vanishing-gradient"]),
        # queries and keys, beside the values, get exactly 0 and stay as they are
        halved("weighed", weighed, ["no-update", "starved-pathway"]),
    ],
)


# Numbers that are not finite


class Twins(nn.Module):
    """One encoder for both sides of a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 16))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(a), self.encoder(b)


def paired(floor: float) -> Training:
    """Contrastive pairs drawn with repetition: now and then both sides are one image."""
    torch.manual_seed(51)
    x, y = digits()
    x = x / 16

    def batch(step: int) -> Batch:
        drawing = torch.Generator().manual_seed(step + 2000)
        i, j = torch.randint(len(x), (2, 32), generator=drawing)
        return x[i], x[j], (y[i] == y[j]).float()

    def loss(model: nn.Module, a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
        a, b = model(a, b)
        apart = torch.sqrt(((a - b) ** 2).sum(1) + floor)
        return (alike * apart**2 + (1 - alike) * (1 - apart).clamp(min=0) ** 2).mean()

    model = Twins()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, batch, loss, optimizer, steps=160)


def likelihood(*, by_hand: bool) -> Training:
    """Is the digit above four? The loss is written out, with the logarithm of 1 − p."""
    torch.manual_seed(52)
    x, y = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ELU(), nn.Flatten(), nn.Linear(432, 1)
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logit = model(x).squeeze(-1)
        if not by_hand:
            return F.binary_cross_entropy_with_logits(logit, y)
        p = torch.sigmoid(logit)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch = drawn((x / 16).view(-1, 1, 8, 8), (y > 4).float(), size=64)
    return Training(model, batch, loss, optimizer, steps=250)


class Marks(nn.Module):
    """A label and a value for every step of a series."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 32, batch_first=True, bidirectional=True)
        self.kind = nn.Linear(64, 2)
        self.value = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h, _ = self.rnn(x)
        return {"kind": self.kind(h), "value": self.value(h).squeeze(-1)}


def masked_mean(*, guarded: bool) -> Training:
    """The error of the values is averaged over the rare events of a batch, if there are any."""
    torch.manual_seed(53)
    x = torch.randn(2000, 8, 2)
    x[..., 0] = (torch.rand(2000, 8) < 0.03).float()
    event = x[..., 0]
    value = event * torch.roll(x[..., 1], 1, 1)

    def loss(model: nn.Module, x: Tensor, event: Tensor, value: Tensor) -> Tensor:
        out = model(x)
        kind = F.cross_entropy(out["kind"].flatten(0, 1), event.long().flatten())
        wrong = (out["value"] - value).pow(2) * event
        count = event.sum().clamp(min=1) if guarded else event.sum()
        return kind + wrong.sum() / count

    model = Marks()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, drawn(x, event, value, size=16, seed=3), loss, optimizer, steps=200)


class Texts(nn.Module):
    """Attention pooling over the words that are there."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width, padding_idx=0)
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, words: Tensor) -> Tensor:
        h = self.table(words)
        scores = self.score(h).squeeze(-1).masked_fill(words == 0, -torch.inf)
        return self.head((scores.softmax(-1)[:, None] @ h).squeeze(1))


def texts(*, empty: bool) -> Training:
    """Kinds of short texts; one of the collection has no words at all."""
    torch.manual_seed(54)
    y = torch.randint(3, (3000,))
    words = torch.randint(1, 40, (3000, 9))
    words[torch.arange(3000), torch.randint(3, (3000,))] = 40 + y
    length = torch.randint(3, 10, (3000, 1))
    if empty:
        length[548] = 0
    words = words * (torch.arange(9) < length)

    def loss(model: nn.Module, words: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(words), y)

    model = Texts(43, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, drawn(words, y, size=32), loss, optimizer, steps=250)


class Wide(nn.Module):
    """A wide and a deep part, added up."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.wide = nn.Linear(columns, 1)
        self.deep = nn.Sequential(nn.Linear(columns, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.wide(x) + self.deep(x)).squeeze(-1)


def gaps(*, filled: bool) -> Training:
    """A table read from a file in which an entry is missing."""
    torch.manual_seed(55)
    x = torch.randn(3000, 8)
    y = x[:, 0] - x[:, 1].abs() + 0.5 * x[:, 2] * x[:, 3]
    x[2581, 5] = 0.0 if filled else math.nan

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(model(x), y)

    model = Wide(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, drawn(x, y, size=16), loss, optimizer, steps=250)


class Counts(nn.Module):
    """The logarithm of a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 40), nn.Linear(40, 40)
        self.rate = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.rate(F.softplus(self.second(F.softplus(self.first(x))))).squeeze(-1)


def counts(code: float) -> Training:
    """Counts of visits; a sensor that was off is in the table as a number of its own."""
    torch.manual_seed(56)
    x = torch.randn(3000, 6)
    y = torch.poisson((0.5 * x[:, 0] + 0.3 * x[:, 1] * x[:, 2]).clamp(max=2).exp())
    x[1858, 2:] = code

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        log_rate = model(x)
        return (torch.exp(log_rate) - y * log_rate).mean()

    model = Counts()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, drawn(x, y, size=32), loss, optimizer, steps=250)


NON_FINITE = Fault(
    "ind8-nonfinite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant("pairs", partial(paired, 1e-6), broken=partial(paired, 0.0), operation=["sqrt"]),
        Variant(
            "likelihood",
            partial(likelihood, by_hand=False),
            broken=partial(likelihood, by_hand=True),
            # by then most answers are sure, which is what the logarithm fails at
            may=["saturated-activation"],
            operation=["log"],
        ),
        Variant(
            "masked-mean",
            partial(masked_mean, guarded=True),
            broken=partial(masked_mean, guarded=False),
            operation=["div", "true_divide"],
        ),
        Variant(
            "empty-text",
            partial(texts, empty=False),
            broken=partial(texts, empty=True),
            operation=["softmax", "_softmax"],
        ),
        # the numbers are in the data: the first operation is the one that reads them
        Variant(
            "gaps",
            partial(gaps, filled=True),
            broken=partial(gaps, filled=False),
            operation=["input", "addmm", "linear"],
        ),
        # the number that overflows comes from entries of 9999 among entries of 1
        Variant(
            "counts",
            partial(counts, 0.0),
            broken=partial(counts, 9999.0),
            may=["unscaled-input"],
            operation=["exp"],
        ),
    ],
)


# No step at all


class Skip(nn.Module):
    """Two normalised convolutions and what went in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(h)))


def resnet(lr: float) -> Training:
    """A small residual network on digits."""
    torch.manual_seed(61)
    x, y = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2, padding=1),
        Skip(12),
        Skip(12),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, label_smoothing=0.05)

    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    batch = drawn((x / 16).view(-1, 1, 8, 8), y, size=32)
    return Training(model, batch, loss, optimizer, steps=200)


def cleared(training: Training, step: int) -> dict[str, Any]:
    """The gradients are cleared after the backward pass, before the step."""
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.zero_grad()
    training.optimizer.step()
    return {"loss": loss.detach()}


class Series(nn.Module):
    """Dilated convolutions along time, averaged by fours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(1 if d == 1 else width, width, 3, padding=d, dilation=d) for d in (1, 2, 4)
        )
        self.head = nn.Linear(6 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.gelu(conv(x))
        return self.head(F.avg_pool1d(x, 4).flatten(1))


def series(step: Callable[[Training, int], dict[str, Any]]) -> Training:
    """Slow, middling and fast waves."""
    torch.manual_seed(62)
    kinds = torch.randint(3, (2000,))
    time = torch.arange(24) * (0.25 + 0.4 * kinds[:, None]) + torch.rand(2000, 1) * 6
    x = (time.sin() + 0.2 * torch.randn(2000, 24))[:, None]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    model = Series(24)
    for conv in model.convs:
        nn.init.kaiming_normal_(conv.weight)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, drawn(x, kinds, size=32), loss, optimizer, steps=200, step=step)


class Copier(nn.Module):
    """Encoder and decoder of gated recurrences with attention between them."""

    def __init__(self, letters: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(letters + 1, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(2 * width, letters)

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        memory, last = self.encoder(self.table(source))
        state, _ = self.decoder(self.table(before), last)
        weights = F.softmax(state @ memory.mT, -1)
        return self.out(torch.cat([state, weights @ memory], -1))


def warmed(length: int, *, whole: bool) -> Training:
    """Copies words backwards, with a warm-up; with whole numbers its share stays at 0."""
    torch.manual_seed(63)
    words = torch.randint(1, 9, (2000, 5))
    back = words.flip(1)
    before = torch.cat([torch.zeros(2000, 1, dtype=torch.long), back[:, :-1]], 1)

    def rate(step: int) -> float:
        return float(min(1, (step + 1) // length if whole else (step + 1) / length))

    def loss(model: nn.Module, source: Tensor, before: Tensor, back: Tensor) -> Tensor:
        return F.cross_entropy(model(source, before).flatten(0, 1), back.flatten() - 1)

    model = Copier(8, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    training = Training(model, drawn(words, before, back, size=48), loss, optimizer, steps=200)
    training.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return training


class Variational(nn.Module):
    """A variational autoencoder; gives what it makes and the two parts of its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 80), nn.SiLU(), nn.Linear(80, 16))
        self.decode = nn.Sequential(nn.Linear(8, 80), nn.SiLU(), nn.Linear(80, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encode(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        out = self.decode(z)
        error = F.mse_loss(out, x, reduction="none").sum(-1).mean()
        divergence = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(-1).mean()
        return out, error, divergence


def variational(clip: float) -> Training:
    """Digits; the norm of the gradient is cut to `clip` before every step of SGD."""
    torch.manual_seed(64)
    x, _ = digits()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        _, error, divergence = model(x)
        return error + 0.1 * divergence

    model = Variational()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, drawn(x / 16, size=64), loss, optimizer, steps=250, clip=clip)


STILL = Fault(
    "ind8-still",
    must=[["no-update"]],
    symptom=unmoved(1e-4),
    variants=[
        Variant("resnet", partial(resnet, 0.05), broken=partial(resnet, 5e-9)),
        Variant("cleared", partial(series, ordinary), broken=partial(series, cleared)),
        Variant(
            "warm-up",
            partial(warmed, 40, whole=False),
            broken=partial(warmed, 4000, whole=True),
        ),
        Variant("clip", partial(variational, 1.0), broken=partial(variational, 1e-7)),
    ],
)


FAULTS = [UNSCALED, TOO_LARGE, UNDERFLOW, NON_FINITE, STILL]
