"""Data and small helpers that several modules of runs about depth and time share."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

Batches = Callable[[int], tuple[Tensor, ...]]


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)


def dice(step: int, salt: int = 0) -> torch.Generator:
    """The random numbers of a step."""
    return torch.Generator().manual_seed(7919 * salt + step)


def digits(size: int = 64, *, image: bool = False, raw: bool = False) -> Batches:
    """Digits: standardised pixels, or raw ones of 0 to 255."""
    x, y = _digits()
    x = x * (255 / 16) if raw else (x - x.mean()) / x.std()
    if image:
        x = x.view(-1, 1, 8, 8)

    def batch(step: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(x), (size,), generator=dice(step))
        return x[rows], y[rows]

    return batch


def blobs(size: int = 16, side: int = 16, noise: float = 0.7) -> Batches:
    """Noisy pictures of a bright disc, and the disc as mask."""
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")

    def batch(step: int) -> tuple[Tensor, ...]:
        g = dice(step, 3)
        cy, cx = (3 + (side - 6) * torch.rand(2, size, 1, 1, generator=g)).unbind(0)
        radius = 2 + 3 * torch.rand(size, 1, 1, generator=g)
        mask = ((ys - cy) ** 2 + (xs - cx) ** 2 < radius**2).float()[:, None]
        blur = torch.randn(size, 1, side, side, generator=g)
        return mask * 1.5 - 0.5 + noise * blur, mask

    return batch


def first_symbol(length: int, symbols: int = 4, size: int = 32, slips: float = 0.0) -> Batches:
    """One-hot sequences: which symbol came first? The rest is noise of small size."""

    def batch(step: int) -> tuple[Tensor, ...]:
        g = dice(step, 5)
        y = torch.randint(symbols, (size,), generator=g)
        x = 0.3 * torch.randn(size, length, symbols, generator=g)
        x[:, 0] = F.one_hot(y, symbols).float() * 2
        if slips:
            wrong = torch.rand(size, generator=g) < slips
            y = torch.where(wrong, torch.randint(symbols, (size,), generator=g), y)
        return x, y

    return batch


def curve(size: int = 64, inputs: int = 8) -> Batches:
    """Regression: a smooth function of a few variables."""
    w = torch.randn(inputs, 4, generator=dice(0, 11)) / inputs**0.5

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randn(size, inputs, generator=dice(step, 13))
        return x, (torch.sin(2 * x @ w).sum(1, keepdim=True) + x[:, :1])

    return batch


def communities(nodes: int = 96, groups: int = 4, features: int = 12) -> tuple[Tensor, ...]:
    """A graph of communities: noisy features, adjacency with loops, the community of each node."""
    g = dice(0, 17)
    y = torch.arange(nodes) % groups
    near = (y[:, None] == y[None]).float() * 0.3 + 0.03
    links = (torch.rand(nodes, nodes, generator=g) < near).float().triu(1)
    centres = torch.randn(groups, features, generator=g)
    x = centres[y] + 1.2 * torch.randn(nodes, features, generator=g)
    return x, links + links.T + torch.eye(nodes), y


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def fill(model: nn.Module, std: float) -> None:
    """All matrices and kernels normal with this deviation, all biases 0."""
    for name, p in model.named_parameters():
        if p.ndim > 1:
            nn.init.normal_(p, 0.0, std)
        elif name.endswith("bias"):
            nn.init.zeros_(p)


def he(model: nn.Module, nonlinearity: str = "relu") -> None:
    """Kaiming's initialisation for everything linear."""
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, nonlinearity=nonlinearity)  # type: ignore[arg-type]
            if m.bias is not None:
                nn.init.zeros_(m.bias)
