"""Data and small pieces shared by the cases on units, data and steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from analyses.faults.training import Batch


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The 8×8 digits as counts from 0 to 16, and their classes."""
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)


def drawn(*tensors: Tensor, size: int, seed: int = 0) -> Callable[[int], Batch]:
    """Random rows of the tensors: the same ones for the same step."""

    def batch(step: int) -> Batch:
        rows = torch.randint(
            len(tensors[0]), (size,), generator=torch.Generator().manual_seed(seed * 99991 + step)
        )
        return tuple(t[rows] for t in tensors)

    return batch
