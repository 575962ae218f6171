"""Data and small helpers for runs about depth and about the optimizer's steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Data = Callable[[int], tuple[Tensor, ...]]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 16
    return (x - x.mean()) / x.std(), torch.tensor(labels)


def _source(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(100_003 * seed + step)


def digits(size: int, *, image: bool = False, seed: int = 1, of: int = 1797) -> Data:
    """Batches of the 8 × 8 digits, standardised; `of` takes only that many of them."""

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = _digits()
        chosen = torch.randint(of, (size,), generator=_source(seed, step))
        rows = x[chosen]
        return (rows.view(-1, 1, 8, 8) if image else rows), y[chosen]

    return batch


def everything(count: int) -> Data:
    """The same first digits at every step."""

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = _digits()
        return x[:count], y[:count]

    return batch


def first_symbol(size: int, length: int, symbols: int = 6, seed: int = 2) -> Data:
    """Sequences of symbols; the label is the first one."""

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randint(symbols, (size, length), generator=_source(seed, step))
        return x, x[:, 0]

    return batch


def babble(size: int, length: int, symbols: int = 14, seed: int = 3) -> Data:
    """Text of a made-up language in which each letter has three likely successors."""
    rules = _source(seed, -1)
    after = torch.stack([torch.randperm(symbols, generator=rules)[:3] for _ in range(symbols)])

    def batch(step: int) -> tuple[Tensor, ...]:
        source = _source(seed, step)
        letters = [torch.randint(symbols, (size,), generator=source)]
        for _ in range(length):
            pick = (torch.rand(size, generator=source) * 2.2).long()
            letters.append(after[letters[-1], pick])
        text = torch.stack(letters, 1)
        return text[:, :-1], text[:, 1:]

    return batch


def waves(size: int, length: int, seed: int = 4) -> Data:
    """Noisy sines of random frequency and phase, and the clean ones."""

    def batch(step: int) -> tuple[Tensor, ...]:
        source = _source(seed, step)
        t = torch.arange(length) / length
        f = 1 + 3 * torch.rand(size, 1, generator=source)
        clean = torch.sin(6.28 * (f * t + torch.rand(size, 1, generator=source)))
        return clean + 0.3 * torch.randn(size, length, generator=source), clean

    return batch


def surface(size: int, inputs: int = 6, seed: int = 5) -> Data:
    """Regression on a smooth function of several standard normal numbers."""
    w = torch.randn(inputs, 3, generator=_source(seed, -1)) / inputs**0.5

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randn(size, inputs, generator=_source(seed, step))
        u = x @ w
        return x, (torch.sin(2 * u[:, :1]) + u[:, 1:2] * u[:, 2:3])

    return batch


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy, of the last dimension of what the model returns."""
    scores = model(x)
    return nn.functional.cross_entropy(scores.flatten(0, -2), y.flatten())


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return nn.functional.mse_loss(model(x), y)


def weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """Matrices and kernels."""
    return (p for p in model.parameters() if p.ndim > 1)
