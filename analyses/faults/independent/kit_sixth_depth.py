"""Data and small parts shared by the cases on depth and recurrence."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

Batches = Callable[[int], tuple[Tensor, ...]]


def rng(step: int, salt: int = 0) -> torch.Generator:
    """A generator of a step's own."""
    return torch.Generator().manual_seed(7919 * salt + step)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels, dtype=torch.int64)


def digits(size: int = 64, shape: tuple[int, ...] = (64,), salt: int = 1) -> Batches:
    """Handwritten digits, standardised, in the shape asked for."""
    x, y = _digits()
    x = (x - x.mean()) / x.std()

    def batch(step: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(x), (size,), generator=rng(step, salt))
        return x[rows].reshape(size, *shape), y[rows]

    return batch


@cache
def _by_class() -> list[Tensor]:
    x, y = _digits()
    x = (x - x.mean()) / x.std()
    return [x[y == label] for label in range(10)]


def of_class(labels: Tensor, g: torch.Generator) -> Tensor:
    """A digit of each class asked for, standardised."""
    several = [_by_class()[int(label)] for label in labels]
    return torch.stack([x[int(torch.randint(len(x), (1,), generator=g))] for x in several])


def pictures(size: int = 64, salt: int = 2) -> Batches:
    """The same digits as grey values from 0 to 1, without labels."""
    x, _ = _digits()

    def batch(step: int) -> tuple[Tensor, ...]:
        return (x[torch.randint(len(x), (size,), generator=rng(step, salt))],)

    return batch


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def grammar(size: int, length: int, salt: int = 5) -> Batches:
    """Texts of a made-up language: (token, next token); 18 signs, syllables and full stops."""
    syllables = ["ka", "to", "mi", "ren", "su", "lo", "pan", "de", "vi", "shu"]
    signs = [*sorted({c for s in syllables for c in s}), " ", "."]
    code = {c: i for i, c in enumerate(signs)}

    def text(g: torch.Generator) -> list[int]:
        said = ""
        while len(said) <= length:
            start = int(torch.randint(len(syllables), (1,), generator=g))
            count = 1 + int(torch.randint(3, (1,), generator=g))
            said += "".join(syllables[(start + 3 * i) % len(syllables)] for i in range(count))
            said += ". " if count == 3 else " "
        return [code[c] for c in said[: length + 1]]

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, salt)
        tokens = torch.tensor([text(g) for _ in range(size)])
        return tokens[:, :-1], tokens[:, 1:]

    return batch


VOCABULARY = 18
