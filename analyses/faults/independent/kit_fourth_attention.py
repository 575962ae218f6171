"""Tasks and small parts for the runs about attention: look-ups, reversals, images as tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.training import Batch, Training

CLASSES = 5
KEY = 12
WIDTH = 2 * KEY + CLASSES  # of a token of `lookup`


def generator(step: int, salt: int = 0) -> torch.Generator:
    """Own random state of a step."""
    return torch.Generator().manual_seed(7919 * step + 104729 * salt + 11)


def lookup(step: int, batch: int = 16, n: int = 16) -> Batch:
    """Every token holds a key, the key it asks for and a class; it must tell the asked one's."""
    g = generator(step, 1)
    key = torch.randn(batch, n, KEY, generator=g)
    asked = torch.rand(batch, n, n, generator=g).argmax(-1)
    value = torch.randint(CLASSES, (batch, n), generator=g)
    wanted = key.gather(1, asked[..., None].expand(-1, -1, KEY))
    tokens = torch.cat([key, wanted, F.one_hot(value, CLASSES).float()], -1)
    return tokens, value.gather(1, asked)


def recall(step: int, batch: int = 32, n: int = 16, noise: float = 0.1) -> Batch:
    """A memory of keys with classes, and a noisy key whose class is asked."""
    g = generator(step, 2)
    key = torch.randn(batch, n, KEY, generator=g)
    value = torch.randint(CLASSES, (batch, n), generator=g)
    at = torch.randint(n, (batch,), generator=g)
    rows = torch.arange(batch)
    question = key[rows, at] + noise * torch.randn(batch, KEY, generator=g)
    memory = torch.cat([key, F.one_hot(value, CLASSES).float()], -1)
    return memory, question, value[rows, at]


def reverse(step: int, batch: int = 24, n: int = 8, symbols: int = 10) -> Batch:
    """A row of symbols, and the same from its end."""
    x = torch.randint(1, symbols, (batch, n), generator=generator(step, 3))
    return x, x.flip(1)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    found: Any = load_digits()
    return (
        torch.tensor(found.images, dtype=torch.float32) / 8.0 - 0.6,
        torch.tensor(found.target),
    )


def digits(step: int, batch: int = 32) -> Batch:
    """Images of digits, (batch, 8, 8), and their classes."""
    images, classes = _digits()
    chosen = torch.randint(len(classes), (batch,), generator=generator(step, 4))
    return images[chosen], classes[chosen]


def patches(images: Tensor, side: int = 2) -> Tensor:
    """(batch, 8, 8) → (batch, patches, side²)."""
    return F.unfold(images[:, None], side, stride=side).transpose(1, 2)


def per_token(model: nn.Module, *batch: Tensor) -> Tensor:
    """Cross-entropy of every position's answer."""
    *given, target = batch
    return F.cross_entropy(model(*given).flatten(0, -2), target.flatten())


def per_sample(model: nn.Module, *batch: Tensor) -> Tensor:
    """Cross-entropy of one answer a sample."""
    *given, target = batch
    return F.cross_entropy(model(*given), target)


class Attend(nn.Module):
    """Attention with several heads, written out; `scale` multiplies the scores."""

    def __init__(
        self, width: int, heads: int = 1, scale: float | None = None, causal: bool = False
    ) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.heads, self.causal = heads, causal
        self.scale = (width // heads) ** -0.5 if scale is None else scale

    def scores(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k = self.split(self.q(x)), self.split(self.k(memory))
        return torch.matmul(q, k.transpose(-2, -1)) * self.scale

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        scores = self.scores(x, memory)
        if self.causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(mask, -math.inf)
        read = torch.matmul(torch.softmax(scores, -1), self.split(self.v(memory)))
        return self.out(read.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a small network, each after a norm and beside a skip connection."""

    def __init__(self, attend: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = attend
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """Tokens in, an answer for each out; `body` maps (batch, n, width) to the same."""

    def __init__(self, given: int, width: int, body: nn.Module, answers: int = CLASSES) -> None:
        super().__init__()
        self.embed = nn.Linear(given, width)
        self.body = body
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, answers)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.embed(x))))


def adam(
    model: nn.Module,
    batch: Callable[[int], Batch],
    loss: Callable[..., Tensor],
    lr: float = 3e-3,
    steps: int = 200,
    **more: Any,
) -> Training:
    """An ordinary run with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Training(model, batch, loss, optimizer, steps=steps, **more)
