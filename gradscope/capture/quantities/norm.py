"""L2 norm of a gradient, right at every magnitude its dtype can hold.

The usual float32 norm squares its elements, so that a gradient of 1e-20 has norm 0 and one
of 1e20 has norm inf. Here such results are computed again in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

# Between these, no square in float32 that matters under- or overflows: the smallest normal
# float32 is 1e-38, so squares below it add at most √(1e9 · 1e-38) ≈ 3e-15 to the norm of a
# tensor of 1e9 elements, 0.3 % of 1e-12 squared away to 4e-6; the largest is 3e38.
SAFE_LOW, SAFE_HIGH = 1e-12, 1e18

Scalar = float | Tensor


def norm(g: Tensor) -> Scalar:
    """‖g‖₂ as a float; on an accelerator, where reading would wait, as a 0-d float64 tensor."""
    if g.layout is not torch.strided:
        g = g.coalesce().values() if g.is_sparse else g.to_dense()
    if not g.is_cpu:
        return vector_norm(g, dtype=_wide(g))
    if g.dtype is torch.float32:
        value = vector_norm(g).item()
        if SAFE_LOW < value < SAFE_HIGH:
            return value
    return vector_norm(g, dtype=_wide(g)).item()


def norms(tensors: Sequence[Tensor]) -> list[Scalar]:
    """`norm` of each, with one kernel launch for all where torch has one."""
    if not all(t.is_cpu and t.dtype is torch.float32 and t.layout is torch.strided for t in tensors):
        return [norm(t) for t in tensors]
    if not tensors:
        return []
    fast = torch.stack(torch._foreach_norm(list(tensors))).tolist()
    return [
        v if SAFE_LOW < v < SAFE_HIGH else norm(t) for v, t in zip(fast, tensors, strict=True)
    ]


def _wide(g: Tensor) -> torch.dtype:
    if g.device.type == "mps":  # has no float64
        return torch.float32
    return torch.complex128 if g.is_complex() else torch.float64
