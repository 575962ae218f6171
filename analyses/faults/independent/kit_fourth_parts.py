"""Data and small modules for runs whose fault lies in how the parts are wired."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.training import Batch


@cache
def _digits() -> tuple[Tensor, Tensor]:
    raw: Any = load_digits()
    x = torch.tensor(raw.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(raw.target)


def source(step: int, salt: int = 0) -> torch.Generator:
    """Randomness of one step's batch."""
    return torch.Generator().manual_seed(100_003 * salt + step)


def flat_digits(step: int, size: int = 64) -> Batch:
    """Handwritten digits as vectors, and their classes."""
    x, y = _digits()
    chosen = torch.randint(len(x), (size,), generator=source(step))
    return x[chosen], y[chosen]


def digit_images(step: int, size: int = 48) -> Batch:
    """Handwritten digits as images of 8×8."""
    x, y = flat_digits(step, size)
    return x.view(-1, 1, 8, 8), y


def patches(step: int, size: int = 32, side: int = 16) -> Batch:
    """Images with a striped square on noise, its mask, and whether its stripes stand up."""
    g = source(step, 1)
    image = 0.3 * torch.randn(size, 1, side, side, generator=g)
    mask = torch.zeros(size, 1, side, side)
    upright = torch.randint(2, (size,), generator=g)
    corner = torch.randint(side - 8, (size, 2), generator=g)
    stripes = torch.arange(8).remainder(2).float().expand(8, 8)
    for i in range(size):
        a, b = int(corner[i, 0]), int(corner[i, 1])
        mask[i, 0, a : a + 8, b : b + 8] = 1
        image[i, 0, a : a + 8, b : b + 8] += 1 + (stripes if upright[i] else stripes.T)
    return image - 0.4, mask, upright


def words(step: int, size: int = 32, length: int = 12, kinds: int = 12) -> Tensor:
    """Random sequences of symbols."""
    return torch.randint(kinds, (size, length), generator=source(step, 2))


def grammar(step: int, size: int = 32, length: int = 20, kinds: int = 16) -> Batch:
    """Sequences in which a symbol follows from the two before it, now and then from none."""
    g = source(step, 3)
    rows = [torch.randint(kinds, (size,), generator=g) for _ in range(2)]
    for _ in range(length - 1):
        free = torch.rand(size, generator=g) < 0.1
        other = torch.randint(kinds, (size,), generator=g)
        rows.append(torch.where(free, other, (rows[-1] + 3 * rows[-2] // 4 + 1) % kinds))
    text = torch.stack(rows, 1)
    return text[:, :-1], text[:, 1:]


def signs(step: int, size: int = 64, width: int = 8) -> Batch:
    """Points and whether their first two coordinates have the same sign."""
    x = torch.randn(size, width, generator=source(step, 4))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the classes."""
    return F.cross_entropy(model(x), y)


def next_symbol(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the symbol that follows."""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def conv(into: int, out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, normalised and rectified."""
    return nn.Sequential(
        nn.Conv2d(into, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        return -ctx.strength * given[0], None


class Reversal(nn.Module):
    """Hands x on, and its gradient on with the other sign."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Reverse.apply(x, self.strength)
        return out
