"""L2 norm of a gradient, right at every magnitude its dtype can hold.

The usual float32 norm squares its elements, so that a gradient of 1e-20 has norm 0 and one
of 1e20 has norm inf. Here such results are computed again in float64, and float64 ones, far
beyond that, on a rescaled gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

# A float32 sum of squares is trusted down to 1e-32 an element and up to 1e36: a square that
# underflows loses at most the smallest normal number, 1.2e-38, a millionth of that.
SAFE_SQUARE, SAFE_HIGH = 1e-32, 1e18
# Norms between these have squares that float64 can hold.
WIDE_LOW, WIDE_HIGH = 1e-140, 1e140
# Exact in binary, and lifts what float32 can hold (down to 1e-38) to where squares are safe.
LIFT = 2.0**64

Scalar = float | Tensor


def norm(g: Tensor) -> Scalar:
    """‖g‖₂ as a float; on an accelerator, where reading would wait, as a 0-d float64 tensor."""
    if g.layout is not torch.strided:
        g = g.coalesce().values() if g.is_sparse else g.to_dense()
    if not g.is_cpu:
        return vector_norm(g, dtype=_wide(g))
    if g.dtype is torch.float32:
        value = vector_norm(g).item()
        return value if _safe(value, g.numel()) else _slow(g, value)
    value = vector_norm(g, dtype=_wide(g)).item()
    return value if WIDE_LOW < value < WIDE_HIGH else _rescaled(g, value)


def norms(tensors: Sequence[Tensor]) -> list[Scalar]:
    """`norm` of each, with one kernel launch for all where torch has one."""
    if not tensors:
        return []
    if not all(
        t.is_cpu and t.dtype is torch.float32 and t.layout is torch.strided for t in tensors
    ):
        return [norm(t) for t in tensors]
    fast = torch.stack(torch._foreach_norm(list(tensors))).tolist()
    return [v if _safe(v, t.numel()) else _slow(t, v) for v, t in zip(fast, tensors, strict=True)]


def _safe(value: float, n: int) -> bool:
    return value < SAFE_HIGH and value * value > n * SAFE_SQUARE


def _slow(g: Tensor, value: float) -> float:
    """‖g‖₂ where float32 squares under- or overflow."""
    if value < 1:
        lifted = vector_norm(g * LIFT).item()
        if _safe(lifted, g.numel()):
            return lifted / LIFT
        if lifted == 0 and not g.any():  # common (dead units), and quicker told than summed
            return 0.0
    return vector_norm(g, dtype=torch.float64).item()


def _rescaled(g: Tensor, value: float) -> float:
    """‖g‖₂ where even float64 squares under- or overflow."""
    if not g.numel() or g.dtype not in (torch.float64, torch.complex128):
        return value
    largest = g.abs().max().item()
    if largest == 0 or not math.isfinite(largest):
        return value
    return vector_norm(g / largest).item() * largest


def _wide(g: Tensor) -> torch.dtype:
    if g.device.type == "mps":  # has no float64
        return torch.float32
    return torch.complex128 if g.is_complex() else torch.float64
