"""Data and loops of the cases about parts of models."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from analyses.faults.training import Batch


def digits() -> tuple[Tensor, Tensor]:
    """Images as rows of 64 numbers in 0..1, and their classes."""
    found = load_digits()
    images = torch.tensor(found.data, dtype=torch.float32) / 16
    return images, torch.tensor(found.target, dtype=torch.long)


def source(step: int, seed: int = 0) -> torch.Generator:
    """Random numbers of a step, the same whenever it is asked for."""
    return torch.Generator().manual_seed(seed * 100_003 + step)


def draw(size: int, *data: Tensor, seed: int = 0) -> Callable[[int], Batch]:
    """A random batch of rows at each step."""

    def batch(step: int) -> Batch:
        rows = torch.randint(len(data[0]), (size,), generator=source(step, seed))
        return tuple(d[rows] for d in data)

    return batch


def waves(n: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy sines: (n, length, 1), the class of their frequency out of 4, their amplitude."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.randint(4, (n,), generator=g)
    size = 0.5 + torch.rand(n, 1, generator=g)
    phase = 2 * math.pi * torch.rand(n, 1, generator=g)
    time = torch.arange(length) / length
    x = size * torch.sin(2 * math.pi * (kind[:, None] + 1) * time + phase)
    x = x + 0.1 * torch.randn(n, length, generator=g)
    return x[..., None], kind, size[:, 0]


def tokens(size: int, length: int, words: int, seed: int = 0) -> Callable[[int], Batch]:
    """Random sequences of tokens."""

    def batch(step: int) -> Batch:
        return (torch.randint(words, (size, length), generator=source(step, seed)),)

    return batch
