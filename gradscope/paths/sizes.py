"""Sizes of the parts of a gradient, also where the squares of their elements underflow.

A part that crossed eight softmaxes can be 1e-30 of the whole; the square of that is zero in
float32. Index legend: n parts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def norms(parts: Tensor) -> Tensor:
    """‖part‖₂ of each part: (n, ...) → (n,), in float32 at least."""
    rows = _real_rows(parts)
    largest = _largest(rows)
    return largest * torch.linalg.vector_norm(rows / _divisor(largest)[:, None], dim=1)


def projections(parts: Tensor, onto: Tensor) -> Tensor:
    """⟨part, g⟩ / ‖g‖² of each part on g: (n, ...), (...) → (n,). NaN where g is zero."""
    rows, total = _real_rows(parts), _real_rows(onto[None])[0]
    divisor = _divisor(_largest(total[None])[0])
    total = total / divisor
    return (rows / divisor) @ total / (total @ total)


def _real_rows(parts: Tensor) -> Tensor:
    if parts.is_complex():
        parts = torch.view_as_real(parts)
    return parts.to(torch.promote_types(parts.dtype, torch.float32)).flatten(1)


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])


def _divisor(largest: Tensor) -> Tensor:
    return torch.where(largest == 0, 1, largest)
