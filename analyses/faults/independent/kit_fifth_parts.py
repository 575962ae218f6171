"""Data and the ordinary set-up for runs of networks with several parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.training import Batch, Training


def digits() -> tuple[Tensor, Tensor]:
    """Standardised 8×8 digits, as rows of 64, and their classes."""
    found = load_digits()
    x = torch.from_numpy(np.asarray(found.data, dtype=np.float32))
    y = torch.from_numpy(np.asarray(found.target, dtype=np.int64))
    return (x - x.mean()) / x.std(), y


def pictures() -> tuple[Tensor, Tensor]:
    """The digits as 1×8×8 pictures."""
    x, y = digits()
    return x.view(-1, 1, 8, 8), y


def table(rows: int = 2000, columns: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """A table with two targets: one by a product of columns, one by a sine of a sum."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, generator=generator) / columns**0.5
    first = x[:, 0] * x[:, 1] + 1.5 * (x @ mix)
    second = torch.sin(2 * x[:, 2]) + x[:, 3].abs() - 0.8
    return x, first[:, None], second[:, None]


def fit(
    model: nn.Module,
    data: Batch,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 200,
    size: int = 64,
) -> Training:
    """Batches drawn at random, the same for the same step."""
    rows = len(data[0])

    def batch(step: int) -> Batch:
        chosen = torch.randint(rows, (size,), generator=torch.Generator().manual_seed(step))
        return tuple(t[chosen] for t in data)

    return Training(model=model, batch=batch, loss=loss, optimizer=optimizer, steps=steps, every=5)
