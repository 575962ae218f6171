"""Data and small helpers for runs of deep and of recurrent networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.training import Batch


@lru_cache(maxsize=1)
def raw_digits() -> tuple[Tensor, Tensor]:
    """Pixels from 0 to 16 (1797 × 64) and classes."""
    found = load_digits()
    return torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)


def digits(*shape: int) -> tuple[Tensor, Tensor]:
    """Standardised pixels in the given shape (per sample), and classes."""
    x, y = raw_digits()
    return ((x - x.mean()) / x.std()).view(-1, *(shape or (64,))), y


def minibatches(*tensors: Tensor, size: int = 64, seed: int = 0) -> Callable[[int], Batch]:
    """Step → random rows of the tensors."""

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(tensors[0]), (size,), generator=generator)
        return tuple(t[rows] for t in tensors)

    return batch


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of a classifier's logits."""
    return F.cross_entropy(model(x), y)


def regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x), y)


def shapes(n: int = 512, side: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images with a disc or a square: images, kind of shape, mask."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.randint(5, side - 5, (n, 2), generator=g).float()
    radius = 2.5 + 2 * torch.rand(n, generator=g)
    kind = torch.randint(2, (n,), generator=g)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    dy = (row[None] - centre[:, 0, None, None]).abs()
    dx = (column[None] - centre[:, 1, None, None]).abs()
    disc = (dx.square() + dy.square()).sqrt() <= radius[:, None, None]
    square = torch.maximum(dx, dy) <= radius[:, None, None]
    mask = torch.where(kind[:, None, None] == 0, disc, square).float()
    images = mask + 0.4 * torch.randn(n, side, side, generator=g)
    images = (images - images.mean()) / images.std()
    return images[:, None], kind, mask[:, None]


def community_graph(
    nodes: int = 120, classes: int = 4, inside: float = 0.2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Stochastic block model: adjacency with self-loops, noisy features, classes."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(nodes) % classes
    chance = torch.where(y[:, None] == y[None], inside, 0.02)
    upper = (torch.rand(nodes, nodes, generator=g) < chance).float().triu(1)
    adjacency = upper + upper.T + torch.eye(nodes)
    features = F.one_hot(y, 16).float() * 1.5 + torch.randn(nodes, 16, generator=g)
    return adjacency, features, y


def recall(
    n: int = 1024, length: int = 40, symbols: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A symbol at the first step, noise after it; the class is the symbol."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(symbols, (n,), generator=g)
    x = 0.3 * torch.randn(n, length, symbols + 1, generator=g)
    x[:, 0] = F.one_hot(y, symbols + 1).float() * 2
    x[:, :, -1] = 0
    x[:, -1, -1] = 1
    return x, y


def waves(n: int = 768, length: int = 64, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy sines of a few frequencies, as sensors give them; the class is the frequency."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    t = torch.arange(length)[None] / length
    phase = 6.28 * torch.rand(n, 1, generator=g)
    x = torch.sin(6.28 * (2 + 2 * y[:, None]) * t + phase)
    x = x + 0.3 * torch.randn(n, length, generator=g)
    return x[..., None], y


def products(n: int = 4000, noise: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Signs of two products of two numbers each, as four classes: nothing linear can tell them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4 + noise, generator=g)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long()
    return x, y
