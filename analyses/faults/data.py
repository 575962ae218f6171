"""Small data sets. Each function returns `batch(step)`: the same tensors for the same step.

Index legend: B samples, D features, T time steps or positions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from analyses.faults.training import Batch

Batches = Callable[[int], Batch]


def _draws(step: int, seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + step)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(digits.target)


def digits(batch: int = 64, *, image: bool = False, noise: float = 0.0) -> Batches:
    """Handwritten digits (1797 of 8 × 8): x (B, 64) or (B, 1, 8, 8), standardised; y (B,).

    `noise` is the share of labels that are random.
    """
    x, y = _digits()

    def draw(step: int) -> Batch:
        random = _draws(step)
        index = torch.randint(len(x), (batch,), generator=random)
        labels = y[index]
        if noise:
            wrong = torch.rand(batch, generator=random) < noise
            labels = torch.where(wrong, torch.randint(10, (batch,), generator=random), labels)
        return (x[index].view(-1, 1, 8, 8) if image else x[index]), labels

    return draw


def teacher(batch: int = 64, inputs: int = 20, classes: int = 5, seed: int = 0) -> Batches:
    """x (B, D) Gaussian; y (B,), the largest output of a random two-layer network."""
    random = torch.Generator().manual_seed(seed)
    first = torch.randn(inputs, 32, generator=random) / inputs**0.5
    second = torch.randn(32, classes, generator=random)

    def draw(step: int) -> Batch:
        x = torch.randn(batch, inputs, generator=_draws(step, seed))
        return x, ((2 * x @ first).tanh() @ second).argmax(1)

    return draw


def regression(batch: int = 64, inputs: int = 8, outputs: int = 1, scale: float = 1.0) -> Batches:
    """x (B, D) Gaussian; y (B, outputs), smooth functions of x, of standard deviation ~`scale`."""
    random = torch.Generator().manual_seed(0)
    first = torch.randn(inputs, 16, generator=random) / inputs**0.5
    second = torch.randn(16, outputs, generator=random) / 3

    def draw(step: int) -> Batch:
        x = torch.randn(batch, inputs, generator=_draws(step))
        return x, scale * torch.sin(2 * x @ first) @ second

    return draw


def first_symbol(batch: int = 32, length: int = 40, classes: int = 4) -> Batches:
    """x (B, T, C + 1): a symbol (one-hot) at the first step, then noise; y (B,): which it was."""

    def draw(step: int) -> Batch:
        random = _draws(step)
        y = torch.randint(classes, (batch,), generator=random)
        x = torch.randn(batch, length, classes + 1, generator=random) * 0.1
        x[:, 0, :classes] += torch.nn.functional.one_hot(y, classes)
        return x, y

    return draw


def majority(batch: int = 32, length: int = 20) -> Batches:
    """x (B, T, 2) noise; y (B,): whether the sum of the first channel is positive."""

    def draw(step: int) -> Batch:
        x = torch.randn(batch, length, 2, generator=_draws(step))
        return x, (x[:, :, 0].sum(1) > 0).long()

    return draw


def marked(batch: int = 32, positions: int = 16, values: int = 8) -> Batches:
    """x (B, T, C + 1): a value (one-hot) and a mark at each position; y (B,): the marked value."""

    def draw(step: int) -> Batch:
        random = _draws(step)
        value = torch.randint(values, (batch, positions), generator=random)
        where = torch.randint(positions, (batch,), generator=random)
        mark = torch.nn.functional.one_hot(where, positions).unsqueeze(2)
        x = torch.cat([torch.nn.functional.one_hot(value, values), mark], dim=2).float()
        return x, value.gather(1, where.unsqueeze(1)).squeeze(1)

    return draw


def text(batch: int = 16, length: int = 24, symbols: int = 16) -> Batches:
    """x, y (B, T) int64: text of a random Markov chain, and the same one symbol on."""
    random = torch.Generator().manual_seed(0)
    table = torch.softmax(2.5 * torch.randn(symbols, symbols, generator=random), dim=1)

    def draw(step: int) -> Batch:
        random = _draws(step)
        written = [torch.randint(symbols, (batch,), generator=random)]
        for _ in range(length):
            written.append(torch.multinomial(table[written[-1]], 1, generator=random).squeeze(1))
        x = torch.stack(written, dim=1)
        return x[:, :-1], x[:, 1:]

    return draw


def repeated(batch: int = 16, length: int = 12, symbols: int = 16) -> Batches:
    """x, y (B, 2T − 1) int64: random symbols, then the same again; y is one symbol on."""

    def draw(step: int) -> Batch:
        half = torch.randint(symbols, (batch, length), generator=_draws(step))
        x = torch.cat([half, half], dim=1)
        return x[:, :-1], x[:, 1:]

    return draw
