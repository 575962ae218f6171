"""Data and small loops shared by the runs with faults of units, data and precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.training import Batch, Training


@cache
def pixels() -> tuple[Tensor, Tensor]:
    """Digits as rows of 64 grey values from 0 to 1, and their classes."""
    found = load_digits()
    return torch.tensor(found.data / 16.0, dtype=torch.float32), torch.tensor(found.target)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Digits less their mean, over their standard deviation (of all pixels)."""
    x, y = pixels()
    return (x - x.mean()) / x.std(), y


def feed(size: int, *tensors: Tensor) -> Callable[[int], Batch]:
    """Batches of rows drawn at random, the same for the same step."""

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(7919 + step)
        rows = torch.randint(len(tensors[0]), (size,), generator=generator)
        return tuple(t[rows] for t in tensors)

    return batch


def cross(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of classes, in the last dimension."""
    logits = model(x)
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x), y)


def waves(n: int, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy sums of two sines of random pitch: samples, both pitches, both loudnesses."""
    g = torch.Generator().manual_seed(seed)
    pitch = torch.rand(n, 2, generator=g) * 0.35 + 0.05
    loud = torch.rand(n, 2, generator=g) + 0.2
    phase = torch.rand(n, 2, generator=g) * 2 * math.pi
    t = torch.arange(length, dtype=torch.float32)
    parts = torch.sin(t * pitch[..., None] * 2 + phase[..., None]) * loud[..., None]
    noise = 0.05 * torch.randn(n, length, generator=g)
    return parts.sum(1) + noise, pitch, loud


def plain_mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(a, b), *([act()] if i < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def adam(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def scaled_step(scale: float) -> Callable[[Training, int], dict[str, Any]]:
    """A step with a gradient scaler that starts there."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=200)

    def step(training: Training, at: int) -> dict[str, Any]:
        loss = training.loss_at(at)
        scaler.scale(loss).backward()
        scaler.unscale_(training.optimizer)
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
        return {"loss": loss.detach()}

    return step
