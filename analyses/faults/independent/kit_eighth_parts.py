"""Data and small helpers for the runs about parts of a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

Batches = Callable[[int], tuple[Tensor, ...]]


def batches(*tensors: Tensor, size: int = 64, seed: int = 0) -> Batches:
    """Random rows of the tensors; the same for the same step."""

    def batch(step: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed * 100_003 + step)
        rows = torch.randint(len(tensors[0]), (size,), generator=generator)
        return tuple(t[rows] for t in tensors)

    return batch


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] of mean 0 and deviation 1, and their classes."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    return (images - images.mean()) / images.std(), torch.tensor(found.target)


@cache
def waves(count: int = 600, length: int = 64, kinds: int = 6) -> tuple[Tensor, Tensor]:
    """Noisy sums of two sines [count, 1, length]; the class is the pair of frequencies."""
    generator = torch.Generator().manual_seed(11)
    kind = torch.randint(kinds, (count,), generator=generator)
    time = torch.arange(length) / length
    phase = torch.rand(count, 2, 1, generator=generator) * 6.283
    low, high = 3 + kind % 3, 9 + 4 * (kind // 3)
    signal = torch.sin(6.283 * low[:, None] * time + phase[:, 0])
    signal = signal + 0.6 * torch.sin(6.283 * high[:, None] * time + phase[:, 1])
    noise = 0.4 * torch.randn(count, length, generator=generator)
    return (signal + noise).unsqueeze(1), kind


@cache
def shapes(count: int = 800, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Images with a square or a cross somewhere: image, mask, and [kind, row, column]."""
    generator = torch.Generator().manual_seed(5)
    images = 0.3 * torch.randn(count, 1, size, size, generator=generator)
    masks = torch.zeros(count, 1, size, size)
    what = torch.zeros(count, 3)
    for i in range(count):
        kind = int(torch.randint(2, (1,), generator=generator))
        row, column = torch.randint(0, size - 5, (2,), generator=generator).tolist()
        if kind:
            masks[i, 0, row : row + 5, column : column + 5] = 1
        else:
            masks[i, 0, row + 2, column : column + 5] = 1
            masks[i, 0, row : row + 5, column + 2] = 1
        what[i] = torch.tensor([kind, row / size, column / size])
    return images + masks, masks, what


def grammar(count: int, length: int, seed: int = 0, letters: int = 12) -> Tensor:
    """Token sequences [count, length]: most often the next is given by the last two."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(letters, (letters, letters), generator=generator)
    found = torch.randint(letters, (count, length), generator=generator)
    for t in range(2, length):
        follows = torch.rand(count, generator=generator) < 0.9
        found[:, t] = torch.where(follows, table[found[:, t - 1], found[:, t - 2]], found[:, t])
    return found
