"""Data and small parts that the attention cases share."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def generator(step: int, seed: int) -> torch.Generator:
    """Random numbers of one step."""
    return torch.Generator().manual_seed(100_003 * seed + step)


def recall(
    step: int, *, batch: int, items: int, keys: int, values: int, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs of a key and a value, one of the keys again, and the value that belongs to it."""
    g = generator(step, seed)
    key = torch.rand(batch, keys, generator=g).argsort(1)[:, :items]
    value = torch.randint(values, (batch, items), generator=g)
    place = torch.randint(items, (batch, 1), generator=g)
    return key, value, key.gather(1, place)[:, 0], value.gather(1, place)[:, 0]


def marked(
    step: int, *, batch: int, items: int, dim: int, classes: int, seed: int = 2
) -> tuple[Tensor, Tensor]:
    """A set of noisy prototypes of which one has a mark in its last number; the target's class."""
    prototypes = torch.randn(classes, dim - 1, generator=torch.Generator().manual_seed(seed))
    g = generator(step, seed)
    kind = torch.randint(classes, (batch, items), generator=g)
    x = prototypes[kind] + 0.3 * torch.randn(batch, items, dim - 1, generator=g)
    place = torch.randint(items, (batch, 1), generator=g)
    mark = torch.zeros(batch, items).scatter_(1, place, 2.0)
    return torch.cat([x, mark.unsqueeze(-1)], -1), kind.gather(1, place)[:, 0]


def words(step: int, *, batch: int, length: int, vocab: int, seed: int = 3) -> Tensor:
    """Random tokens."""
    return torch.randint(vocab, (batch, length), generator=generator(step, seed))


def repeats(
    step: int, *, batch: int, length: int, period: int, vocab: int, seed: int = 4
) -> tuple[Tensor, Tensor]:
    """A random pattern over and over; the next token is to be told."""
    pattern = torch.randint(vocab, (batch, period), generator=generator(step, seed))
    line = pattern.repeat(1, length // period + 2)[:, : length + 1]
    return line[:, :-1], line[:, 1:]


@cache
def scans() -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits, centred and scaled."""
    x, y = load_digits(return_X_y=True)
    pixels = torch.tensor(x, dtype=torch.float32)
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(y)


def digits(step: int, *, batch: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Some of the digits."""
    x, y = scans()
    chosen = torch.randint(len(x), (batch,), generator=generator(step, seed))
    return x[chosen], y[chosen]


def bags(step: int, *, batch: int, items: int, seed: int = 6) -> tuple[Tensor, Tensor]:
    """Bags of digits from 5 to 9 with a single one below, which is the bag's label."""
    x, y = scans()
    low, high = (y < 5).nonzero()[:, 0], (y >= 5).nonzero()[:, 0]
    g = generator(step, seed)
    index = high[torch.randint(len(high), (batch, items), generator=g)]
    one = low[torch.randint(len(low), (batch, 1), generator=g)]
    place = torch.randint(items, (batch, 1), generator=g)
    index = index.scatter(1, place, one)
    return x[index], y[one[:, 0]]


def patches(x: Tensor, size: int = 2) -> Tensor:
    """(batch, 64) pixels → (batch, patches, size²)."""
    n = 8 // size
    return x.view(-1, n, size, n, size).transpose(2, 3).reshape(-1, n * n, size * size)


def causal(n: int) -> Tensor:
    """True where a position may not look."""
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def heads(x: Tensor, count: int) -> Tensor:
    """(batch, n, d) → (batch, heads, n, d / heads)."""
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """The inverse of `heads`."""
    return x.transpose(1, 2).flatten(2)


def wide(model: nn.Module) -> None:
    """Xavier's initialisation of every linear layer, biases at zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
