"""Data and small pieces for runs about deep and recurrent networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits, standardised as a whole, and their classes."""
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


def digit_batch(size: int = 64, image: bool = False) -> Callable[[int], Batch]:
    """Random batches of digits; as (B, 1, 8, 8) images on demand."""
    x, y = digits()

    def batch(step: int) -> Batch:
        rows = torch.randint(len(x), (size,), generator=dice(step))
        chosen = x[rows]
        return (chosen.view(-1, 1, 8, 8) if image else chosen), y[rows]

    return batch


def dice(step: int, salt: int = 0) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed(7919 * salt + step)


def recall_batch(length: int, classes: int = 4, size: int = 32) -> Callable[[int], Batch]:
    """The first vector tells the class; what follows is noise in channels of its own."""

    def batch(step: int) -> Batch:
        g = dice(step, 3)
        y = torch.randint(classes, (size,), generator=g)
        x = torch.zeros(size, length, classes + 2)
        x[torch.arange(size), 0, y] = 1.0
        x[:, 1:, classes:] = 0.3 * torch.randn(size, length - 1, 2, generator=g)
        return x, y

    return batch


def shapes_batch(side: int = 16, size: int = 32) -> Callable[[int], Batch]:
    """Noisy images of a horizontal bar, a vertical bar, a square or a diagonal."""

    def batch(step: int) -> Batch:
        g = dice(step, 5)
        y = torch.randint(4, (size,), generator=g)
        x = 0.3 * torch.randn(size, 1, side, side, generator=g)
        at = torch.randint(2, side - 6, (size, 2), generator=g)
        for n in range(size):
            r, c = int(at[n, 0]), int(at[n, 1])
            if y[n] == 0:
                x[n, 0, r, 1:-1] += 1.5
            elif y[n] == 1:
                x[n, 0, 1:-1, c] += 1.5
            elif y[n] == 2:
                x[n, 0, r : r + 5, c : c + 5] += 1.2
            else:
                x[n, 0].diagonal().add_(1.5)
        return x, y

    return batch


def wave_batch(length: int, size: int = 32, channels: int = 1) -> Callable[[int], Batch]:
    """Noisy sines of random frequency and phase; the target is the frequency."""

    def batch(step: int) -> Batch:
        g = dice(step, 9)
        f = 0.1 + 0.5 * torch.rand(size, 1, generator=g)
        t = torch.arange(length).float()
        x = torch.sin(f * t + 6.28 * torch.rand(size, 1, generator=g))
        x = x + 0.1 * torch.randn(size, length, generator=g)
        return x.unsqueeze(-1).repeat(1, 1, channels), (f - 0.35) / 0.145

    return batch


def regression_batch(inputs: int = 16, size: int = 64) -> Callable[[int], Batch]:
    """A smooth function of a few directions of a normal vector."""
    w = torch.randn(inputs, 3, generator=dice(0, 77)) / inputs**0.5

    def batch(step: int) -> Batch:
        x = torch.randn(size, inputs, generator=dice(step, 13))
        z = x @ w
        return x, (torch.sin(z[:, :1] * 2) + z[:, 1:2] * z[:, 2:])

    return batch


def normal_weights(model: nn.Module, std: float) -> None:
    """The same normal initialisation for every matrix and kernel; biases 0."""
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=std)
        else:
            nn.init.zeros_(p)
