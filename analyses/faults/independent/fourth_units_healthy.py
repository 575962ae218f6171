"""Sound runs: sparse rectifiers, squashing units that learn, tame inputs, low precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_fourth_units import (
    clouds,
    cross_entropy,
    digits,
    drawn,
    phrases,
    scaled_step,
    seeded,
    squares,
    table,
    waves,
)
from analyses.faults.training import Training

F = nn.functional


def rectified_net() -> Training:
    """A small VGG of rectifiers and batch norms."""
    torch.manual_seed(61)
    x, y = digits()
    x = ((x - x.mean()) / x.std()).view(-1, 1, 8, 8)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 24), (24, 24)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(384, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)
    return Training(model, drawn(x, y), cross_entropy, optimizer, steps=120)


def rectified_table() -> Training:
    """Regression on a table by an MLP of rectifiers with dropout."""
    torch.manual_seed(62)
    x, y = table(3000, 14, seed=62)
    model = nn.Sequential(
        nn.Linear(14, 80), nn.ReLU(), nn.Dropout(0.1), nn.Linear(80, 40), nn.ReLU(),
        nn.Linear(40, 1),
    )  # fmt: skip
    return Training(
        model, drawn(x, y, size=128), squares, torch.optim.Adam(model.parameters(), 3e-3), steps=250
    )


def tanh_surrogate() -> Training:
    """A smooth function on a square, by tanh and momentum."""
    torch.manual_seed(63)
    x = 2 * torch.rand(2000, 2, generator=seeded(63)) - 1
    y = torch.sin(3 * x[:, 0]) * torch.cos(2 * x[:, 1]) + x[:, 0] * x[:, 1]
    model = nn.Sequential(
        nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
    )
    return Training(
        model, drawn(x, y), squares, torch.optim.Adam(model.parameters(), 3e-3), steps=300, every=10
    )


class _Gates(nn.Module):
    """Gated linear units in residual blocks: the sigmoids choose, and stay open enough."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.inward = nn.Linear(inputs, width)
        self.gated = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        for norm, gated in zip(self.norms, self.gated, strict=True):
            value, gate = gated(norm(x)).chunk(2, -1)
            x = x + value * torch.sigmoid(gate)
        return self.head(x)


def gated_net() -> Training:
    """Digits, standardised by pixel, by gated linear units."""
    torch.manual_seed(64)
    x, y = digits()
    x = (x - x.mean(0)) / (x.std(0) + 0.1)
    model = _Gates(64, 40, 10)
    return Training(
        model, drawn(x, y), cross_entropy, torch.optim.AdamW(model.parameters(), 2e-3), steps=150
    )


def one_hot() -> Training:
    """Six categories as one-hot columns, with a target of main effects and a few pairs."""
    torch.manual_seed(65)
    g = seeded(65)
    sizes = (4, 7, 12, 3, 9, 5)
    chosen = [torch.randint(n, (2500,), generator=g) for n in sizes]
    x = torch.cat([F.one_hot(c, n) for c, n in zip(chosen, sizes, strict=True)], 1).float()
    effects = torch.randn(40, generator=g)
    y = x @ effects + torch.randn(4, 7, generator=g)[chosen[0], chosen[1]]
    y = (y - y.mean()) / y.std()
    model = nn.Sequential(nn.Linear(40, 64), nn.ELU(), nn.Linear(64, 1))
    return Training(
        model,
        drawn(x, y, size=64),
        squares,
        torch.optim.Adagrad(model.parameters(), 0.02),
        steps=250,
    )


def word_counts() -> Training:
    """Topics of texts, from the logarithms of words' counts."""
    torch.manual_seed(66)
    g = seeded(66)
    topics = torch.softmax(1.5 * torch.randn(8, 120, generator=g), 1)
    y = torch.randint(8, (2000,), generator=g)
    counts = torch.poisson(60 * (0.5 * topics[y] + 0.5 / 120), generator=g)
    model = nn.Sequential(nn.Linear(120, 48), nn.GELU(), nn.Linear(48, 8))
    return Training(
        model,
        drawn(torch.log1p(counts), y),
        cross_entropy,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=200,
    )


def bright_images() -> Training:
    """Bars on images from 0 to 1, not centred, as most loaders give them."""
    torch.manual_seed(67)
    g = seeded(67)
    y = torch.randint(4, (1200,), generator=g)
    line = torch.arange(16)
    at = torch.randint(3, 13, (1200, 1, 1), generator=g)
    rows, columns = line[:, None] - at, line - at
    shapes = torch.stack(
        [
            (rows.abs() < 2).expand(-1, 16, 16),
            (columns.abs() < 2).expand(-1, 16, 16),
            (rows + columns).abs() < 2,
            (rows - columns).abs() < 2,
        ]
    )[y, torch.arange(1200)]
    x = (0.2 + 0.5 * shapes + 0.1 * torch.randn(1200, 16, 16, generator=g)).clamp(0, 1)[:, None]
    model = nn.Sequential(
        nn.Conv2d(1, 12, 5, stride=2),
        nn.LeakyReLU(0.1),
        nn.Conv2d(12, 24, 3),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(384, 4),
    )
    return Training(
        model,
        drawn(x, y, size=32),
        cross_entropy,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=200,
    )


class _Tagger(nn.Module):
    """Embedded words, read in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 24)
        self.gru = nn.GRU(24, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 30)

    def forward(self, said: Tensor) -> Tensor:
        return self.head(self.gru(self.words(said))[0]).transpose(1, 2)


def tagger() -> Training:
    """Each word is tagged by the one before it."""
    torch.manual_seed(68)
    said = phrases(1200, 14, 30, seed=68)
    tags = torch.randperm(30, generator=seeded(69))[said.roll(1, 1)]
    tags[:, 0] = 0
    model = _Tagger()
    return Training(
        model,
        drawn(said, tags, size=32),
        cross_entropy,
        torch.optim.Adam(model.parameters(), 5e-3),
        steps=200,
    )


def with_autocast(dtype: torch.dtype, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The model runs in low precision; the loss is taken in float32."""

    def lowered(model: nn.Module, *batch: Tensor) -> Tensor:
        def low(*given: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                return model(*given).float()

        return loss(low, *batch)

    return lowered


class _Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(x)).mean(1))


def brain_float() -> Training:
    """A vision transformer on digits under bfloat16 autocast, without a scaler: none is needed."""
    torch.manual_seed(70)
    x, y = digits()
    x = ((x - 0.5) / 0.5).view(-1, 1, 8, 8)
    model = _Patches()
    return Training(
        model,
        drawn(x, y, size=32),
        with_autocast(torch.bfloat16, cross_entropy),
        torch.optim.AdamW(model.parameters(), 2e-3),
        steps=150,
    )


def half_scaled() -> Training:
    """Waves told apart in float16, with a scaler."""
    torch.manual_seed(71)
    x, y = waves(1500, 64, 5, seed=71)
    model = nn.Sequential(
        nn.Conv1d(1, 16, 9, stride=2),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv1d(16, 32, 5, stride=2),
        nn.SiLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    plain = with_autocast(torch.float16, cross_entropy)

    def loss(*given: Tensor) -> Tensor:
        return 2.0**12 * plain(*given)  # what is propagated back

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    return Training(
        model,
        drawn(x, y, size=48),
        loss,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=200,
        step=scaled_step(scaler, plain),
    )


class _Squeeze(nn.Module):
    """An autoencoder whose code is narrow on purpose: the data have as many directions."""

    def __init__(self, wide: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(wide, 64), nn.SiLU(), nn.Linear(64, code))
        self.decoder = nn.Sequential(nn.Linear(code, 64), nn.SiLU(), nn.Linear(64, wide))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def narrow_code() -> Training:
    """Forty readings that three hidden causes explain, through a code of three numbers."""
    torch.manual_seed(72)
    g = seeded(72)
    causes = torch.randn(2000, 3, generator=g)
    x = torch.tanh(causes @ torch.randn(3, 40, generator=g) * 0.7)
    x = x + 0.05 * torch.randn(2000, 40, generator=g)
    x = (x - x.mean(0)) / x.std(0)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    model = _Squeeze(40, 3)
    return Training(model, drawn(x), loss, torch.optim.Adam(model.parameters(), 3e-3), steps=250)


class _Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(64, 96)
        self.mean, self.spread = nn.Linear(96, 8), nn.Linear(96, 8)
        self.outward = nn.Sequential(nn.Linear(8, 96), nn.Softplus(), nn.Linear(96, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.softplus(self.inward(x))
        mean, spread = self.mean(h), self.spread(h)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * spread)
        return self.outward(code), mean, spread


def variational() -> Training:
    """A variational autoencoder of digits from 0 to 1."""
    torch.manual_seed(73)
    x, _ = digits()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        again, mean, spread = model(x)
        misfit = F.binary_cross_entropy_with_logits(again, x, reduction="none").sum(1)
        excess = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1)
        return (misfit + excess).mean()

    model = _Variational()
    return Training(model, drawn(x), loss, torch.optim.Adam(model.parameters(), 2e-3), steps=200)


class _Mixed(nn.Module):
    """Embedded categories beside standardised numbers, as in most tables of a company."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(nn.Embedding(n, 6) for n in (12, 30, 5))
        self.body = nn.Sequential(
            nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
        )
        self.head = nn.Linear(32, 1)

    def forward(self, kinds: Tensor, numbers: Tensor) -> Tensor:
        known = [embed(kinds[:, i]) for i, embed in enumerate(self.kinds)]
        return self.head(self.body(torch.cat([*known, numbers], 1))).squeeze(1)


def company_table() -> Training:
    """Who will leave: three categories, five logarithmic or plain numbers, standardised."""
    torch.manual_seed(74)
    g = seeded(74)
    kinds = torch.stack([torch.randint(n, (3000,), generator=g) for n in (12, 30, 5)], 1)
    income = torch.exp(10 + 0.7 * torch.randn(3000, 1, generator=g))
    others = 5 + 3 * torch.randn(3000, 5, generator=g)
    numbers = torch.cat([torch.log(income), others], 1)
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    weights = [torch.randn(n, generator=g) for n in (12, 30, 5)]
    score = sum(w[kinds[:, i]] for i, w in enumerate(weights))
    y = (score + numbers[:, 0] * numbers[:, 1] + numbers[:, 2] > 0).float()

    def loss(model: nn.Module, kinds: Tensor, numbers: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(kinds, numbers), y)

    model = _Mixed()
    return Training(
        model,
        drawn(kinds, numbers, y, size=128),
        loss,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=250,
    )


class _Heard(nn.Module):
    """Frames of a wave, their spectrum's logarithm, and a recurrence written with cells."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(17)
        self.cell = nn.LSTMCell(17, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.squeeze(1).unfold(1, 32, 16)
        loud = torch.log(torch.fft.rfft(frames * torch.hann_window(32)).abs() + 1e-2)
        h = c = x.new_zeros(len(x), 32)
        heard = []
        for now in self.norm(loud).unbind(1):
            h, c = self.cell(now, (h, c))
            heard.append(h)
        return self.head(torch.stack(heard, 1).mean(1))


def heard() -> Training:
    """Tones told apart by the logarithm of a short spectrum."""
    torch.manual_seed(75)
    x, y = waves(1200, 160, 5, seed=75, noise=0.5)
    model = _Heard()
    return Training(
        model,
        drawn(x, y, size=32),
        cross_entropy,
        torch.optim.RMSprop(model.parameters(), 2e-3),
        steps=150,
    )


class _Rates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(9, 48), nn.Softplus(), nn.Linear(48, 48), nn.Softplus())
        self.rate = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.rate(self.body(x)).squeeze(1)


def event_counts() -> Training:
    """Poisson regression of counts on standardised columns."""
    torch.manual_seed(76)
    x, score = table(2500, 9, seed=76)
    y = torch.poisson(torch.exp(0.7 * score + 0.5), generator=seeded(77))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.poisson_nll_loss(model(x), y, full=True)

    model = _Rates()
    return Training(
        model,
        drawn(x, y, size=128),
        loss,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=250,
    )


class _Tower(nn.Module):
    """People and things by embeddings, rectified once, and scored by a product."""

    def __init__(self) -> None:
        super().__init__()
        self.people, self.things = nn.Embedding(120, 16), nn.Embedding(80, 16)
        self.person = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))
        self.thing = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))

    def forward(self, people: Tensor, things: Tensor) -> Tensor:
        a, b = self.person(self.people(people)), self.thing(self.things(things))
        return (a * b).sum(1) / math.sqrt(12)


def ratings() -> Training:
    """Ratings of things by people, centred, by two towers."""
    torch.manual_seed(78)
    g = seeded(78)
    people = torch.randint(120, (5000,), generator=g)
    things = torch.randint(80, (5000,), generator=g)
    a, b = torch.randn(120, 4, generator=g), torch.randn(80, 4, generator=g)
    y = (a[people] * b[things]).sum(1) / 2 + 0.1 * torch.randn(5000, generator=g)

    def loss(model: nn.Module, people: Tensor, things: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(people, things), y)

    model = _Tower()
    return Training(
        model,
        drawn(people, things, y, size=256),
        loss,
        torch.optim.Adam(model.parameters(), 1e-2),
        steps=300,
        every=10,
    )


def points_lowered(dtype: torch.dtype = torch.bfloat16) -> Training:
    """Shapes by their points, max-pooled, under bfloat16 autocast."""
    torch.manual_seed(79)
    x, y = clouds(1000, 28, seed=79)
    model = _Shape()
    return Training(
        model,
        drawn(x, y, size=32),
        with_autocast(dtype, cross_entropy),
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=200,
    )


class _Shape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 48))
        self.whole = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 4))

    def forward(self, points: Tensor) -> Tensor:
        return self.whole(self.each(points).amax(1))


UNITS = Healthy(
    "ind4-units-healthy",
    runs={
        "rectified-net": rectified_net,
        "rectified-table": rectified_table,
        "tanh-surrogate": tanh_surrogate,
        "gated-net": gated_net,
        "ratings": ratings,
        "narrow-code": narrow_code,
        "variational": variational,
    },
)

DATA = Healthy(
    "ind4-data-healthy",
    runs={
        "one-hot": one_hot,
        "word-counts": word_counts,
        "bright-images": bright_images,
        "tagger": tagger,
        "company-table": company_table,
        "heard": heard,
        "event-counts": event_counts,
    },
)

PRECISION = Healthy(
    "ind4-precision-healthy",
    runs={
        "brain-float": brain_float,
        "half-scaled": half_scaled,
        "points-lowered": partial(points_lowered, torch.bfloat16),
    },
)

THEMES = [UNITS, DATA, PRECISION]
