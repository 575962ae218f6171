"""Faults of data and precision: numbers that are not finite, inputs in raw units, float16."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Healthy, Variant
from analyses.faults.independent.kit_fifth_units import (
    centred,
    digits,
    image,
    of,
    seeded,
    train,
)
from analyses.faults.symptoms import not_finite
from analyses.faults.training import Training

SPLITS = ("test",)


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

FAULTS = [NON_FINITE]
THEMES: list[Healthy] = []
