"""Faults of data and precision: numbers that are not finite, inputs in raw units, float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Healthy, Variant
from analyses.faults.independent.kit_fifth_units import (
    centred,
    classify,
    digits,
    image,
    of,
    regress,
    seeded,
    train,
    worse,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import learns_less, not_finite
from analyses.faults.training import Training

# Numbers that are not finite.


def _own_loss(by_hand: bool) -> Training:
    """A cross-entropy written by hand, of cosines whose scale is raised in stages."""
    torch.manual_seed(71)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 10))
    draw = of(*digits(), like=centred)

    def batch(step: int) -> tuple[Tensor, ...]:
        return (*draw(step), torch.tensor(10.0 + 13 * (step // 20)))

    def loss(model: nn.Module, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        wanted = F.one_hot(y, 10).float()
        logits = scale * F.normalize(model(x), dim=-1)
        if by_hand:
            shares = torch.exp(logits)
            shares = shares / shares.sum(-1, keepdim=True)
            return -(wanted * torch.log(shares + 1e-12)).sum(-1).mean()
        return -(wanted * logits.log_softmax(-1)).sum(-1).mean()

    return train(model, batch, loss, lr=2e-3, steps=160)


def _own_loss_sound() -> Training:
    return _own_loss(False)


def _own_loss_broken() -> Training:
    return _own_loss(True)


class Embeds(nn.Module):
    """Images to points by a small convolutional net."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 16)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Points of 16 coordinates."""
        return self.body(x)


def _pairs(inside: float) -> Training:
    """Siamese: the distance of pairs of digits is to tell whether they are the same digit."""
    torch.manual_seed(72)
    images, labels = digits()

    def batch(step: int) -> tuple[Tensor, ...]:
        g = seeded(step)
        a = torch.randint(len(images), (64,), generator=g)
        b = (a + torch.randint(1, len(images), (64,), generator=g)) % len(images)
        if step >= 125 and step % 25 == 0:
            b[0] = a[0]  # a pair of an image with itself
        return image(images[a]), image(images[b]), (labels[a] == labels[b]).float()

    def loss(model: nn.Module, a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
        distance = torch.sqrt((model(a) - model(b)).square().sum(-1) + inside)
        return (alike * distance + (1 - alike) * (2 - distance).clamp(min=0)).mean()

    return train(Embeds(), batch, loss, lr=1e-3, steps=160)


def _pairs_sound() -> Training:
    return _pairs(1e-6)


def _pairs_broken() -> Training:
    return _pairs(0.0)


class Averages(nn.Module):
    """Embeds tokens, averages those there are, and classifies."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least
        self.tokens = nn.Embedding(30, 24)
        self.mixes = nn.GRU(24, 32, batch_first=True)
        self.answers = nn.Linear(32, 3)

    def forward(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Answers from (batch, time) tokens; `there` is 1 where a text has one."""
        h, _ = self.mixes(self.tokens(tokens))
        mean = (h * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=self.least)
        return self.answers(mean)


def _texts(least: float) -> Training:
    """Texts of some tokens: which third of the alphabet is the most frequent? Some are empty."""
    torch.manual_seed(73)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = seeded(step)
        kind = torch.randint(3, (48,), generator=g)
        other = torch.randint(30, (48, 10), generator=g)
        own = kind[:, None] * 10 + torch.randint(10, (48, 10), generator=g)
        tokens = torch.where(torch.rand(48, 10, generator=g) < 0.5, own, other)
        length = torch.randint(2, 11, (48,), generator=g)
        if step >= 140 and step % 20 == 0:
            length[5] = 0
        return tokens, (torch.arange(10) < length[:, None]).float(), kind

    def loss(model: nn.Module, tokens: Tensor, there: Tensor, kind: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens, there), kind)

    return train(Averages(least), batch, loss, lr=4e-3, steps=180)


def _texts_sound() -> Training:
    return _texts(1.0)


def _texts_broken() -> Training:
    return _texts(0.0)


class Counts(nn.Module):
    """Rates of counts as the exponential of what an MLP says."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest
        self.body = nn.Sequential(
            nn.Linear(5, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The rate of each row."""
        return torch.exp(self.body(x).squeeze(-1).clamp(max=self.largest))


def _counts(largest: float) -> Training:
    """Poisson regression; from a step on, a few rows come in units a thousand times smaller."""
    torch.manual_seed(74)
    slopes = torch.tensor([0.5, -0.4, 0.3, 0.6, 0.2])

    def batch(step: int) -> tuple[Tensor, ...]:
        g = seeded(step)
        x = torch.randn(64, 5, generator=g)
        rate = torch.exp(x @ slopes)
        y = torch.poisson(rate, generator=g)
        if largest > 20 and step == 90:
            x[:3] *= 1000
        return x, y

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        rate = model(x)
        return (rate - y * torch.log(rate + 1e-8)).mean()

    return train(Counts(largest), batch, loss, lr=3e-3, steps=180)


def _counts_sound() -> Training:
    return _counts(8.0)


def _counts_broken() -> Training:
    return _counts(1e9)


class Reads(nn.Module):
    """Attends from one learned question to the entries that a mask leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = nn.Parameter(torch.randn(20))
        self.keys, self.values = nn.Linear(6, 20), nn.Linear(6, 20)
        self.answers = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """An answer from (batch, entries, 6)."""
        logits = (self.keys(x) @ self.ask) / 20**0.5
        weights = torch.softmax(logits.masked_fill(hidden, -torch.inf), -1)
        return self.answers((weights[..., None] * self.values(x)).sum(1))


def _sets(empty: bool) -> Training:
    """Mean of a coordinate over the entries that aren't hidden; some sets hide all of them."""
    torch.manual_seed(75)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = seeded(step)
        x = torch.randn(64, 7, 6, generator=g)
        hidden = torch.rand(64, 7, generator=g) < 0.4
        hidden[:, 0] = False
        there = (~hidden).float()
        y = (x[..., 0] * there).sum(1) / there.sum(1)
        if empty and step in (85, 120):
            hidden[11] = True
        return x, hidden, y

    def loss(model: nn.Module, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x, hidden).squeeze(-1), y)

    return train(Reads(), batch, loss, torch.optim.AdamW, lr=4e-3, steps=160)


def _sets_sound() -> Training:
    return _sets(False)


def _sets_broken() -> Training:
    return _sets(True)


NON_FINITE = Fault(
    "ind5-non-finite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant("exp-of-logits", _own_loss_sound, broken=_own_loss_broken, operation=["exp"]),
        Variant("distance-zero", _pairs_sound, broken=_pairs_broken, operation=["sqrt"]),
        Variant("mean-of-none", _texts_sound, broken=_texts_broken, operation=["div"]),
        # The rows that overflow are themselves in wrong units.
        Variant(
            "rate-overflow",
            _counts_sound,
            broken=_counts_broken,
            operation=["exp"],
            may=["unscaled-input"],
        ),
        Variant("all-hidden", _sets_sound, broken=_sets_broken, operation=["softmax", "_softmax"]),
    ],
)

# Inputs in raw units.


def _houses(raw: bool) -> Training:
    """Prices of houses from area, year, distance in metres and rooms; standardised or as they are.

    Args:
        raw: leave the columns in their units.
    """
    torch.manual_seed(81)
    mean, width = torch.tensor([9e3, 1985.0, 4e4, 4.0]), torch.tensor([3e3, 20.0, 1.5e4, 1.2])
    slopes = torch.tensor([0.6, 0.4, -0.5, 0.7])
    model = nn.Sequential(
        nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
    )

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randn(64, 4, generator=seeded(step))
        y = x @ slopes + 0.4 * x[:, 0] * x[:, 3]
        return (x * width + mean if raw else x), y

    return train(model, batch, regress, lr=2e-3, steps=200)


def _houses_sound() -> Training:
    return _houses(False)


def _houses_raw() -> Training:
    return _houses(True)


class Forecasts(nn.Module):
    """The next value of a series, by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = nn.LSTM(2, 32, batch_first=True)
        self.answers = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The value after the last."""
        return self.answers(self.reads(x)[0][:, -1])


def _weather(raw: bool) -> Training:
    """Temperature and pressure by the hour, in Kelvin and hectopascal or standardised."""
    torch.manual_seed(83)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = seeded(step)
        phase, speed = 6.3 * torch.rand(48, 1, generator=g), 0.3 + torch.rand(48, 1, generator=g)
        waves = torch.sin(phase + speed * torch.arange(13))
        pressure = 0.5 * torch.randn(48, 13, generator=g) + torch.cos(phase)
        x = torch.stack([waves, pressure], -1)[:, :-1]
        if raw:
            x = x * torch.tensor([8.0, 10.0]) + torch.tensor([288.0, 1013.0])
        return x, waves[:, -1]

    return train(Forecasts(), batch, regress, lr=5e-3, steps=200)


def _weather_sound() -> Training:
    return _weather(False)


def _weather_raw() -> Training:
    return _weather(True)


class Mixes(nn.Module):
    """Residual blocks of GELU over sensors' readings."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 48)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48)) for _ in range(3)
        )
        self.answers = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.answers(h)


def _sensors(raw: bool) -> Training:
    """Which of four patterns do sixteen sensors show? In millivolts, or in volts."""
    torch.manual_seed(84)
    patterns = torch.randn(4, 16)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = seeded(step)
        y = torch.randint(4, (64,), generator=g)
        x = patterns[y] + 1.2 * torch.randn(64, 16, generator=g)
        return (1000 * x if raw else x), y

    return train(Mixes(), batch, classify, torch.optim.AdamW, lr=1e-3, steps=160)


def _sensors_sound() -> Training:
    return _sensors(False)


def _sensors_raw() -> Training:
    return _sensors(True)


UNSCALED = Fault(
    "ind5-unscaled-input",
    must=[["unscaled-input"]],
    symptom=learns_less(0.1),
    variants=[
        Variant("houses", _houses_sound, broken=_houses_raw),
        # Sums of gates of a hundred: the cells are at their ends and pass nothing back.
        Variant(
            "weather",
            _weather_sound,
            broken=_weather_raw,
            may=["saturated-activation", "vanishing-gradient"],
        ),
        Variant("sensors", _sensors_sound, broken=_sensors_raw),
    ],
)


# float16.


def _half(loss: Any, kind: torch.dtype | None, weight: float = 1.0) -> Any:
    """A loss computed under autocast, and weighted."""

    def under(model: nn.Module, *batch: Tensor) -> Tensor:
        if kind is None:
            return weight * loss(model, *batch)
        with torch.autocast("cpu", dtype=kind):
            return weight * loss(model, *batch).float()

    return under


def _scaled(start: float = 2.0**16) -> Any:
    """The loop with a scaler of gradients."""
    scaler = torch.amp.GradScaler("cpu", init_scale=start)

    def step(training: Training, step: int) -> dict[str, Any]:
        loss = training.loss_at(step)
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
        return {"loss": loss.detach()}

    return step


def _reconstructs(model: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(model(x).float(), x)


def _images(kind: torch.dtype | None) -> Training:
    """A convolutional autoencoder; its loss is one of several terms and weighs 2e-5."""
    torch.manual_seed(91)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(12, 8, 3, padding=1),
        nn.GELU(),
        nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
    )
    draw = of(*digits(), like=image)

    def batch(step: int) -> tuple[Tensor, ...]:
        return draw(step)[:1]

    return train(model, batch, _half(_reconstructs, kind, 2e-5), lr=2e-3, steps=120)


def _images_sound() -> Training:
    return _images(torch.bfloat16)


def _images_half() -> Training:
    return _images(torch.float16)


def _scaled_regression(scaled: bool) -> Training:
    """A physical quantity of about 1e-3 is to be regressed, in float16."""
    torch.manual_seed(92)
    slopes = torch.randn(10)
    model = nn.Sequential(
        nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randn(128, 10, generator=seeded(step))
        return x, torch.tanh(x @ slopes / 3)

    def squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(1e-3 * model(x).float().squeeze(-1), 1e-3 * y)

    loop = {"step": _scaled()} if scaled else {}
    return train(model, batch, _half(squares, torch.float16), lr=2e-3, steps=160, **loop)


def _regression_sound() -> Training:
    return _scaled_regression(True)


def _regression_half() -> Training:
    return _scaled_regression(False)


class Tags(nn.Module):
    """A tag for every token, from attention between the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 32)
        self.attends = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.answers = nn.Linear(32, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits by token."""
        return self.answers(self.attends(self.tokens(tokens)))


def _tags(kind: torch.dtype | None) -> Training:
    """A permutation of the alphabet, with a loss over 768 tokens that weighs 2e-5."""
    torch.manual_seed(93)
    table = torch.randperm(20)

    def batch(step: int) -> tuple[Tensor, ...]:
        tokens = torch.randint(20, (64, 12), generator=seeded(step))
        return tokens, table[tokens]

    def loss(model: nn.Module, tokens: Tensor, tags: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).float().flatten(0, 1), tags.flatten())

    return train(Tags(), batch, _half(loss, kind, 2e-5), lr=3e-3, steps=100)


def _tags_sound() -> Training:
    return _tags(None)


def _tags_half() -> Training:
    return _tags(torch.float16)


def _flushed(run: Observed, twin: Observed | None) -> dict[str, Any]:
    """At every step looked at most of the gradient is exactly 0, and the run learns less."""
    found = min(c.zero_share for c in run.checkpoints)
    less = learns_less(0.1)(run, twin)
    return {"is": found >= 0.6 and less["is"], "zero": found, **worse(run, twin)}


UNDERFLOW = Fault(
    "ind5-underflow",
    must=[["underflow"]],
    may=["vanishing-gradient", "no-update"],
    symptom=_flushed,
    variants=[
        Variant("images-weighted", _images_sound, broken=_images_half),
        Variant("regression-small-units", _regression_sound, broken=_regression_half),
        Variant("tags-weighted", _tags_sound, broken=_tags_half),
    ],
)


# Healthy runs.


def _pixels(like: Any = None, kind: torch.dtype | None = None, width: int = 16) -> Training:
    """A convolutional net on digits whose pixels are scaled in some usual way."""
    torch.manual_seed(101)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, width, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(width, 24, 3, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(384, 10),
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).float(), y)

    loop = {"step": _scaled(2.0**12)} if kind == torch.float16 else {}
    return train(
        model, of(*digits(), size=48, like=like), _half(loss, kind), lr=4e-3, steps=130, **loop
    )


def _from_0_to_1() -> Training:
    return _pixels()


def _scaled_half() -> Training:
    return _pixels(centred, torch.float16, 12)


def _shorter() -> Training:
    """bfloat16, an MLP with layer normalisation, AdamW."""
    torch.manual_seed(102)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 96), nn.LayerNorm(96),
        nn.GELU(), nn.Linear(96, 10),
    )  # fmt: skip

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).float(), y)

    draw = of(*digits(), like=lambda x: 2 * x - 1)
    return train(model, draw, _half(loss, torch.bfloat16), torch.optim.AdamW, lr=2e-3, steps=130)


def _bags() -> Training:
    """Counts of words, as logarithms: most are 0, and none is negative."""
    torch.manual_seed(103)
    rates = torch.rand(5, 80) ** 6 * 4
    model = nn.Sequential(nn.Linear(80, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 5))

    def batch(step: int) -> tuple[Tensor, ...]:
        g = seeded(step)
        y = torch.randint(5, (64,), generator=g)
        return torch.log1p(torch.poisson(rates[y] * 0.4, generator=g)), y

    return train(model, batch, classify, torch.optim.Adagrad, lr=0.03, steps=160)


def _mixed_columns() -> Training:
    """Standardised columns beside flags of 0 and 1; a regression with a heavy-tailed target."""
    torch.manual_seed(104)
    slopes = torch.randn(14) / 2
    model = nn.Sequential(nn.Linear(14, 64), nn.Softplus(), nn.Linear(64, 32), nn.Softplus(),
                          nn.Linear(32, 1))  # fmt: skip

    def batch(step: int) -> tuple[Tensor, ...]:
        g = seeded(step)
        numbers = torch.randn(96, 8, generator=g)
        flags = (torch.rand(96, 6, generator=g) < 0.3).float()
        x = torch.cat([numbers, flags], 1)
        return x, torch.sinh(0.6 * x @ slopes)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(x).squeeze(-1), y)

    return train(model, batch, loss, lr=4e-3, steps=200)


HEALTHY = Healthy(
    "ind5-healthy-data",
    runs={
        "pixels-from-0-to-1": _from_0_to_1,
        "half-with-scaler": _scaled_half,
        "bfloat16-layernorm": _shorter,
        "bags-of-words": _bags,
        "flags-and-numbers": _mixed_columns,
    },
)

FAULTS = [NON_FINITE, UNSCALED, UNDERFLOW]
THEMES = [HEALTHY]
