"""Data and small helpers shared by the third set's cases of depth and of optimisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.training import Batch


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1797 digits, centred and scaled to about unit variance: (n, 64) and labels."""
    x, y = load_digits(return_X_y=True)
    pixels = torch.tensor(x, dtype=torch.float32)
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(y)


def drawn(step: int, size: int, total: int) -> Tensor:
    """Indices of a step's batch."""
    return torch.randint(total, (size,), generator=torch.Generator().manual_seed(7000 + step))


def flat_digits(size: int = 64) -> Callable[[int], Batch]:
    """Batches of (n, 64)."""

    def batch(step: int) -> Batch:
        x, y = digits()
        at = drawn(step, size, len(x))
        return x[at], y[at]

    return batch


def image_digits(size: int = 64) -> Callable[[int], Batch]:
    """Batches of (n, 1, 8, 8)."""

    def batch(step: int) -> Batch:
        x, y = digits()
        at = drawn(step, size, len(x))
        return x[at].view(-1, 1, 8, 8), y[at]

    return batch


def recall_first(length: int, symbols: int, size: int = 32) -> Callable[[int], Batch]:
    """Sequences whose first symbol is to be told at the end; the rest is noise."""

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(9000 + step)
        x = torch.randint(symbols, (size, length), generator=g)
        return F.one_hot(x, symbols).float(), x[:, 0]

    return batch


def grammar(length: int, size: int = 32) -> Callable[[int], Batch]:
    """Text of 16 symbols: each is mostly a fixed function of the two before it."""

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(11000 + step)
        x = torch.randint(16, (size, length + 1), generator=g)
        noise = torch.rand(size, length + 1, generator=g) < 0.1
        for t in range(2, length + 1):
            follows = (x[:, t - 1] + 3 * x[:, t - 2] + 1) % 16
            x[:, t] = torch.where(noise[:, t], x[:, t], follows)
        return x[:, :-1], x[:, 1:]

    return batch


def curve(size: int = 64, noise: float = 0.0) -> Callable[[int], Batch]:
    """A smooth function of eight numbers."""

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(13000 + step)
        x = torch.randn(size, 8, generator=g)
        y = torch.sin(x[:, 0] * 1.5) + x[:, 1] * x[:, 2] - 0.5 * x[:, 3].abs()
        return x, (y + noise * torch.randn(size, generator=g))[:, None]

    return batch


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of classes in the last dimension."""
    logits = model(x)
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x), y)


def rebuild(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error against the input."""
    return F.mse_loss(model(x), x)


def he(model: nn.Module, gain: float = 1.0) -> None:
    """He's initialisation of every linear and convolution, times a gain; biases 0."""
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            with torch.no_grad():
                m.weight.mul_(gain)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
