"""State of a softmax from its rows p: how peaked, and how much gradient it can pass.

Index legend: R rows, n length of a row. Definitions: design of the Jacobian
J = diag(p) − ppᵀ, so that ‖J‖_F² = Σp² − 2Σp³ + (Σp²)²; at most 1/2, √(n−1)/n when uniform
and 0 when one-hot. Near one-hot these sums cancel, and float32 would stop at 3e-4. With m the
largest element and r_k = Σ p^k over the others, so that r_1 = 1 − m,
‖J‖_F² = m²(r_1² + 2 r_2) + (r_2 − 2 r_3) + r_2², where nothing does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HIDDEN = 1e-30  # what a mask leaves of an entry, in every format
TINY = 1e-38  # p·log p is 0 at p = 0: the smallest normal float32 keeps log finite


def softmax_sums(p: Tensor) -> Tensor:
    """Sums over rows of (H/log n, max p, ‖J‖_F, H, log m, 1/m, 1), where m is the number of
    entries with p > `HIDDEN`: those that no mask hides. p: (R, n) → (7,) of ≥ float32.

    Rows without any probability, in which everything was masked, are left out. H/log n of a
    row of length 1 is 0. Sums of several blocks of rows add up.
    """
    if p.dtype not in (torch.float32, torch.float64):
        p = p.float()
    n = p.shape[-1]
    # (R, n) → (R,): log of a clamped copy; the clamp changes p·log p by less than 1e-36
    entropy = p.clamp_min(TINY).log_().mul_(p).sum(-1).neg_()
    largest, at = p.max(-1, keepdim=True)
    others = p.scatter(-1, at, 0.0)
    m = largest.squeeze(-1)
    r1 = others.sum(-1)
    square = others * others
    r2 = square.sum(-1)
    r3 = square.mul_(others).sum(-1)
    jacobian = (m * m * (r1 * r1 + 2 * r2) + (r2 - 2 * r3) + r2 * r2).sqrt_()
    scale = math.log(n) if n > 1 else 1.0
    told = m > 0
    support = (p > HIDDEN).sum(-1).clamp_min_(1).to(p.dtype)
    rows = torch.stack(
        [entropy / scale, m, jacobian, entropy, support.log(), 1 / support, torch.ones_like(m)]
    )  # (7, R)
    return torch.where(told, rows, 0.0).sum(-1)


def some_rows(rows: int, limit: int) -> Tensor | None:
    """Indices of `limit` rows out of `rows`, the same at every step; None for all of them.

    One row out of each of `limit` equal stretches, in ascending order, so that every sample and
    head has its share. A seeded draw without touching the global random state.
    """
    if rows <= limit:
        return None
    generator = torch.Generator().manual_seed(rows)
    edges = torch.arange(limit + 1) * rows // limit
    begin, length = edges[:-1], edges.diff()
    drawn = torch.rand(limit, generator=generator, dtype=torch.float64) * length
    return begin + drawn.long().clamp(max=length - 1)
