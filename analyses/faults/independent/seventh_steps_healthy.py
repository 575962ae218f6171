"""Runs that look odd in their units, data or steps, and are well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_seventh_units import (
    digit_images,
    digits,
    sampler,
    shapes,
    table,
    waves,
)
from analyses.faults.training import Training


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the classes."""
    return F.cross_entropy(model(x), y)


def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over all outputs."""
    return F.mse_loss(model(x), y)


def fast_with_norms() -> Training:
    """A CNN with batch norm that bears a rate of 0.3."""
    torch.manual_seed(71)
    layers: list[nn.Module] = []
    for a, b in ((1, 12), (12, 16), (16, 24)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    return Training(net, sampler(32, *shapes(400, 12, 2)), cross_entropy, optimizer, steps=150)


def half_forward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Layers in float16, the loss in float32."""
    with torch.autocast("cpu", dtype=torch.float16):
        out = model(x)
    return F.cross_entropy(out.float(), y)


def scaled_half() -> Training:
    """Float16 with a scaler."""
    torch.manual_seed(72)
    net = nn.Sequential(
        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)

    def step(training: Training, number: int) -> dict[str, Any]:
        loss = training.loss_at(number)
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), "scale": scaler.get_scale()}

    return Training(net, sampler(64, *digits()), half_forward, optimizer, steps=250, step=step)


class Patches(nn.Module):
    """A small ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 32, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).flatten(2).mT + self.place
        return self.head(self.body(h).mean(1))


def brain_forward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Layers in bfloat16, the loss in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    return F.cross_entropy(out.float(), y)


def bfloat_vit() -> Training:
    """Digits in bfloat16, which needs no scaler; warmed up and cooled down."""
    torch.manual_seed(73)
    net = Patches()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=221)
    batch = sampler(48, *digit_images())
    return Training(net, batch, brain_forward, optimizer, steps=220, schedule=schedule)


def accumulate(training: Training, step: int) -> dict[str, Any]:
    """Steps with the mean over four small batches."""
    total = 0.0
    for part in range(4):
        loss = training.loss_at(4 * step + part) / 4
        loss.backward()
        total += loss.item()
    training.optimizer.step()
    training.optimizer.zero_grad()
    return {"loss": total}


def accumulated() -> Training:
    """A GELU regression whose batches come in quarters."""
    torch.manual_seed(74)
    net = nn.Sequential(
        nn.Linear(9, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(),
        nn.Linear(64, 1),
    )  # fmt: skip
    x, y = table(2000, 9, 12)
    optimizer = torch.optim.NAdam(net.parameters(), lr=3e-3)
    return Training(
        net, sampler(16, x, y[:, None]), squared_error, optimizer, steps=200, step=accumulate
    )


class Windowed(nn.Module):
    """Convolutions over time, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 16, 5, padding=2)
        self.rnn = nn.GRU(16, 24, batch_first=True)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.elu(self.conv(x.mT)).mT
        return self.out(self.rnn(h)[0].mean(1))


def restarts() -> Training:
    """A rate that falls as a cosine and is set up again several times."""
    torch.manual_seed(75)
    net = Windowed()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 60, eta_min=1e-4)
    batch = sampler(48, *waves(600, 24, 13))
    return Training(net, batch, cross_entropy, optimizer, steps=240, schedule=schedule)


def one_at_a_time() -> Training:
    """Digits, one per step."""
    torch.manual_seed(76)
    net = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    return Training(net, sampler(1, *digits()), cross_entropy, optimizer, steps=1000, every=20)


def whole_table() -> Training:
    """All rows in every step, by Adagrad."""
    torch.manual_seed(77)
    x, y = table(600, 6, 14)
    net = nn.Sequential(nn.Linear(6, 40), nn.Softplus(), nn.Linear(40, 40), nn.Softplus(),
                        nn.Linear(40, 1))  # fmt: skip
    optimizer = torch.optim.Adagrad(net.parameters(), lr=0.05)
    rows = (x, y[:, None])
    return Training(net, lambda step: rows, squared_error, optimizer, steps=300)


class TightAutoencoder(nn.Module):
    """A tanh code between two layers on each side."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Linear(64, 48), nn.ELU(), nn.Linear(48, 12))
        self.up = nn.Sequential(nn.Linear(12, 48), nn.ELU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.tanh(self.down(x)))


def rebuild(model: nn.Module, x: Tensor) -> Tensor:
    """Squared error per picture."""
    return (model(x) - x).square().sum(1).mean()


def always_clipped() -> Training:
    """Every step's gradient is clipped to 1, and the rate is fit for it."""
    torch.manual_seed(78)
    net = TightAutoencoder()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    return Training(net, sampler(64, digits()[0]), rebuild, optimizer, steps=300, clip=1.0)


def normalised_inside() -> Training:
    """Raw columns, with a batch norm as the first layer."""
    torch.manual_seed(79)
    x, y = table(2000, 6, 15)
    x = x * torch.tensor([1.0, 900.0, 30.0, 1e4, 0.05, 12.0]) + torch.tensor(
        [0.0, 4000.0, 50.0, 6e4, 0.2, 40.0]
    )
    net = nn.Sequential(
        nn.BatchNorm1d(6), nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(),
        nn.Linear(48, 1),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    return Training(net, sampler(96, x, y[:, None]), squared_error, optimizer, steps=300)


class Bags(nn.Module):
    """Mean embeddings of words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(200, 24, mode="mean")
        self.hidden = nn.Linear(24, 32)
        self.out = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(F.dropout(self.hidden(self.words(x)), 0.3, self.training)))


def bags() -> Training:
    """Topics of short texts, with different rates for embeddings and the rest."""
    torch.manual_seed(80)
    g = torch.Generator().manual_seed(16)
    y = torch.randint(5, (1500,), generator=g)
    own = torch.randint(40, (1500, 12), generator=g) * 5 + y[:, None]
    any_word = torch.randint(200, (1500, 12), generator=g)
    x = torch.where(torch.rand(1500, 12, generator=g) < 0.5, own, any_word)
    net = Bags()
    groups = [
        {"params": net.words.parameters(), "lr": 2e-2},
        {"params": [*net.hidden.parameters(), *net.out.parameters()], "lr": 2e-3},
    ]
    return Training(net, sampler(64, x, y), cross_entropy, torch.optim.Adam(groups), steps=300)


class Squeezed(nn.Module):
    """A CNN whose channels are weighed by sigmoids."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.squeeze = nn.Linear(16, 4)
        self.excite = nn.Linear(4, 16)
        self.out = nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.second(F.leaky_relu(self.first(x))))
        weight = torch.sigmoid(self.excite(F.leaky_relu(self.squeeze(h.mean((2, 3))))))
        return self.out(F.avg_pool2d(h * weight[..., None, None], 2).flatten(1))


def squeezed() -> Training:
    """Digits by a CNN with gates, under RMSprop."""
    torch.manual_seed(81)
    net = Squeezed()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3, momentum=0.5)
    return Training(net, sampler(48, *digit_images()), cross_entropy, optimizer, steps=200)


STEPS = Healthy(
    "ind7-odd-steps",
    {
        "rate-of-0.3-with-batch-norm": fast_with_norms,
        "float16-with-scaler": scaled_half,
        "bfloat16-vit-one-cycle": bfloat_vit,
        "four-batches-a-step": accumulated,
        "cosine-with-restarts": restarts,
        "one-example-a-step": one_at_a_time,
        "all-rows-adagrad": whole_table,
        "always-clipped": always_clipped,
    },
)

DATA = Healthy(
    "ind7-odd-data",
    {
        "raw-columns-into-batch-norm": normalised_inside,
        "bags-of-words-two-rates": bags,
        "gated-channels": squeezed,
    },
    # The inputs are as raw as can be; the first layer puts that right.
    may={"raw-columns-into-batch-norm": ["unscaled-input"]},
)

THEMES = [STEPS, DATA]
