"""Data and attention layers for `again_attention`."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.training import Batch


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)


def seeded(step: int) -> torch.Generator:
    """A generator that depends on the step only."""
    return torch.Generator().manual_seed(1000 + step)


def digits(step: int, size: int = 48) -> Batch:
    """Images as rows of 64 pixels (-0.3..0.7), and what they show."""
    images, labels = _digits()
    at = torch.randint(len(labels), (size,), generator=seeded(step))
    return images[at] - 0.3, labels[at]


def patches(images: Tensor) -> Tensor:
    """64 pixels as 16 patches of 2 x 2."""
    cut = images.view(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4)
    return cut.reshape(-1, 16, 4)


def recall(step: int, pairs: int, kinds: int = 8, size: int = 48) -> Batch:
    """Keys in some order (all different), a value by each, a key asked for, and its value."""
    g = seeded(step)
    keys = torch.rand(size, pairs, generator=g).argsort(1)
    values = torch.randint(kinds, (size, pairs), generator=g)
    at = torch.randint(pairs, (size, 1), generator=g)
    return keys, values, keys.gather(1, at)[:, 0], values.gather(1, at)[:, 0]


def marked(step: int, length: int, width: int = 6, size: int = 48) -> Batch:
    """Bags of vectors of which one carries a mark; its kind is asked for."""
    g = seeded(step)
    kinds = torch.randint(width, (size, length), generator=g)
    bag = torch.nn.functional.one_hot(kinds, width).float()
    bag = bag + 0.2 * torch.randn(bag.shape, generator=g)
    at = torch.randint(length, (size, 1), generator=g)
    mark = torch.zeros(size, length).scatter_(1, at, 1.0)
    bag = torch.cat([bag, 2 * mark[..., None]], -1)
    return bag, kinds.gather(1, at)[:, 0]


class Heads(nn.Module):
    """Attention with several heads, written out."""

    def __init__(
        self, width: int, heads: int = 4, scale: float | None = None, causal: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.scale = (width // heads) ** -0.5 if scale is None else scale
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        other = x if memory is None else memory
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.q(x), self.k(other), self.v(other))
        )
        scores = torch.matmul(q, k.transpose(-2, -1)) * self.scale
        if self.causal:
            n = scores.shape[-1]
            scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        mixed = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm block of attention and a feed-forward net."""

    def __init__(
        self, width: int, heads: int = 4, scale: float | None = None, causal: bool = False
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Heads(width, heads, scale, causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Pool(nn.Module):
    """One learned query reads a sequence."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.score(x), dim=1)
        return self.out((weights * self.value(x)).sum(1))
