"""Data and small helpers for the runs about depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Centred digits of 64 pixels, and their classes."""
    found = load_digits()
    x = torch.tensor(found.data, dtype=torch.float32) / 8 - 1
    return x, torch.tensor(found.target)


def generator(step: int, salt: int = 0) -> torch.Generator:
    """Random numbers of one step."""
    return torch.Generator().manual_seed(7919 * step + salt)


def digit_batches(size: int = 64, *, image: bool = False) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Random minibatches of digits, flat or as images of one channel."""
    x, y = digits()
    if image:
        x = x.view(-1, 1, 8, 8)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        at = torch.randint(len(x), (size,), generator=generator(step))
        return x[at], y[at]

    return batch


def recall_batches(size: int, length: int, symbols: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A symbol to remember, then noise symbols; the answer is the first."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = generator(step, 1)
        first = torch.randint(symbols, (size,), generator=g)
        noise = torch.randint(symbols, symbols + 4, (size, length - 1), generator=g)
        return torch.cat([first[:, None], noise], 1), first

    return batch


def wave_batches(
    size: int, length: int, *, noise: float = 0.1
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Noisy series of four kinds: slow or quick sines, a ramp, and a square wave."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = generator(step, 2)
        kind = torch.randint(4, (size,), generator=g)
        shift = torch.rand(size, 1, generator=g)
        t = torch.arange(length)[None] / length + shift
        turn = 6.2832 * t
        shapes = torch.stack(
            [turn.mul(2).sin(), turn.mul(5).sin(), 2 * (t % 1) - 1, turn.mul(3).sin().sign()], 1
        )
        x = shapes[torch.arange(size), kind]
        return (x + noise * torch.randn(size, length, generator=g))[:, None], kind

    return batch
