"""Small data sets for runs about steps, numbers and scales of inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor

Batches = Callable[[int], tuple[Tensor, ...]]


def draw(step: int, size: int, of: int) -> Tensor:
    """Indices of a step's samples; the same for the same step."""
    return torch.randint(of, (size,), generator=torch.Generator().manual_seed(1000 + step))


def digits(size: int, *, flat: bool = False, top: float = 1.0) -> Batches:
    """Handwritten digits of 8 × 8 pixels from 0 to `top`, with their class."""
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32) / 16 * top
    images = images if flat else images.view(-1, 1, 8, 8)
    labels = torch.tensor(y)

    def batch(step: int) -> tuple[Tensor, ...]:
        index = draw(step, size, len(labels))
        return images[index], labels[index]

    return batch


def table(size: int, columns: int, *, seed: int = 0, classes: int = 0) -> Batches:
    """Standardised columns with a smooth target, or with its quantile as a class."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2000, columns, generator=g)
    a, b = torch.randn(columns, 3, generator=g), torch.randn(3, generator=g)
    y = torch.tanh(x @ a / columns**0.5 * 1.5) @ b + 0.05 * torch.randn(2000, generator=g)
    y = (y - y.mean()) / y.std()
    if classes:
        edges = torch.quantile(y, torch.linspace(0, 1, classes + 1)[1:-1])
        y = torch.bucketize(y, edges)

    def batch(step: int) -> tuple[Tensor, ...]:
        index = draw(step, size, 2000)
        return x[index], y[index]

    return batch


def grammar(size: int, length: int, symbols: int = 16) -> Batches:
    """Text of a made-up language: the next symbol mostly follows from the last two."""
    rule = torch.randint(symbols, (symbols, symbols), generator=torch.Generator().manual_seed(7))

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(2000 + step)
        text = [torch.randint(symbols, (size,), generator=g) for _ in range(2)]
        for _ in range(length - 1):
            follows = rule[text[-2] // 4, text[-1]]
            other = torch.randint(symbols, (size,), generator=g)
            keep = torch.rand(size, generator=g) < 0.9
            text.append(torch.where(keep, follows, other))
        return (torch.stack(text, 1),)

    return batch


def waves(size: int, length: int, *, channels: int = 1) -> Batches:
    """Noisy sines of three frequencies, with the frequency's class."""

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(3000 + step)
        kind = torch.randint(3, (size,), generator=g)
        phase = torch.rand(size, 1, channels, generator=g) * 6.28
        t = torch.arange(length).view(1, -1, 1) / length
        x = torch.sin(6.28 * (2 + 2 * kind).view(-1, 1, 1) * t + phase)
        return x + 0.2 * torch.randn(size, length, channels, generator=g), kind

    return batch


def marked(size: int, length: int, symbols: int = 12) -> Batches:
    """Words of which some decide: whether the first symbols outnumber the second ones."""

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(4000 + step)
        text = torch.randint(symbols, (size, length), generator=g)
        more = (text < 3).sum(1) - ((text >= 3) & (text < 6)).sum(1)
        return text, (more > 0).long()

    return batch


def blobs(size: int, side: int = 16) -> Batches:
    """Noisy images of a bright rectangle, with the mask of its pixels."""

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(5000 + step)
        low = torch.randint(side // 2, (size, 2, 1), generator=g)
        high = low + torch.randint(3, side // 2, (size, 2, 1), generator=g)
        at = torch.arange(side).view(1, 1, -1)
        inside = (at >= low) & (at < high)
        mask = (inside[:, 0, :, None] & inside[:, 1, None, :]).float().unsqueeze(1)
        return mask + 0.4 * torch.randn(mask.shape, generator=g), mask

    return batch
