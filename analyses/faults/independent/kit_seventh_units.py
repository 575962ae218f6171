"""Data and small measurements for the runs on units, data and steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from analyses.faults.case import Make
from analyses.faults.training import Batch


def sampler(size: int, *tensors: Tensor) -> Callable[[int], Batch]:
    """Random rows of the tensors, the same for the same step."""

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(1000 + step)
        rows = torch.randint(len(tensors[0]), (size,), generator=g)
        return tuple(t[rows] for t in tensors)

    return batch


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Pixels between 0 and 1 as (n, 64), and the classes."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)


def digit_images() -> tuple[Tensor, Tensor]:
    """Pixels with mean 0 and variance 1 as (n, 1, 8, 8), and the classes."""
    x, y = digits()
    return ((x - x.mean()) / x.std()).view(-1, 1, 8, 8), y


def table(n: int, features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal features, and a smooth function of them with unit variance."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=g)
    w = torch.randn(features, 6, generator=g) / features**0.5
    y = torch.sin(2 * x @ w).sum(1) + (x @ w)[:, 0] * (x @ w)[:, 1]
    return x, (y - y.mean()) / y.std()


def shapes(n: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images of a bar, a column, a square, or a diagonal, and which of them it is."""
    g = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(n, 1, size, size, generator=g)
    y = torch.randint(4, (n,), generator=g)
    at = torch.randint(1, size - 4, (n, 2), generator=g)
    for i in range(n):
        r, c = at[i].tolist()
        if y[i] == 0:
            x[i, 0, r, :] += 1
        elif y[i] == 1:
            x[i, 0, :, c] += 1
        elif y[i] == 2:
            x[i, 0, r : r + 3, c : c + 3] += 1
        else:
            x[i, 0].diagonal().add_(1)
    return x, y


def waves(n: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy sines (n, length, 1) and whether the frequency is high or low or between."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=g)
    t = torch.linspace(0, 6.28, length)
    phase = 6.28 * torch.rand(n, 1, generator=g)
    x = torch.sin((1.0 + 1.5 * y[:, None]) * t + phase) + 0.2 * torch.randn(n, length, generator=g)
    return x[..., None], y


def late_movement(make: Make) -> float:
    """How far the matrices move in the second half of the run, of their norm: the largest."""
    torch.manual_seed(0)
    training = make()
    before: dict[str, Tensor] = {}
    for step in range(training.steps):
        if step == training.steps // 2:
            before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
        training.step(training, step)
    return max(
        float((p.detach() - before[n]).float().norm() / before[n].float().norm())
        for n, p in training.model.named_parameters()
        if p.ndim > 1 and float(before[n].float().norm()) > 0
    )
