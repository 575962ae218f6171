"""Data, losses and a builder for the runs about depth, step sizes and numbers that overflow."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.training import Batch, Training

Optimize = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 16
    return (x - x.mean()) / x.std(), torch.tensor(labels, dtype=torch.long)


def _generator(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(7000 + step)


def digits(step: int, size: int = 64) -> Batch:
    """Random digits as rows of 64 standardised numbers."""
    x, y = _digits()
    rows = torch.randint(len(x), (size,), generator=_generator(step))
    return x[rows], y[rows]


def pictures(step: int, size: int = 48) -> Batch:
    """The same as images of 8×8."""
    x, y = digits(step, size)
    return x.view(-1, 1, 8, 8), y


def recall(step: int, size: int = 32, length: int = 24, kinds: int = 4) -> Batch:
    """A sequence of noise whose first entry holds the class; small hints of it later on."""
    g = _generator(step)
    y = torch.randint(kinds, (size,), generator=g)
    x = 0.3 * torch.randn(size, length, 6, generator=g)
    x[:, 0, :kinds] += 2.0 * F.one_hot(y, kinds)
    x[:, -1, :kinds] += 0.3 * F.one_hot(y, kinds)
    return x, y


def waves(step: int, size: int = 32, length: int = 24) -> Batch:
    """Sine waves with noise; the class is one of four frequencies."""
    g = _generator(step)
    y = torch.randint(4, (size,), generator=g)
    t = torch.linspace(0, 1, length)
    phase = torch.rand(size, 1, generator=g) * math.tau
    x = torch.sin(math.tau * (y[:, None] + 1) * t + phase)
    return (x + 0.2 * torch.randn(size, length, generator=g))[..., None], y


def surface(step: int, size: int = 96, features: int = 8) -> Batch:
    """A smooth function of eight numbers."""
    g = _generator(step)
    x = torch.randn(size, features, generator=g)
    y = torch.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2] * 0.7 + 0.5 * x[:, 3] - 0.3 * x[:, 4].abs()
    return x, y[:, None]


def words(step: int, size: int = 32, length: int = 12, own: float = 0.6) -> Batch:
    """Bags of words of three topics, a share of each from the topic's own ten words."""
    kinds = 30
    g = _generator(step)
    y = torch.randint(3, (size,), generator=g)
    mine = torch.randint(10, (size, length), generator=g) + 10 * y[:, None]
    other = torch.randint(kinds, (size, length), generator=g)
    return torch.where(torch.rand(size, length, generator=g) < own, mine, other), y


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(model(x), y)


def regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x), y)


def rebuild(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error to the input."""
    return F.mse_loss(model(x), x)


def run(
    build: Callable[[], nn.Module],
    batch: Callable[..., Batch],
    loss: Callable[..., Tensor],
    optimize: Callable[..., torch.optim.Optimizer],
    steps: int = 200,
    schedule: Callable[..., Any] | None = None,
    clip: float | None = None,
    every: int = 5,
) -> Training:
    """A seeded run."""
    torch.manual_seed(11)
    model = build()
    optimizer = optimize(model.parameters())
    return Training(
        model=model,
        batch=batch,
        loss=loss,
        optimizer=optimizer,
        steps=steps,
        every=every,
        schedule=None if schedule is None else schedule(optimizer),
        clip=clip,
    )
