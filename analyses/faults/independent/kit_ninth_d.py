"""Data and small helpers of runs about parts of models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from analyses.faults.case import Symptom
from analyses.faults.observe import Observed
from analyses.faults.training import Batch


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Pictures of digits, standardized, as rows of 64 numbers, and what they show."""
    x, y = load_digits(return_X_y=True)
    pixels = torch.tensor(x, dtype=torch.float32) / 16
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(y)


def chance(step: int, seed: int = 0) -> torch.Generator:
    """Random numbers of a step."""
    return torch.Generator().manual_seed(100_003 * seed + step)


def drawn(size: int, *tensors: Tensor, seed: int = 0) -> Callable[[int], Batch]:
    """Minibatches out of tensors."""

    def batch(step: int) -> Batch:
        index = torch.randint(len(tensors[0]), (size,), generator=chance(step, seed))
        return tuple(t[index] for t in tensors)

    return batch


def digit_batches(size: int, seed: int = 0) -> Callable[[int], Batch]:
    """Minibatches of digits as rows."""
    return drawn(size, *digits(), seed=seed)


def picture_batches(size: int, seed: int = 0) -> Callable[[int], Batch]:
    """Minibatches of digits as pictures."""
    x, y = digits()
    return drawn(size, x.view(-1, 1, 8, 8), y, seed=seed)


def both(*symptoms: Symptom) -> Symptom:
    """All of several symptoms."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, object]:
        found = [one(run, twin) for one in symptoms]
        evidence: dict[str, object] = {}
        for one in found:
            evidence.update(one)
        return {**evidence, "is": all(one["is"] for one in found)}

    return symptom


def frozen_part(like: str, limit: float = 1e-6) -> Symptom:
    """Matrices called so stay as they were, those of the twin don't, and it shows in the loss."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, object]:
        assert twin is not None
        mine = max(m for n, m in run.moved.items() if like in n)
        theirs = min(m for n, m in twin.moved.items() if like in n)
        worse = run.loss_last > twin.loss_last
        evidence = {"moved": mine, "twin": theirs, "loss": run.loss_last, "to": twin.loss_last}
        return {"is": mine <= limit < theirs and worse, **evidence}

    return symptom
