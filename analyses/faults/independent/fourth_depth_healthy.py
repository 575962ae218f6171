"""Healthy runs: deep and recurrent nets, many optimizers, schedules, batch sizes and endings."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent import kit_fourth_depth as kit
from analyses.faults.training import Training

# Depth


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def warm_cosine(warm: int, steps: int, step: int) -> float:
    """Share of the rate: linear warm-up, then half a cosine."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def deep_residual() -> Training:
    """Twelve residual blocks, AdamW, warm-up and cosine, clipping."""
    torch.manual_seed(61)
    blocks = (Block(40, 80) for _ in range(12))
    model = nn.Sequential(nn.Linear(64, 40), *blocks, nn.LayerNorm(40), nn.Linear(40, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    return Training(
        model=model,
        batch=kit.digits(32),
        loss=kit.classify,
        optimizer=optimizer,
        steps=150,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_cosine, 20, 150)),
        clip=1.0,
    )


def self_normalising() -> Training:
    """Ten SELU layers with LeCun's initialisation, Nesterov momentum."""
    torch.manual_seed(62)
    layers: list[nn.Module] = []
    for a, b in zip([64] + [48] * 9, [48] * 10, strict=True):
        linear = nn.Linear(a, b)
        nn.init.normal_(linear.weight, std=a**-0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, nesterov=True)
    return Training(
        model=model,
        batch=kit.digits(64),
        loss=kit.classify,
        optimizer=optimizer,
        steps=200,
    )


class ResNet(nn.Module):
    """Residual convolutions with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1, bias=False),
                nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1, bias=False),
            )
            for _ in range(4)
        )  # fmt: skip
        self.head = nn.Linear(12 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(nn.functional.avg_pool2d(x, 2).flatten(1))
        return out


def one_cycle() -> Training:
    """A residual net with one cycle of rate and momentum."""
    torch.manual_seed(63)
    model = ResNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return Training(
        model=model,
        batch=kit.digits(48, image=True),
        loss=kit.classify,
        optimizer=optimizer,
        steps=120,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=121),
    )


class Speller(nn.Module):
    """A recurrence spells on."""

    def __init__(self, reader: nn.RNNBase) -> None:
        super().__init__()
        self.embed = nn.Embedding(14, reader.input_size)
        self.reader = reader
        self.head = nn.Linear(reader.hidden_size, 14)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.reader(self.embed(x))[0])
        return out


def stacked_gru() -> Training:
    """Two layers of GRU, Adam with a rate that is halved now and then."""
    torch.manual_seed(64)
    model = Speller(nn.GRU(20, 36, num_layers=2, batch_first=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(
        model=model,
        batch=kit.babble(16, 16),
        loss=kit.classify,
        optimizer=optimizer,
        steps=150,
        schedule=torch.optim.lr_scheduler.StepLR(optimizer, 40, 0.5),
    )


def clipped_lstm() -> Training:
    """A language model on an LSTM, gradient descent with momentum and clipping."""
    torch.manual_seed(65)
    model = Speller(nn.LSTM(20, 48, batch_first=True))
    return Training(
        model=model,
        batch=kit.babble(24, 18),
        loss=kit.classify,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
        steps=150,
        clip=0.5,
    )


DEEP = Healthy(
    "ind4-depth-healthy",
    runs={
        "residual-warm-up-cosine": deep_residual,
        "selu-nesterov": self_normalising,
        "resnet-one-cycle": one_cycle,
        "gru-step-decay": stacked_gru,
        "lstm-clipped": clipped_lstm,
    },
)


# Optimizers, batches


class Reader(nn.Module):
    """A transformer encoder over the rows of a digit."""

    def __init__(self, layers: int, norm_first: bool) -> None:
        super().__init__()
        self.read = nn.Linear(8, 32)
        self.place = nn.Parameter(0.3 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.read(x.view(-1, 8, 8)) + self.place).mean(1))
        return out


def averaged(parts: int, training: Training, step: int) -> dict[str, Any]:
    """Accumulate the mean gradient of several batches."""
    total = 0.0
    for part in range(parts):
        loss = training.loss_at(step * parts + part) / parts
        loss.backward()
        total += loss.item()
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.schedule is not None:
        training.schedule.step()
    return {"loss": torch.tensor(total)}


def accumulating() -> Training:
    """A post-norm transformer, four small batches per step, RAdam."""
    torch.manual_seed(66)
    model = Reader(2, norm_first=False)
    return Training(
        model=model,
        batch=kit.digits(8),
        loss=kit.classify,
        optimizer=torch.optim.RAdam(model.parameters(), lr=4e-3),
        steps=120,
        step=partial(averaged, 4),
    )


def one_by_one() -> Training:
    """Batches of a single sample, plain gradient descent with a small rate."""
    torch.manual_seed(67)
    model = nn.Sequential(
        nn.Linear(64, 48), nn.LayerNorm(48), nn.SiLU(), nn.Linear(48, 24), nn.SiLU(),
        nn.Linear(24, 10),
    )  # fmt: skip
    return Training(
        model=model,
        batch=kit.digits(1),
        loss=kit.classify,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        steps=600,
        every=10,
    )


def all_at_once() -> Training:
    """Large batches, SGD with a warm-up to a large rate."""
    torch.manual_seed(68)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    return Training(
        model=model,
        batch=kit.digits(1024),
        loss=kit.classify,
        optimizer=optimizer,
        steps=120,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_cosine, 15, 120)),
    )


class Wavy(nn.Module):
    """Convolutions with growing dilation and residual paths over waves."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Conv1d(1, 16, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv1d(16, 16, 3, padding=2**i, dilation=2**i) for i in range(4)
        )
        self.out = nn.Conv1d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x.unsqueeze(1))
        for layer in self.layers:
            x = x + nn.functional.silu(layer(x))
        out: Tensor = self.out(x).squeeze(1)
        return out


def dilated() -> Training:
    """A denoiser with Adadelta."""
    torch.manual_seed(69)
    model = Wavy()
    return Training(
        model=model,
        batch=kit.waves(24, 48),
        loss=kit.squared,
        optimizer=torch.optim.Adadelta(model.parameters(), lr=0.5),
        steps=150,
    )


def decayed() -> Training:
    """A net on a regression with a strong weight decay and restarts of the cosine."""
    torch.manual_seed(70)
    model = nn.Sequential(
        nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.3)
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 60, eta_min=1e-4)
    return Training(
        model=model,
        batch=kit.surface(64),
        loss=kit.squared,
        optimizer=optimizer,
        steps=240,
        schedule=restarts,
    )


def cubes() -> Training:
    """A plain convolutional net with Adagrad."""
    torch.manual_seed(71)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.Mish(), nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.Mish(), nn.Conv2d(24, 24, 3, stride=2, padding=1), nn.Mish(), nn.Flatten(),
        nn.Linear(96, 10),
    )  # fmt: skip
    return Training(
        model=model,
        batch=kit.digits(32, image=True),
        loss=kit.classify,
        optimizer=torch.optim.Adagrad(model.parameters(), lr=0.01),
        steps=150,
    )


STEPS = Healthy(
    "ind4-steps-healthy",
    runs={
        "accumulated-radam": accumulating,
        "single-samples": one_by_one,
        "large-batches": all_at_once,
        "dilated-adadelta": dilated,
        "weight-decay-restarts": decayed,
        "cnn-adagrad": cubes,
    },
)

# Endings and beginnings


def memorised() -> Training:
    """Thirty-two digits by heart: the loss ends near zero."""
    torch.manual_seed(72)
    model = nn.Sequential(nn.Linear(64, 100), nn.SiLU(), nn.Linear(100, 100), nn.SiLU(),
                          nn.Linear(100, 10))  # fmt: skip
    return Training(
        model=model,
        batch=kit.everything(32),
        loss=kit.classify,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=300,
    )


class Pretrained(nn.Module):
    """A body that knows digits 0 to 9 turned around, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.SiLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(384, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def pretrained() -> Pretrained:
    """Sixty steps on pictures turned around, then a fresh head."""
    model = Pretrained()
    data = kit.digits(48, image=True, seed=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        x, y = data(step)
        kit.classify(model, x.rot90(2, (2, 3)), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.head = nn.Linear(384, 10)
    return model


def frozen_body() -> Training:
    """Only the head of a pretrained net is trained; the body wants no gradient."""
    torch.manual_seed(73)
    model = pretrained()
    model.body.requires_grad_(False)
    return Training(
        model=model,
        batch=kit.digits(48, image=True),
        loss=kit.classify,
        optimizer=torch.optim.AdamW(model.head.parameters(), lr=3e-3),
        steps=150,
    )


def by_parts() -> Training:
    """Fine-tuning with a tenth of the head's rate for the body, and a linear decay to nothing."""
    torch.manual_seed(74)
    model = pretrained()
    groups = [
        {"params": list(model.body.parameters()), "lr": 3e-4},
        {"params": list(model.head.parameters()), "lr": 3e-3},
    ]
    optimizer = torch.optim.AdamW(groups)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=120)
    return Training(
        model=model,
        batch=kit.digits(32, image=True),
        loss=kit.classify,
        optimizer=optimizer,
        steps=120,
        schedule=linear,
    )


class Adapted(nn.Module):
    """A frozen linear layer and a low-rank correction that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def adapters() -> Training:
    """Low-rank adapters in a net that was trained on reversed pictures."""
    torch.manual_seed(75)
    layers = [nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)]
    model = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
    data = kit.digits(48, seed=9)
    before = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(80):
        x, y = data(step)
        kit.classify(model, x.flip(1), y).backward()
        before.step()
        before.zero_grad()
    adapted = nn.Sequential(
        Adapted(layers[0], 6), nn.GELU(), Adapted(layers[1], 6), nn.GELU(), Adapted(layers[2], 6)
    )
    trained = [p for p in adapted.parameters() if p.requires_grad]
    return Training(
        model=adapted,
        batch=kit.digits(48),
        loss=kit.classify,
        optimizer=torch.optim.AdamW(trained, lr=3e-3),
        steps=160,
    )


def to_nothing() -> Training:
    """An autoencoder of a few waves without noise, whose rate ends at zero."""
    torch.manual_seed(76)
    model = nn.Sequential(
        nn.Linear(32, 40), nn.ELU(), nn.Linear(40, 10), nn.ELU(), nn.Linear(10, 40), nn.ELU(),
        nn.Linear(40, 32),
    )  # fmt: skip
    _, clean = kit.waves(12, 32)(0)
    optimizer = torch.optim.Adamax(model.parameters(), lr=8e-3)
    return Training(
        model=model,
        batch=lambda step: (clean, clean),
        loss=kit.squared,
        optimizer=optimizer,
        steps=300,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300),
    )


ENDINGS = Healthy(
    "ind4-endings-healthy",
    runs={
        "memorised": memorised,
        "frozen-body": frozen_body,
        "rates-by-part": by_parts,
        "adapters": adapters,
        "rate-to-nothing": to_nothing,
    },
)

THEMES = [DEEP, STEPS, ENDINGS]
