"""State of a softmax from its rows p: how peaked, and how much gradient it can pass.

Index legend: R rows, n length of a row. Definitions: design of the Jacobian
J = diag(p) − ppᵀ, so that ‖J‖_F² = Σp² − 2Σp³ + (Σp²)²; at most 1/2, √(n−1)/n when uniform
and 0 when one-hot.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TINY = 1e-38  # p·log p is 0 at p = 0: the smallest normal float32 keeps log finite


def softmax_state(p: Tensor) -> Tensor:
    """Means over rows of (normalised entropy H/log n, max p, ‖J‖_F). p: (R, n) → (3,).

    The entropy of a row of length 1 is 0.
    """
    if p.dtype not in (torch.float32, torch.float64):
        p = p.float()
    n = p.shape[-1]
    # (R, n) → (R,): log of a clamped copy; the clamp changes p·log p by less than 1e-36
    entropy = p.clamp_min(TINY).log_().mul_(p).sum(-1).neg_()
    square = p * p
    s2 = square.sum(-1)
    s3 = square.mul_(p).sum(-1)
    # rounding can leave a one-hot row a hair below 0
    jacobian = (s2 - 2 * s3 + s2 * s2).clamp_min_(0).sqrt_()
    scale = math.log(n) if n > 1 else 1.0
    return torch.stack([entropy.mean() / scale, p.amax(-1).mean(), jacobian.mean()])


def some_rows(rows: int, limit: int) -> Tensor | None:
    """Indices of `limit` rows out of `rows`, the same at every step; None for all of them.

    A stride that shares no factor with the usual sizes visits batch, heads and positions
    evenly. A seeded draw without touching the global random state.
    """
    if rows <= limit:
        return None
    generator = torch.Generator().manual_seed(rows)
    return torch.randperm(rows, generator=generator)[:limit].sort().values
