"""Data and small helpers for the runs about parts of a model and for mixed healthy runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.symptoms import Evidence
from analyses.faults.training import Batch


@cache
def digits() -> Batch:
    """Handwritten digits, 8 × 8, centred, and their classes."""
    raw = load_digits()
    x = torch.tensor(raw.data, dtype=torch.float32) / 16
    return (x - x.mean()) / x.std(), torch.tensor(raw.target)


def drawn(*tensors: Tensor, size: int = 64) -> Callable[[int], Batch]:
    """Random rows, the same ones for the same step."""

    def batch(step: int) -> Batch:
        chance = torch.Generator().manual_seed(1000 + step)
        rows = torch.randint(len(tensors[0]), (size,), generator=chance)
        return tuple(t[rows] for t in tensors)

    return batch


def digit_batch(size: int = 64, *, images: bool = False) -> Callable[[int], Batch]:
    """Digits as rows or as images."""
    x, y = digits()
    return drawn(x.view(-1, 1, 8, 8) if images else x, y, size=size)


def text_batch(size: int = 24, length: int = 24) -> Callable[[int], Batch]:
    """Pieces of a made-up language: eight words of three letters in a Markov order."""
    chance = torch.Generator().manual_seed(5)
    words = torch.randint(1, 15, (8, 3), generator=chance)
    follows = torch.randint(0, 8, (8, 2), generator=chance)
    text, word = [], 0
    for pick in torch.randint(0, 2, (2000,), generator=chance).tolist():
        text += [*words[word].tolist(), 0]
        word = int(follows[word, pick]) if pick else (word + 1) % 8
    letters = torch.tensor(text)
    starts = len(letters) - length - 1

    def batch(step: int) -> Batch:
        chosen = torch.Generator().manual_seed(300 + step)
        at = torch.randint(starts, (size, 1), generator=chosen) + torch.arange(length + 1)
        rows = letters[at]
        return rows[:, :-1], rows[:, 1:]

    return batch


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of one answer for each row or position."""
    return nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())


def flat(also: Callable[..., bool] | None = None) -> Any:
    """The loss stays within 5 % of where it began, and the twin's falls by 30 % at least."""

    def symptom(run: Any, twin: Any) -> Evidence:
        kept = run.loss_last / run.loss_first
        theirs = twin.loss_last / twin.loss_first
        cause = also is None or also(run, twin)
        return {
            "is": 0.95 <= kept <= 1.05 and theirs <= 0.7 and cause,
            "kept": kept,
            "twin": theirs,
            "decades": sorted(run.decades())[len(run.checkpoints) // 2],
            "moved": max(run.moved.values(), default=0.0),
            "dead": max(run.last.dead.values(), default=0.0),
        }

    return symptom
