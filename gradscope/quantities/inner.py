"""Inner product of two gradients of the same shape: what a fork's projections are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.quantities.norm import SAFE_HIGH, SAFE_SQUARE, Scalar

# Accelerators: float64 copies of this many elements at a time, so that memory stays flat.
CHUNK = 1 << 22


def inner(a: Tensor, b: Tensor, scale: float | None = None) -> Scalar:
    """⟨a, b⟩ as a float; on an accelerator as a 0-d float64 tensor.

    Args:
        scale: ‖a‖‖b‖ if known. Decides on the CPU whether float32 products are safe.
    """
    if a.layout is not torch.strided or b.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    x, y = a.reshape(-1), b.reshape(-1)
    if x.is_complex():
        x, y = torch.view_as_real(x).reshape(-1), torch.view_as_real(y).reshape(-1)
    if not x.is_cpu:
        return _chunked(x, y)
    if x.dtype is torch.float64 and y.dtype is torch.float64:
        return torch.dot(x, y).item()
    safe = scale is not None and x.numel() * SAFE_SQUARE < scale < SAFE_HIGH**2
    if safe and x.dtype is torch.float32 and y.dtype is torch.float32:
        return torch.dot(x, y).item()
    return torch.dot(x.double(), y.double()).item()


def _chunked(x: Tensor, y: Tensor) -> Tensor:
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    parts = [
        torch.dot(x[i : i + CHUNK].to(wide), y[i : i + CHUNK].to(wide))
        for i in range(0, x.numel(), CHUNK)
    ]
    return torch.stack(parts).sum() if len(parts) != 1 else parts[0]
