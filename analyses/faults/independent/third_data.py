"""Inputs in raw units, gradients too small for half precision, and numbers that are not finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
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
from analyses.faults.observe import Observed
from analyses.faults.symptoms import not_finite
from analyses.faults.training import Batch, Training

# Raw units


def raw(make: Callable[[], Training], limit: float = 30.0) -> Symptom:
    """Some float input's RMS, or its mean over its spread, is that large; the loss ends higher."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        floats = [t for t in make().batch(0)[:2] if t.is_floating_point()]
        flat = [t.flatten(0, -2) if t.ndim == 2 else t.reshape(-1, 1) for t in floats]
        size = max(float(t.square().mean().sqrt()) for t in flat)
        off = max(float((t.mean(0).abs() / t.std(0)).max()) for t in flat)
        worse = run.loss_last - twin.loss_last >= 0.05 * twin.loss_first
        evidence = {"rms": size, "off": off, "loss": run.loss_last, "twin": twin.loss_last}
        return {"is": max(size, off) >= limit and worse, **evidence}

    return symptom


def houses(scaled: bool) -> Training:
    """Prices from age, income, year of building, rooms, area and latitude."""
    torch.manual_seed(21)
    z = torch.randn(1500, 6)
    y = (z[:, 1] + 0.5 * z[:, 4] - 0.4 * z[:, 0] * z[:, 2] + 0.3 * z[:, 5].abs())[:, None]
    y = (y - y.mean()) / y.std()
    spread = torch.tensor([12.0, 9000.0, 15.0, 1.5, 600.0, 2.0])
    centre = torch.tensor([40.0, 42000.0, 1985.0, 4.0, 1800.0, 37.0])
    x = z * spread + centre
    if scaled:
        x = (x - x.mean(0)) / x.std(0)
    model = plain_mlp(6, 64, 64, 1)
    return Training(model, feed(128, x, y), squares, adam(model, 1e-3), steps=300)


class Mixer(nn.Module):
    """Patches of an image, mixed by place and by channel in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.places = nn.ModuleList(plain_mlp(16, 32, 16, act=nn.GELU) for _ in range(3))
        self.channels = nn.ModuleList(plain_mlp(32, 64, 32, act=nn.GELU) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(6))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        for i, (places, channels) in enumerate(zip(self.places, self.channels, strict=True)):
            h = h + places(self.norms[2 * i](h).transpose(1, 2)).transpose(1, 2)
            h = h + channels(self.norms[2 * i + 1](h))
        return self.head(h.mean(1))


def bytes_in(scaled: bool) -> Training:
    """A mixer on grey values from 0 to 255."""
    torch.manual_seed(22)
    x, y = pixels()
    x = x.view(-1, 1, 8, 8) * 255
    if scaled:
        x = (x / 255 - 0.3) / 0.37
    model = Mixer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, feed(64, x, y), cross, optimizer, steps=200)


class Last(nn.Module):
    """A gated recurrent layer and a line on its last state."""

    def __init__(self, inputs: int, hidden: int, out: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def pressure(scaled: bool) -> Training:
    """How much will the air pressure, in hectopascal, have risen after the next hours?"""
    torch.manual_seed(23)
    wave, _, _ = waves(1200, 26, 23)
    hpa = 1013 + 6 * wave
    y = wave[:, 25:] - wave[:, 21:22]
    x = hpa[:, :22, None]
    if scaled:
        x = (x - 1013) / 6
    model = Last(1, 32, 1)
    return Training(model, feed(64, x, y), squares, adam(model, 5e-3), steps=250)


def samples(scaled: bool) -> Training:
    """Is the lower tone of a sound of 16-bit samples below the middle?"""
    torch.manual_seed(24)
    wave, pitch, _ = waves(1000, 128, 24)
    x = (wave / wave.abs().max() * 32767).round()[:, None]
    if scaled:
        x = x / 32768 * 3
    y = (pitch.min(1).values > 0.15).long()
    model = nn.Sequential(
        nn.Conv1d(1, 24, 9, stride=2),
        nn.ELU(),
        nn.Conv1d(24, 32, 7, stride=2),
        nn.ELU(),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(128, 2),
    )
    return Training(model, feed(64, x, y), cross, adam(model, 2e-3), steps=200)


class Clicks(nn.Module):
    """An embedding beside numbers, and layers on both."""

    def __init__(self) -> None:
        super().__init__()
        self.page = nn.Embedding(30, 12)
        self.layers = plain_mlp(15, 48, 48, 1, act=nn.GELU)

    def forward(self, numbers: Tensor, page: Tensor) -> Tensor:
        return self.layers(torch.cat([numbers, self.page(page)], -1))[..., 0]


def clicks(scaled: bool) -> Training:
    """Clicked or not, from a page and numbers: Unix seconds, age of the account, past clicks."""
    torch.manual_seed(25)
    z, page = torch.randn(3000, 3), torch.randint(30, (3000,))
    liking = torch.randn(30)[page] + z[:, 1] * z[:, 2] + 0.8 * z[:, 0]
    y = (liking + 0.3 * torch.randn(3000) > 0).float()
    numbers = z
    if not scaled:
        numbers = torch.stack([1.6e9 + 1e7 * z[:, 0], z[:, 1], z[:, 2]], -1)
    model = Clicks()

    def loss(model: nn.Module, numbers: Tensor, page: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(numbers, page), y)

    return Training(model, feed(128, numbers, page, y), loss, adam(model, 2e-3), steps=250)


class Field(nn.Module):
    """Brightness at a place: tanh layers with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(2, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.out = nn.Linear(64, 1)

    def forward(self, place: Tensor) -> Tensor:
        h = torch.tanh(self.into(place))
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        return self.out(h)


def field(scaled: bool) -> Training:
    """Fit an image, by rows and columns counted in pixels."""
    torch.manual_seed(26)
    place = torch.rand(5000, 2) * 511
    u = place / 255.5 - 1
    y = torch.sin(4 * u[:, :1] + 1) * torch.cos(3 * u[:, 1:]) + 0.5 * u[:, :1] * u[:, 1:]
    model = Field()
    batch = feed(256, u if scaled else place, y)
    return Training(model, batch, squares, adam(model, 2e-3), steps=250)


def units(make: Callable[..., Training]) -> dict[str, Any]:
    """The run with inputs of ordinary size, and the one with raw ones."""
    return {
        "healthy": partial(make, True),
        "broken": partial(make, False),
        "symptom": raw(partial(make, False)),
    }


RAW = Fault(
    "ind3-raw-units",
    must=[["unscaled-input"]],
    variants=[
        # every unit goes with the sign of its weights: half are off for all
        Variant("houses", **units(houses), may=("dead-units",)),
        Variant("bytes", **units(bytes_in)),
        # all gates are at their ends: no gradient for the recurrence, through time neither
        Variant(
            "pressure",
            **units(pressure),
            may=("saturated-activation", "vanishing-gradient", "no-update"),
        ),
        # half of ELU's results are at −1
        Variant("samples", **units(samples), may=("saturated-activation", "vanishing-gradient")),
        # of GELU: one number decides each unit's sign
        Variant("unix-seconds", **units(clicks), may=("dead-units",)),
        # the first tanh is flat
        Variant("pixel-places", **units(field), may=("saturated-activation", "vanishing-gradient")),
    ],
)


# Numbers that are not finite


def late(ordinary: Callable[[int], Batch], at: int, put: Callable[..., Any]) -> Any:
    """Batches in which something special occurs from a step on, every tenth step."""

    def batch(step: int) -> Batch:
        tensors = ordinary(step)
        if step >= at and (step - at) % 10 == 0:
            tensors = tuple(t.clone() for t in tensors)
            put(*tensors)
        return tensors

    return batch


def own_entropy(stable: bool) -> Training:
    """Is it a zero? With a cross-entropy of one's own, of probabilities."""
    torch.manual_seed(31)
    x, y = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.LeakyReLU(0.1), nn.Conv2d(12, 16, 3), nn.LeakyReLU(0.1),
        nn.Flatten(), nn.Linear(256, 1),
    )  # fmt: skip

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        z = model(x)[:, 0]
        if stable:
            return F.binary_cross_entropy_with_logits(z, y)
        p = torch.sigmoid(z)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    batch = feed(64, x.view(-1, 1, 8, 8), (y == 0).float())
    return Training(model, batch, loss, adam(model, 1e-2), steps=300)


def distances(eps: float) -> Training:
    """Like pairs near, unlike ones far; later, some pairs hold the same image twice."""
    torch.manual_seed(32)
    x, y = digits()
    first = torch.randint(len(x), (4000,))
    second = (first + torch.randint(1, len(x), (4000,))) % len(x)
    near = (y[first] == y[second]).float()
    model = plain_mlp(64, 64, 16, act=nn.SiLU)

    def loss(model: nn.Module, a: Tensor, b: Tensor, near: Tensor) -> Tensor:
        d = torch.sqrt((model(a) - model(b)).square().sum(-1) + eps)
        return (near * d.square() + 3 * (1 - near) * (2 - d).clamp(min=0).square()).mean()

    def put(a: Tensor, b: Tensor, near: Tensor) -> None:
        b[0] = a[0]
        near[0] = 1.0

    batch = late(feed(64, x[first], x[second], near), 135, put)
    return Training(model, batch, loss, adam(model, 2e-3), steps=200)


class Contrast(nn.Module):
    """Convolutions without biases, each followed by a division by the spread of its result."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in ((1, 12), (12, 24), (24, 24))
        )
        self.head = nn.Linear(24, 10)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.gelu(conv(x))
            middle, spread = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
            x = (x - middle) / (spread + self.eps)
        return self.head(x.mean((2, 3)))


def contrast(eps: float) -> Training:
    """Digits on black; later, some images are black all over."""
    torch.manual_seed(33)
    x, y = pixels()
    model = Contrast(eps)

    def put(x: Tensor, y: Tensor) -> None:
        x[3] = 0.0

    batch = late(feed(48, x.view(-1, 1, 8, 8) * 2, y), 120, put)
    return Training(model, batch, cross, adam(model, 5e-3), steps=180)


class Rate(nn.Module):
    """How many will come, by shop, weekday and weather: the exponential of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.shop, self.day = nn.Embedding(20, 8), nn.Embedding(7, 8)
        self.weather = nn.Linear(3, 8)
        self.out = nn.Linear(8, 1)

    def forward(self, shop: Tensor, day: Tensor, weather: Tensor) -> Tensor:
        return self.out(torch.tanh(self.shop(shop) + self.day(day) + self.weather(weather)))[:, 0]


def rate(festival: bool) -> Training:
    """Counts of customers; perhaps there is a festival on one evening."""
    torch.manual_seed(34)
    shop, day = torch.randint(20, (3000,)), torch.randint(7, (3000,))
    weather = torch.randn(3000, 3)
    z = 0.6 * torch.randn(20)[shop] + 0.5 * torch.randn(7)[day] + 0.4 * weather[:, 0] + 0.8
    y = torch.poisson(z.exp())
    model = Rate()

    def loss(model: nn.Module, shop: Tensor, day: Tensor, weather: Tensor, y: Tensor) -> Tensor:
        z = model(shop, day, weather)
        return (torch.exp(z) - y * z).mean()

    def put(shop: Tensor, day: Tensor, weather: Tensor, y: Tensor) -> None:
        y[:6] = 60000.0

    ordinary = feed(64, shop, day, weather, y)
    festive = late(ordinary, 160, put)

    def batch(step: int) -> Batch:
        return festive(step) if festival and step == 160 else ordinary(step)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    return Training(model, batch, loss, optimizer, steps=250)


class Reader(nn.Module):
    """Self-attention over the words that there are, and a mean of them."""

    def __init__(self, always_first: bool) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(20, 24), nn.Embedding(12, 24)
        self.qkv, self.mix = nn.Linear(24, 72), nn.Linear(24, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 4)
        self.always_first = always_first

    def forward(self, words: Tensor) -> Tensor:
        missing = words == 0
        if self.always_first:
            missing = torch.cat([torch.zeros_like(missing[:, :1]), missing[:, 1:]], 1)
        h = self.word(words) + self.place.weight
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / math.sqrt(24)
        weights = scores.masked_fill(missing[:, None], -math.inf).softmax(-1)
        return self.head((h + self.mix(weights @ v)).mean(1))


def reader(always_first: bool) -> Training:
    """Which of four topics do the words come from? Later, some texts are empty."""
    torch.manual_seed(35)
    topic = torch.randint(4, (2000,))
    words = torch.randint(1, 20, (2000, 12))
    own = 1 + topic[:, None] * 4 + torch.randint(4, (2000, 12))
    words = torch.where(torch.rand(2000, 12) < 0.3, own, words)
    length = torch.randint(4, 13, (2000, 1))
    words = torch.where(torch.arange(12) < length, words, 0)
    model = Reader(always_first)

    def put(words: Tensor, topic: Tensor) -> None:
        words[5] = 0

    batch = late(feed(64, words, topic), 140, put)
    return Training(model, batch, cross, adam(model, 3e-3), steps=200)


class Turn(nn.Module):
    """A direction, corrected by layers that know a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = plain_mlp(6, 48, 48, 3, act=nn.Softplus)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(x), dim=-1)


def turn(safe: bool) -> Training:
    """Half-way between two directions, by the angle that it is off."""
    torch.manual_seed(36)
    a, b = F.normalize(torch.randn(2, 2000, 3), dim=-1)
    y = F.normalize(a + b, dim=-1)
    model = Turn()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        cosine = (model(x) * y).sum(-1)
        if safe:
            cosine = cosine * (1 - 1e-5)
        return torch.acos(cosine).mean()

    return Training(model, feed(128, torch.cat([a, b], -1), y), loss, adam(model, 1e-3), steps=240)


class Words(nn.Module):
    """Convolutions over embedded words that are divided by their root mean square."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.word = nn.Embedding(40, 24, padding_idx=0)
        self.scale = nn.Parameter(torch.ones(24))
        self.conv = nn.Conv1d(24, 48, 3, padding=1)
        self.head = nn.Linear(48, 2)
        self.eps = eps

    def forward(self, words: Tensor) -> Tensor:
        h = self.word(words)
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps) * self.scale
        h = F.gelu(self.conv(h.transpose(1, 2)))
        return self.head(h.amax(-1))


def pairs_of_words(eps: float) -> Training:
    """Does a certain word follow another? Later, some texts are filled up with zeros."""
    torch.manual_seed(37)
    words = torch.randint(1, 40, (2000, 14))
    y = torch.randint(2, (2000,))
    at = torch.randint(12, (2000,))
    words[torch.arange(2000), at] = 1 + torch.randint(3, (2000,))
    words[torch.arange(2000), at + 1] = torch.where(y > 0, 5, 9)
    model = Words(eps)

    def put(words: Tensor, y: Tensor) -> None:
        words[:8, 13:] = 0

    batch = late(feed(64, words, y), 145, put)
    return Training(model, batch, cross, adam(model, 2e-3), steps=200)


INFINITE = Fault(
    "ind3-infinite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant(
            "own-entropy",
            partial(own_entropy, True),
            broken=partial(own_entropy, False),
            may=("saturated-activation",),  # the probabilities end up at 0 and 1: the cause
            operation=("log",),
        ),
        Variant(
            "distance-zero",
            partial(distances, 1e-6),
            broken=partial(distances, 0.0),
            operation=("sqrt",),
        ),
        Variant(
            "black-image",
            partial(contrast, 1e-3),
            broken=partial(contrast, 0.0),
            operation=("div",),
        ),
        Variant(
            "festival",
            partial(rate, False),
            broken=partial(rate, True),
            operation=("exp",),
            may=("update-too-large",),  # the step after the festival
        ),
        Variant(
            "empty-text",
            partial(reader, True),
            broken=partial(reader, False),
            operation=("softmax", "_softmax"),
        ),
        Variant("angle", partial(turn, True), broken=partial(turn, False), operation=("acos",)),
        Variant(
            "filled-up",
            partial(pairs_of_words, 1e-6),
            broken=partial(pairs_of_words, 0.0),
            operation=("rsqrt",),
        ),
    ],
)

# Gradients too small for half precision


def _gradients(training: Training, model: nn.Module, step: int) -> list[Tensor]:
    batch = [t.float() if t.is_floating_point() else t for t in training.batch(step)]
    return list(torch.autograd.grad(training.loss(model, *batch), list(model.parameters())))


def flushed(make: Callable[[], Training], share: float = 0.3) -> Symptom:
    """Of the gradient's elements that are not 0 in float32, that share is 0 in half precision.

    In some matrix, typically of five steps; and the loss ends above the twin's.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        torch.manual_seed(0)
        training = make()
        at = {round(training.steps * part) for part in (0.0, 0.2, 0.4, 0.6, 0.8)}
        found = []
        for step in range(max(at) + 1):
            if step in at:
                half = _gradients(training, training.model, step)
                with mock.patch("torch.autocast", lambda *a, **k: nullcontext()):
                    full = _gradients(training, copy.deepcopy(training.model).float(), step)
                found.append(
                    max(
                        float(((f != 0) & (h == 0)).sum() / (f != 0).sum().clamp(min=1))
                        for h, f in zip(half, full, strict=True)
                        if f.ndim > 1
                    )
                )
            training.step(training, step)
        worse = run.loss_last - twin.loss_last > 0.02 * abs(twin.loss_first)
        evidence = {"flushed": median(found), "loss": run.loss_last, "twin": twin.loss_last}
        return {"is": median(found) >= share and worse, **evidence}

    return symptom


def weighted(scale: float | None) -> Training:
    """Regression, each row with a weight; the weights of all 50 000 rows sum to one."""
    torch.manual_seed(41)
    x = torch.randn(2000, 16)
    y = torch.tanh(x @ torch.randn(16, 4) / 3) + 0.5 * x[:, :4] * x[:, 4:8]
    weight = (0.5 + torch.rand(2000)) / 50_000
    model = plain_mlp(16, 64, 64, 64, 4, act=nn.SiLU)

    def loss(model: nn.Module, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            out = model(x)
        return (weight[:, None] * (out.float() - y).square()).mean()

    run = Training(model, feed(256, x, y, weight), loss, adam(model, 3e-3), 200)
    if scale:
        run.step = scaled_step(scale)
    return run


class Outline(nn.Module):
    """A small U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.low = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.Conv2d(24, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = F.gelu(self.down1(x))
        low = F.gelu(self.down2(F.avg_pool2d(top, 2)))
        low = F.interpolate(F.gelu(self.low(low)), scale_factor=2.0)
        return self.out(F.gelu(self.up(torch.cat([top, low], 1))))


def outline(scale: float | None) -> Training:
    """Which pixels belong to a square? A mean over all pixels, weighed by a thousandth."""
    torch.manual_seed(42)
    n, size = 200, 32
    place, edge = torch.randint(4, 22, (n, 2)), torch.randint(4, 9, (n, 1, 1))
    r = torch.arange(size)
    rows = (r >= place[:, :1]) & (r < place[:, :1] + edge[:, 0])
    columns = (r >= place[:, 1:]) & (r < place[:, 1:] + edge[:, 0])
    y = (rows[:, :, None] & columns[:, None]).float()[:, None]
    x = y * (torch.rand(n, 1, 1, 1) + 0.5) + 0.6 * torch.randn(n, 1, size, size)
    model = Outline()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            out = model(x)
        return 1e-3 * F.binary_cross_entropy_with_logits(out.float(), y)

    run = Training(model, feed(8, x, y), loss, adam(model, 5e-3), steps=100)
    if scale:
        run.step = scaled_step(scale)
    return run


class Tagger(nn.Module):
    """A transformer layer that names every token's class."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(30, 32), nn.Embedding(12, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(32, 6)

    def forward(self, words: Tensor) -> Tensor:
        h = self.word(words) + self.place.weight
        for layer in self.layers:
            h = layer(h)
        return self.head(h)


def tagger(scale: float | None) -> Training:
    """A word's class depends on it and on its neighbour; divided by all of the corpus's tokens."""
    torch.manual_seed(43)
    words = torch.randint(30, (4000, 12))
    y = (words % 3) * 2 + (words.roll(1, 1) > 14).long()
    model = Tagger()

    def loss(model: nn.Module, words: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            out = model(words)
        total = F.cross_entropy(out.float().flatten(0, 1), y.flatten(), reduction="sum")
        return total / 2_000_000

    run = Training(model, feed(32, words, y), loss, adam(model, 3e-3), steps=100)
    if scale:
        run.step = scaled_step(scale)
    return run


class Walk(nn.Module):
    """Steps seen one by one, summed, and layers on the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.each = plain_mlp(3, 48, 32, act=nn.ELU)
        self.both = plain_mlp(32, 48, 2, act=nn.ELU)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.each(x).mean(1))


def walk(scale: float | None) -> Training:
    """Where does a walk end? In millimetres; the error is told in square metres."""
    torch.manual_seed(44)
    x = torch.randn(1500, 6, 3)
    y = torch.stack([x[..., 0].sum(1), (x[..., 1] * x[..., 2].sign()).sum(1)], -1)
    model = Walk()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            out = model(x)
        return 1e-6 * F.mse_loss(out.float(), y)

    run = Training(model, feed(64, x, y), loss, adam(model, 5e-3), steps=150)
    if scale:
        run.step = scaled_step(scale)
    return run


def halves(make: Callable[..., Training], scale: float) -> dict[str, Any]:
    """The run with a scaler, and the one without."""
    return {
        "healthy": partial(make, scale),
        "broken": partial(make, None),
        "symptom": flushed(partial(make, None)),
    }


SMALL = Fault(
    "ind3-too-small",
    must=[["underflow"]],
    variants=[  # what is flushed to 0 on the way down has vanished for what comes below
        Variant("weights-of-rows", **halves(weighted, 2.0**20), may=("vanishing-gradient",)),
        Variant("outline", **halves(outline, 65536.0), may=("vanishing-gradient",)),
        Variant(
            "all-tokens",
            **halves(tagger, 2.0**24),
            may=("diffuse-softmax",),  # the second layer's attention stays uniform for want of it
        ),
        Variant("square-metres", **halves(walk, 2.0**22), may=("vanishing-gradient", "no-update")),
    ],
)

FAULTS = [RAW, INFINITE, SMALL]
